"""LLaVA zero-shot, the paper's baseline: ask a language model for the class of each test image.

    python -m captioning.classify --config=configs/eurosat.py [--workdir=DIR] [--shard=0/8]

The engine is the one of `config.descriptions`; no CLIP takes part. Answers are kept as descriptions
are, in `<artifacts>/<dataset>/descriptions/shards/<engine>-category.*.jsonl`: each is on disk at
once and the same command continues. `captioning/answers.py` states how an answer becomes a class.
What is found goes to the work directory, by default `runs/<dataset>-llava_zero_shot-s<seed>`:
`results.json` and `predictions.jsonl`. An image without an answer counts as wrong.

On a cluster `--shard=i/n` asks for every n-th image and writes answers only; the command without
it, when all are done, writes the results.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from captioning.classify_results import LISTED, predict, report, summarize
from captioning.engines import Engine, Identity, engine_module
from captioning.shards import WHOLE, Shard, recorded
from captioning.tasks import Task
from captioning.worker import ShardPlan, WorkerStats, work_through
from lattec_jax.data import datasets
from lattec_jax.data.datasets.dataset import Dataset
from lattec_jax.data.descriptions import descriptions_path
from lattec_jax.data.images.content_hashes import content_hashes, content_path
from lattec_jax.runtime import config as configuration
from lattec_jax.runtime import run_directory
from lattec_jax.runtime.cli import command, define_workdir, read_config
from lattec_jax.runtime.errors import DataError
from lattec_jax.runtime.files import write_atomic, write_json
from lattec_jax.runtime.text import print_escaped
from lattec_jax.runtime.version import __version__

# The paper's words (arXiv 2410.08211), with no space after the colon.
PROMPT = (
    "Select the most appropriate category for the image from the following options:[options]. "
    "Write only the category name."
)
KIND = "category"
METHOD = "llava_zero_shot"
PREDICTIONS = "predictions.jsonl"


def questions(config: ConfigDict, dataset: Dataset, identity: Identity) -> list[Task]:
    """One task for each test image.

    Raises:
        DataError: there are no test images.
    """
    test = dataset.test
    if test is None:
        raise DataError(
            f"{dataset.name} has no test images to classify; set config.dataset.test, or "
            "config.dataset.held_out_fraction to a share"
        )
    prompt = PROMPT.replace("[options]", ", ".join(dataset.class_names))
    hashes = content_hashes(test.paths, content_path(config))
    return [
        Task.make(image, KIND, prompt, identity, [(path, content)])
        for image, path, content in zip(test.ids, test.paths, hashes, strict=True)
    ]


def ask(
    config: ConfigDict,
    tasks: Sequence[Task],
    engine: Engine | None = None,
    shard: Shard = WHOLE,
) -> WorkerStats:
    """Get the answers of a shard that are missing.

    Args:
        config: a resolved configuration.
        tasks: of all test images.
        engine: in the place of the one that the configuration names.
        shard: the part of the images.

    Raises:
        EngineError: the engine cannot be loaded or does not work.
        DataError: no image can be read, or nothing can be written.
    """
    part = ShardPlan.of(descriptions_path(config, KIND), tasks, shard)
    if not part.wanted:
        return WorkerStats()
    engine = engine or engine_module(config).load(config)
    return work_through(part, engine, KIND, "test images could be classified")


def _head(config: ConfigDict, dataset: Dataset, identity: Identity) -> dict[str, Any]:
    """What was run; null is what only a CLIP or a training run has."""
    absent = (
        "weights weights_sha256 weights_source descriptions_sha256 descriptions_shuffled "
        "descriptions descriptions_notes alpha momentum learning_rate template templates dtype "
        "device batch_size init init_sha256 init_prototypes wise_ft health"
    )
    return {
        "method": METHOD,
        "preset": config.preset,
        "dataset": dataset.name,
        "protocol": dataset.protocol,
        **identity._asdict(),
        "prompt": PROMPT,
        "seed": config.seed,
        "class_names": list(dataset.class_names),
        "names": [list(names) for names in dataset.names],
        "version": __version__,
        "steps": 0,
        **dict.fromkeys(absent.split()),
    }


def classify(
    config: ConfigDict, directory: Path | None = None, engine: Engine | None = None
) -> dict[str, Any]:
    """Ask for what is missing, write the results and return what `results.json` holds.

    Args:
        config: a resolved configuration.
        directory: the work directory; None: the default one.
        engine: in the place of the one that the configuration names.

    Raises:
        ConfigError: the work directory is another run's.
        DataError, EngineError: see `questions` and `ask`.
    """
    # Recorded as a method of its own, so that no training run is mistaken for this one.
    config = config.copy_and_resolve_references().unlock()
    config.method.name = METHOD
    directory = directory or configuration.default_workdir(config)
    identity = engine.identity if engine else engine_module(config).identity(config)
    dataset = datasets.load(config)
    inputs = {"names": dataset.names, "engine": identity}
    run_directory.check_available(directory, config)
    run_directory.check_same_inputs(directory, inputs)
    tasks = questions(config, dataset, identity)
    ask(config, tasks, engine)
    predictions = predict(dataset, tasks, recorded(descriptions_path(config, KIND)))
    found = _head(config, dataset, identity) | summarize(dataset, predictions)
    run_directory.acquire(directory, config, inputs)
    lines = (json.dumps(p.line(dataset.class_names)) + "\n" for p in predictions)
    write_atomic(directory / PREDICTIONS, "".join(lines))
    write_json(directory / run_directory.RESULTS, found)
    return found


def define_flags(values: flags.FlagValues) -> None:
    """The flags of the command."""
    define_workdir(values, "Where the results go; not set: runs/<dataset>-llava_zero_shot-s<seed>.")
    flags.DEFINE_string(
        "shard", "0/1", "Part i of n: i/n; answers only, no results.", flag_values=values
    )


def main(argv: Sequence[str]) -> None:
    """The command."""
    config, values = read_config(argv, __doc__, define_flags)
    shard = Shard.parse(values.shard)
    if shard == WHOLE:
        directory = Path(values.workdir) if values.workdir else None
        print_escaped(report(classify(config, directory)))
        return
    identity = engine_module(config).identity(config)
    tally = ask(config, questions(config, datasets.load(config), identity), None, shard)
    print(
        f"part {shard.index} of {shard.count}: {tally.written} answered, {len(tally.failed)} "
        "failed; when all parts are done, the command without --shard writes the results"
    )
    for image, reason in list(tally.failed.items())[:LISTED]:
        print_escaped(f"  failed: {image}: {reason}")


if __name__ == "__main__":
    command(main)
