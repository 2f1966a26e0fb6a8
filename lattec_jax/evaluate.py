"""Evaluate a finished run on the test images of its data set.

    python -m lattec_jax.evaluate --workdir=runs/digits-latteclip-s0

Prints top-1, top-5 and per-class accuracy before and after adaptation; without labels, the fraction
of images that each class is predicted for.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from lattec_jax.runtime import run_directory
from lattec_jax.runtime.cli import WORKDIR, command, define_distributed, define_workdir, read
from lattec_jax.runtime.config import load_run_config, to_json
from lattec_jax.runtime.errors import DataError
from lattec_jax.runtime.text import print_escaped


def define_flags(values: flags.FlagValues) -> None:
    """Define the command's flags."""
    define_workdir(values)
    define_distributed(values)


def main(argv: Sequence[str]) -> None:
    """Run the command."""
    values, _ = read(argv, __doc__, define_flags, WORKDIR)
    # These import JAX, which --help must not wait for.
    from lattec_jax.data import datasets
    from lattec_jax.inference.feature_extractor import make_feature_extractor
    from lattec_jax.models import run_artifacts
    from lattec_jax.reporting import results
    from lattec_jax.runtime import compilation_cache, distributed, sharding
    from lattec_jax.training import prepare

    directory = Path(values.workdir)
    distributed.initialize(values.distributed)
    config = load_run_config(directory / run_directory.CONFIG)
    compilation_cache.enable()
    distributed.check_same_on_all(to_json(config), Path(config.artifacts))
    with distributed.main_process_first():
        model, vectors = run_artifacts.load(directory)
        dataset, weights = datasets.load(config), run_artifacts.load_pretrained(config, directory)
    trained = model.source["class_names"]
    if list(dataset.class_names) != trained:
        raise DataError(
            f"the run in {directory} was trained on the classes {', '.join(trained)}, found "
            f"{', '.join(dataset.class_names)}; restore the class names to evaluate it"
        )
    mesh = sharding.fitting_mesh(config.compute.fsdp)
    extractor = make_feature_extractor(config, weights, mesh)
    part = "test" if dataset.test else "train"
    images = prepare.open_images(config, dataset, part, weights)
    labels = images.labels if dataset.test else None
    prompts = prepare.make_prompts(config, dataset, weights)
    params = sharding.shard_params(weights.params, mesh)
    pixels = images.eval_cache.pixels
    frozen = extractor.encode_images(params, pixels, "zero-shot")
    before = frozen @ extractor.encode_classes(params, prompts).T
    params = sharding.shard_params(model.params, mesh)
    after = vectors.cosines(extractor.encode_images(params, pixels, "adapted"), frozen)
    table = results.comparison_table(
        dataset.class_names,
        results.evaluate_scores(before, labels),
        results.evaluate_scores(after, labels),
        len(images.ids),
    )
    print_escaped(table)


if __name__ == "__main__":
    command(main)
