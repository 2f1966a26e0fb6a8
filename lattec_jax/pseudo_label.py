"""Pseudo-labels of the training images by the frozen CLIP, as JSON lines.

    python -m lattec_jax.pseudo_label --config=configs/demo.py

Each line contains image, label, class, score (softmax probability) and margin. Images are not
augmented. Existing labels of the training images are not used.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from lattec_jax.runtime.cli import (
    command,
    config_arguments,
    define_distributed,
    print_next,
    read_config,
)
from lattec_jax.runtime.config import to_json
from lattec_jax.runtime.text import escape_unprintable, print_escaped


def main(argv: Sequence[str]) -> None:
    """Run the command."""
    run(argv)
    print_next(f"python -m lattec_jax.train {shlex.join(config_arguments(argv[1:]))}")


def run(argv: Sequence[str]) -> None:
    """Do what the command line asks for, without the advice on what to do next."""
    config, values = read_config(argv, __doc__, define_distributed)
    # These import JAX, which --help must not wait for.
    import numpy as np

    from lattec_jax.data import datasets
    from lattec_jax.data.evaluation_metrics import class_fractions
    from lattec_jax.data.pseudo_labels import provenance, pseudo_labels_path
    from lattec_jax.inference.feature_extractor import make_feature_extractor
    from lattec_jax.runtime import compilation_cache, distributed
    from lattec_jax.runtime.sharding import make_mesh
    from lattec_jax.training import prepare

    distributed.initialize(values.distributed)
    compilation_cache.enable()
    distributed.check_same_on_all(to_json(config), Path(config.artifacts))
    with distributed.main_process_first():
        dataset = datasets.load(config)
    weights, mesh = prepare.load_weights(config), make_mesh(config.compute.fsdp)
    # Also the training image cache, which most methods need: each file is then decoded once only.
    images = prepare.open_images(config, dataset, "train", weights, uncropped=True)
    extractor = make_feature_extractor(config, weights, mesh)
    labels = prepare.prepare_pseudo_labels(config, dataset, weights, images, extractor, mesh)

    fractions = class_fractions(labels.labels, len(dataset.class_names))
    print("pseudo-labels of each class")
    for name, fraction in zip(dataset.class_names, fractions, strict=True):
        print(f"{fraction:7.1%}  {escape_unprintable(name)}")
    score, margin = np.mean(labels.scores), np.mean(labels.margins)
    print(f"mean probability {score:.3f}, {margin:.3f} above the second class")
    source = provenance(weights.sha256, dataset.class_synonyms, config.templates)
    print_escaped(f"{len(labels.ids)} pseudo-labels in {pseudo_labels_path(config, source)}")


if __name__ == "__main__":
    command(main)
