"""LLaVA zero-shot, a baseline of the paper: ask the model for the class of each test image.

    python -m captioning.classify --config=configs/eurosat.py [--workdir=DIR] [--shard=0/8]

The engine is that of `config.descriptions`; CLIP is not used. Answers are stored like descriptions,
in `<artifacts>/<dataset>/descriptions/shards/<engine>-category.*.jsonl`: each at once, so that the
same command continues after an interruption. `captioning/answer_matching.py` documents how an
answer is matched to a class. The work directory, by default
`runs/<dataset>-llava_zero_shot-s<seed>`, receives `results.json` and `predictions.jsonl`. An image
without an answer counts as wrong.

On a cluster, `--shard=i/n` classifies every n-th image and writes answers only; the command without
it, when all shards are done, writes the results.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from captioning.classify_results import predict, report, summarize
from captioning.engines import Engine, Identity, engine_module
from captioning.shards import UNSHARDED, Shard, read_records
from captioning.tasks import Task
from captioning.worker import ShardPlan, WorkerStats, describe_shard, list_failures
from lattec_jax.data import datasets
from lattec_jax.data.datasets.dataset import Dataset, Split
from lattec_jax.data.descriptions import descriptions_path
from lattec_jax.data.images.content_hashes import content_hashes, content_path
from lattec_jax.runtime import config as configuration
from lattec_jax.runtime import run_directory
from lattec_jax.runtime.cli import command, define_workdir, read_config
from lattec_jax.runtime.errors import DataError
from lattec_jax.runtime.files import write_atomic, write_json
from lattec_jax.runtime.text import print_escaped
from lattec_jax.runtime.version import __version__

# The paper's prompt (arXiv 2410.08211), without a space after the colon as there.
PROMPT = (
    "Select the most appropriate category for the image from the following options:[options]. "
    "Write only the category name."
)
KIND = "category"
METHOD = "llava_zero_shot"
PREDICTIONS = "predictions.jsonl"


def test_split(dataset: Dataset) -> Split:
    """Return the test images; raise DataError if there are none."""
    if dataset.test is None:
        raise DataError(
            f"{dataset.name} has no test images to classify; set config.dataset.test, or "
            "config.dataset.held_out_fraction to a number above 0"
        )
    return dataset.test


def make_tasks(config: ConfigDict, dataset: Dataset, identity: Identity) -> list[Task]:
    """Return a task for each test image."""
    test = test_split(dataset)
    prompt = PROMPT.replace("[options]", ", ".join(dataset.class_names))
    hashes = content_hashes(test.paths, content_path(config))
    return [
        Task.make(image, KIND, prompt, identity, [(path, content)])
        for image, path, content in zip(test.ids, test.paths, hashes, strict=True)
    ]


def classify_shard(
    config: ConfigDict,
    tasks: Sequence[Task],
    engine: Engine | None = None,
    shard: Shard = UNSHARDED,
) -> WorkerStats:
    """Write the missing answers of a shard of the tasks; `engine` replaces the configured one."""
    plan = ShardPlan.make(descriptions_path(config, KIND), tasks, shard)

    def load() -> Engine:
        return engine or engine_module(config).load(config)

    return describe_shard(plan, load, KIND, "test images could be classified")


# Keys of `results.json` that only a training run has; null here.
_ABSENT = (
    "weights weights_sha256 weights_source descriptions_sha256 descriptions_shuffled descriptions "
    "descriptions_notes alpha momentum learning_rate template templates dtype device batch_size "
    "init init_sha256 init_prototypes wise_ft health"
)


def classify(
    config: ConfigDict, directory: Path | None = None, engine: Engine | None = None
) -> dict[str, Any]:
    """Write the missing answers and the results, print and return the content of `results.json`.

    Args:
        directory: the work directory; None: the default one.
        engine: replaces the configured one.

    Raises:
        ConfigError: the work directory belongs to another run.
        DataError: there are no test images, none can be read, or a file cannot be written.
        EngineError: the engine cannot be loaded or does not work.
    """
    # A separate method name, so that a training run is not mistaken for this one.
    config = config.copy_and_resolve_references().unlock()
    config.method.name = METHOD
    directory = directory or configuration.default_workdir(config)
    identity = engine.identity if engine else engine_module(config).identity(config)
    dataset = datasets.load(config)
    inputs = {"names": dataset.class_synonyms, "engine": identity}
    run_directory.check_available(directory, config)
    run_directory.check_same_inputs(directory, inputs)
    tasks = make_tasks(config, dataset, identity)
    classify_shard(config, tasks, engine)
    predictions = predict(dataset, tasks, read_records(descriptions_path(config, KIND)))
    results = {
        "method": METHOD,
        "preset": config.preset,
        "dataset": dataset.name,
        "protocol": dataset.protocol,
        **identity._asdict(),
        "prompt": PROMPT,
        "seed": config.seed,
        "class_names": list(dataset.class_names),
        "names": [list(names) for names in dataset.class_synonyms],
        "version": __version__,
        "steps": 0,
        **dict.fromkeys(_ABSENT.split()),
        **summarize(test_split(dataset), dataset, predictions),
    }
    run_directory.acquire(directory, config, inputs)
    lines = (json.dumps(p.line(dataset.class_names)) + "\n" for p in predictions)
    write_atomic(directory / PREDICTIONS, "".join(lines))
    path = directory / run_directory.RESULTS
    write_json(path, results)
    print_escaped(f"{report(results)}\nresults in {path}")
    return results


def define_flags(values: flags.FlagValues) -> None:
    define_workdir(
        values, "Directory of the results; default: runs/<dataset>-llava_zero_shot-s<seed>."
    )
    flags.DEFINE_string(
        "shard", "0/1", "Shard i of n: i/n; writes answers, no results.", flag_values=values
    )


def main(argv: Sequence[str]) -> None:
    config, values = read_config(argv, __doc__, define_flags)
    shard = Shard.parse(values.shard)
    if shard == UNSHARDED:
        classify(config, Path(values.workdir) if values.workdir else None)
        return
    identity = engine_module(config).identity(config)
    stats = classify_shard(config, make_tasks(config, datasets.load(config), identity), None, shard)
    print_escaped(
        f"shard {shard.index} of {shard.count}: {stats.written} answered, {len(stats.failed)} "
        "failed; when all shards are done, the command without --shard writes the results"
        + list_failures(stats.failed)
    )


if __name__ == "__main__":
    command(main)
