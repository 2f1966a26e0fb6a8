"""From pictures to an adapted CLIP with the descriptions of a tiny LLaVA-NeXT in 4 bits."""

from __future__ import annotations

import json

import pytest

from captioning import merge
from captioning.describe import describe
from captioning.engines import engine_module
from captioning.shards import Shard, shard_paths
from lattec_jax import pseudo_label, train
from lattec_jax.config import parse
from lattec_jax.data.descriptions import descriptions_path, records
from lattec_jax.errors import DataError
from tests import tiny_llava
from tests.dummy import dummy_checkpoint
from tests.test_train import arguments, make_pictures


def test_the_whole_stage(tmp_path, monkeypatch):
    tiny_llava.transformers()
    monkeypatch.chdir(tmp_path)
    make_pictures(tmp_path / "mine", 6, labelled=False)
    dummy_checkpoint().save(tmp_path / "weights")
    tiny_llava.save(tmp_path / "tiny")
    command = arguments(
        "mine",
        "--config.descriptions.llava.model=tiny",
        "--config.descriptions.llava.batch_size=4",
        "--config.descriptions.max_new_tokens=10",
    )
    command = [a.replace("engine=pixels", "engine=llava") for a in command]
    config, _ = parse(command)
    with pytest.raises(DataError, match=r"python -m captioning\.describe --config"):
        train.main(command)
    pseudo_label.main(["pseudo_label", *command[1:]])

    engine = engine_module(config).load(config)
    whole, asked = engine.describe, []

    def interrupted(requests):
        for answer in whole(requests):
            asked.append((answer[0].kind, answer[0].image_id))
            yield answer
            if len(asked) == 5:
                raise KeyboardInterrupt

    engine.describe = interrupted
    with pytest.raises(KeyboardInterrupt):
        describe(config, None, engine, Shard(0, 2))
    for shard in (Shard(0, 2), Shard(1, 2)):
        describe(config, None, engine, shard)
    assert len(asked) == len(set(asked)) == 2 * 18  # each once, whatever was interrupted
    merge.main(["merge", *command[1:]])
    path = descriptions_path(config, "group")
    assert len(shard_paths(path)) == 2
    written = list(records(path))
    assert len(written) == 18 and {len(record.members) for record in written} == {4}
    assert {record.decoding for record in written} == {"nf4, greedy, at most 10 new tokens"}
    assert len({record.text for record in written}) > 3

    train.main(command)
    results = json.loads((tmp_path / "runs/mine-latteclip-s0/results.json").read_text())
    assert results["descriptions"]["image"]["found"] == 18
    (tmp_path / "mine" / "train" / written[0].image.split("/")[-1]).write_bytes(
        (tmp_path / "mine" / "test" / "c000.jpg").read_bytes()
    )
    with pytest.raises(DataError, match="of pictures that have changed"):
        train.main([*command, "--workdir=another"])
