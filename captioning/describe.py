"""Describe the training images and their groups.

    python -m captioning.describe --config=configs/demo.py [--kind=image,group]

Writes one JSON line per image and kind (`lattec_jax/data/descriptions.py`). Every batch is on disk
before the next begins, and the same command continues where it stopped: what is there for the same
engine, model and prompt, and of groups the same members, is kept. A kind whose name begins with
"group" describes several images with the same pseudo-label; every other kind a single image.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict
from tqdm import tqdm

from captioning.engines import Engine, Request, load_engine
from captioning.groups import sample_groups
from lattec_jax import config as configuration
from lattec_jax.data import datasets, pseudo_labels
from lattec_jax.data.dataset import Dataset
from lattec_jax.data.descriptions import DescriptionWriter, Record, descriptions_path
from lattec_jax.data.preprocess import UnreadablePicture, open_picture
from lattec_jax.data.prompts import templates
from lattec_jax.errors import ConfigError, DataError


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What `describe` did for one kind, in images."""

    path: Path
    written: int
    kept: int  # were there already
    unreadable: tuple[
        str, ...
    ]  # have no description: a picture, or one of the group, is unreadable


def describe(
    config: ConfigDict, kinds: Sequence[str] | None = None, engine: Engine | None = None
) -> dict[str, Outcome]:
    """Write the descriptions that are missing.

    Args:
        config: a resolved configuration.
        kinds: keys of `config.descriptions.prompts`; None: all of them.
        engine: in the place of the one that the configuration names.

    Raises:
        ConfigError: no such kind or engine.
        DataError: groups are wanted and there are no pseudo-labels, or no picture can be read.
    """
    prompts = config.descriptions.prompts
    kinds = list(prompts) if kinds is None else list(kinds)
    for kind in kinds:
        if kind not in prompts:
            raise ConfigError(
                f"--kind: expected keys of config.descriptions.prompts ({', '.join(prompts)}), "
                f"found {kind!r}. {configuration.did_you_mean(kind, prompts)}"
            )
    engine = engine or load_engine(config)
    dataset = datasets.load(config)
    paths = dict(zip(dataset.train.ids, dataset.train.paths, strict=True))
    single = {image: (image,) for image in paths}
    # All that can be missing is looked for before the first, perhaps long, kind begins.
    members = {k: _groups(config, dataset) if k.startswith("group") else single for k in kinds}
    outcomes = {}
    for kind in kinds:
        outcome = _describe_kind(config, kind, engine, paths, members[kind])
        no_group = tuple(image for image in paths if image not in members[kind])
        outcomes[kind] = dataclasses.replace(outcome, unreadable=no_group + outcome.unreadable)
    return outcomes


def _groups(config: ConfigDict, dataset: Dataset) -> dict[str, tuple[str, ...]]:
    """The members of each image's group. Images without a pseudo-label were unreadable."""
    size = config.descriptions.group_size
    if size < 2:
        raise ConfigError(f"config.descriptions.group_size: expected 2 or more, found {size}")
    source = pseudo_labels.provenance(
        pseudo_labels.weights_sha256(config.weights), dataset.names, templates(config)
    )
    path = pseudo_labels.pseudo_labels_path(config, source)
    labels = pseudo_labels.read(path, None, source)
    known = set(dataset.train.ids)
    kept = [row for row, image in enumerate(labels.ids) if image in known]
    if not kept:
        raise DataError(
            f"{path} has no label for any of the {len(known)} training images; make them again "
            f"with {pseudo_labels.COMMAND}"
        )
    ids = [labels.ids[row] for row in kept]
    return sample_groups(ids, labels.labels[kept], size, config.descriptions.seed)


def _describe_kind(
    config: ConfigDict,
    kind: str,
    engine: Engine,
    paths: Mapping[str, Path],
    members: Mapping[str, tuple[str, ...]],
) -> Outcome:
    """Describe what `members` names (image -> the images to show), batch by batch."""
    path, prompt = descriptions_path(config, kind), config.descriptions.prompts[kind]
    grouped = kind.startswith("group")
    unreadable: list[str] = []
    written = 0
    with DescriptionWriter(path) as writer:
        done = writer.done(kind, prompt, engine.name, engine.model)
        wanted = {
            image: group
            for image, group in members.items()
            if image not in done or (grouped and done[image] != group)
        }
        kept = len(members) - len(wanted)
        bar = tqdm(total=len(members), initial=kept, desc=f"describing: {kind}", unit="image")
        with bar:
            for batch in _batches(wanted, engine.batch_size):
                requests = list(_requests(batch, kind, prompt, paths, unreadable))
                for request, text in zip(requests, _texts(engine, requests), strict=True):
                    group = wanted[request.image_id] if grouped else ()
                    writer.append(
                        Record(
                            request.image_id, kind, text, engine.name, engine.model, prompt, group
                        )
                    )
                writer.flush()
                written += len(requests)
                bar.update(len(batch))
    if members and not written and not kept:
        raise DataError(
            f"none of the {len(members)} pictures can be read, the first: "
            f"{paths[next(iter(members))]}; check config.dataset.root"
        )
    return Outcome(path, written, kept, tuple(unreadable))


def _batches(
    wanted: Mapping[str, tuple[str, ...]], size: int
) -> Iterator[list[tuple[str, tuple[str, ...]]]]:
    items = list(wanted.items())
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _requests(
    batch: Sequence[tuple[str, tuple[str, ...]]],
    kind: str,
    prompt: str,
    paths: Mapping[str, Path],
    unreadable: list[str],
) -> Iterator[Request]:
    """Open the pictures of a batch; images that cannot be shown go to `unreadable`."""
    for image, group in batch:
        try:
            pictures = tuple(open_picture(paths[member]) for member in group)
        except UnreadablePicture:
            unreadable.append(image)
            continue
        yield Request(image, kind, prompt, pictures)


def _texts(engine: Engine, requests: list[Request]) -> list[str]:
    """The engine's texts, each on one line."""
    texts = engine.describe(requests) if requests else []
    if len(texts) != len(requests):
        raise RuntimeError(
            f"engine {engine.name}: expected {len(requests)} texts, one per request, "
            f"found {len(texts)}"
        )
    return [" ".join(text.split()) for text in texts]


def main(argv: Sequence[str]) -> None:
    """The command."""

    def define(values: flags.FlagValues) -> None:
        flags.DEFINE_list("kind", None, "Kinds to describe; default: all.", flag_values=values)

    config, values = configuration.parse(argv, define)
    for kind, outcome in describe(config, values.kind).items():
        print(
            f"{kind}: {outcome.written} written, {outcome.kept} kept, "
            f"{len(outcome.unreadable)} without a description because a picture cannot be read "
            f"-> {outcome.path}"
        )
        for image in outcome.unreadable[:10]:
            print(f"  unreadable: {image}")


if __name__ == "__main__":
    configuration.command(main)
