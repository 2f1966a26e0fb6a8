"""From images to the input of training, with descriptions of a tiny 4-bit LLaVA-NeXT."""

from __future__ import annotations

import json

import pytest
from ml_collections import ConfigDict

from captioning import merge
from captioning.describe import describe
from captioning.engines import engine_module
from captioning.shards import Shard, shard_paths
from lattec_jax import pseudo_label, train
from lattec_jax.data import datasets
from lattec_jax.data.descriptions import descriptions_path, records
from lattec_jax.methods import make_method
from lattec_jax.runtime.config import parse
from lattec_jax.runtime.errors import DataError
from lattec_jax.runtime.sharding import make_mesh
from lattec_jax.training import prepare
from tests import tiny_llava
from tests.dummy import dummy_checkpoint
from tests.runs import arguments, make_images


def prepare_inputs(config: ConfigDict) -> prepare.Inputs:
    """Prepare the input of a training run."""
    mesh = make_mesh(config.compute.fsdp)
    return prepare.prepare_inputs(
        config, datasets.load(config), "", make_method(config.method), mesh, train.describe
    )


@pytest.mark.parametrize("until", ["inputs", pytest.param("results", marks=pytest.mark.full)])
def test_from_images_to_training(tmp_path, until):
    tiny_llava.transformers()
    make_images(tmp_path / "mine", 3, labeled=False)
    dummy_checkpoint().save(tmp_path / "weights")
    tiny_llava.save(tmp_path / "tiny")
    command = arguments(
        "mine",
        "--config.descriptions.llava.model=tiny",
        "--config.descriptions.llava.batch_size=4",
        "--config.descriptions.max_new_tokens=6",
    )
    command = [a.replace("engine=pixels", "engine=llava") for a in command]
    config, _ = parse(command)
    with pytest.raises(DataError, match=r"python -m captioning\.describe --config"):
        train.main(command)
    pseudo_label.main(["pseudo_label", *command[1:]])

    engine = engine_module(config).load(config)
    describe_all, requested = engine.describe, []

    def interrupted(requests):
        for answer in describe_all(requests):
            requested.append((answer[0].kind, answer[0].image_id))
            yield answer
            if len(requested) == 5:
                raise KeyboardInterrupt

    engine.describe = interrupted
    with pytest.raises(KeyboardInterrupt):
        describe(config, None, engine, Shard(0, 2))
    for shard in (Shard(0, 2), Shard(1, 2)):
        describe(config, None, engine, shard)
    assert len(requested) == len(set(requested)) == 2 * 9  # each once, whatever was interrupted
    merge.main(["merge", *command[1:]])
    path = descriptions_path(config, "group")
    assert len(shard_paths(path)) == 2
    written = list(records(path))
    assert len(written) == 9 and {len(record.members) for record in written} == {4}
    assert {record.decoding for record in written} == {"nf4, greedy, at most 6 new tokens"}
    assert len({record.text for record in written}) > 3

    if until == "results":
        train.main(command)
        results = json.loads((tmp_path / "runs/mine-latteclip-s0/results.json").read_text())
        found = results["descriptions"]
    else:
        found = prepare_inputs(config).descriptions.counts
    assert {kind: counts["found"] for kind, counts in found.items()} == {"image": 9, "group": 9}
    (tmp_path / "mine" / "train" / written[0].image.split("/")[-1]).write_bytes(
        (tmp_path / "mine" / "test" / "c000.jpg").read_bytes()
    )
    with pytest.raises(DataError, match="of images that have changed"):
        train.main([*command, "--workdir=another"])
