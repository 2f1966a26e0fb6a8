"""Preparation does nothing twice, and nothing that is not needed."""

from __future__ import annotations

import shlex

from lattec_jax import pseudo_label
from lattec_jax.inference.feature_extractor import FeatureExtractor
from tests.runs import arguments, run

ZERO_SHOT = ("labeled", ":method=zero_shot")


def test_training_images_are_encoded_once_where_they_are_tested_too(place, monkeypatch):
    encoded = []
    images = FeatureExtractor.encode_images

    def counting(self, params, pixels, progress=None):
        encoded.append((progress, len(pixels)))
        return images(self, params, pixels, progress)

    monkeypatch.setattr(FeatureExtractor, "encode_images", counting)
    alone = ("--config.dataset.test=", "--config.dataset.held_out_fraction=0", "--workdir=alone")
    found = run(*ZERO_SHOT, *alone)
    assert encoded == [("pseudo-labels", 36), ("evaluation", 36), ("evaluation", 36)]
    encoded.clear()
    with_test = run(*ZERO_SHOT, "--workdir=tested")
    assert [entry for entry in encoded if entry[0] != "pseudo-labels"] == [
        ("evaluation", 36),
        ("evaluation", 36),
        ("training images", 36),
    ]
    assert found["n_test"] == 0 and with_test["n_test"] == 36
    assert found["label_free"] == with_test["label_free"]


def test_only_what_augments_makes_a_training_cache(place, capsys):
    run(*ZERO_SHOT)
    caches = place / "artifacts/labeled/image_caches"
    assert {path.name.split("-")[0] for path in caches.iterdir()} == {"evaluation"}
    given = arguments("labeled")[1:]
    pseudo_label.main(["pseudo_label", *given])
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2].startswith("36 pseudo-labels in artifacts/labeled/pseudo_labels/")
    assert lines[-1] == f"next: python -m lattec_jax.train {shlex.join(given)}"
    assert {path.name.split("-")[0] for path in caches.iterdir()} == {"evaluation", "training"}


def test_pseudo_labels_of_other_images_are_made_again(place, caplog):
    run(*ZERO_SHOT)
    assert not caplog.messages
    (place / "labeled/train/cat/c000.jpg").unlink()
    run(*ZERO_SHOT, "--workdir=fewer")
    (warning,) = [message for message in caplog.messages if "pseudo-labels" in message]
    assert "are of other images" in warning
    assert warning.endswith("; the pseudo-labels are made again")


def test_the_cheap_engine_reads_nothing_that_preparation_has_read(place, monkeypatch):
    def refuse(*arguments):
        raise AssertionError("this was read before")

    monkeypatch.setattr("captioning.describe.datasets.load", refuse)
    monkeypatch.setattr("captioning.tasks.content_hashes", refuse)
    monkeypatch.setattr("captioning.tasks.pseudo_labels.weights_sha256", refuse)
    run("labeled", "--config.train.max_steps=0")
    described = place / "artifacts/labeled/descriptions"
    assert {path.name for path in described.glob("*.jsonl")} == {
        "pixels-image.jsonl",
        "pixels-group-of-4.jsonl",
    }
