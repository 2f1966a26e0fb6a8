"""Measure CPU time and peak memory of the preparation before training, by data set size.

    python -m benchmarks.startup [--images 10000 100000 1000000]

For each number of images, a separate process writes pseudo-labels and two descriptions per image,
and reads them like training: the labels, the texts joined by id and checked against content hashes,
the tokens, and the plan of their lengths. Image files (of 3 KB) are listed, and hashed twice: the
second time their hashes are known. They are not decoded. Descriptions have 22 tokens on average, up
to 77. CPU seconds are of all threads: texts are tokenized on all cores. Prints a Markdown table and
a JSON line for each row on standard error. Needs open_clip_torch for CLIP's vocabulary.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from lattec_jax.data import descriptions, pseudo_labels
from lattec_jax.data.descriptions import Expected, Record
from lattec_jax.data.images.content_hashes import content_hashes
from lattec_jax.data.images.sources import files_at
from lattec_jax.data.text.bucketing import text_lengths
from lattec_jax.data.text.clip_bpe import clip_tokenizer
from lattec_jax.models.config import TextConfig
from lattec_jax.training.batches import Batches

SENTENCE = (
    "a photo of dense green forest river bank with brown fields and white houses near the road "
    "small large old bright dark narrow winding residential industrial area seen from above"
)
WORDS = SENTENCE.split()
BPE = Path(importlib.util.find_spec("open_clip").origin).with_name("bpe_simple_vocab_16e6.txt.gz")
KINDS = ("image", "group")
STAGES = (
    "listing",
    "hashing",
    "hashing again",
    "pseudo-labels",
    "descriptions",
    "tokens",
    "lengths and plan",
)


def texts(count: int, seed: int) -> list[str]:
    """Return random descriptions: 20 words on average; start and end tokens make it 22 tokens."""
    rng = np.random.default_rng(seed)
    lengths = np.clip(rng.gamma(6, 20 / 6, count), 3, 75).astype(int)
    words = rng.integers(0, len(WORDS), lengths.sum())
    found, start = [], 0
    for length in lengths.tolist():
        found.append(" ".join(WORDS[w] for w in words[start : start + length]))
        start += length
    return found


def write(directory: Path, ids: list[str], contents: list[str], prompt: str) -> list[Path]:
    """Write the description files."""
    paths = []
    for seed, kind in enumerate(KINDS):
        paths.append(directory / f"{kind}.jsonl")
        with open(paths[-1], "wb") as file:
            for index, text in enumerate(texts(len(ids), seed)):
                record = Record(ids[index], kind, text, "llava", "7b", prompt, "greedy")
                key = descriptions.key_of(record, [contents[index]])
                file.write(descriptions.to_line(record._replace(key=key)))
    return paths


def write_files(folder: Path, ids: list[str]) -> None:
    """Write a file of 3 KB for each image."""
    for number in range(10):
        (folder / f"class_{number}").mkdir(parents=True)
    for number, image in enumerate(ids):
        (folder / image).write_bytes(number.to_bytes(8) * 384)


def measure(images: int) -> dict[str, Any]:
    """Return the CPU seconds of each stage, and the process's peak memory in GB after it."""
    found: dict[str, Any] = {"images": images}

    def timed(name: str, run: Callable[[], Any]) -> Any:
        start = time.process_time()
        result = run()
        found[name] = round(time.process_time() - start, 2)
        found[f"{name}, GB"] = peak()
        return result

    with tempfile.TemporaryDirectory() as scratch:
        directory, ids = Path(scratch), [f"class_{n % 10}/image_{n:07}.jpg" for n in range(images)]
        write_files(directory / "files", ids)
        files = timed("listing", lambda: files_at(directory / "files"))
        for stage in ("hashing", "hashing again"):
            timed(stage, lambda: content_hashes(files, directory / "content.json"))
        contents = [f"{n:064x}" for n in range(images)]
        prompt = "Describe the land use in the photo concisely, using less than 20 words."
        paths = write(directory, ids, contents, prompt)
        names = [(f"class {n}",) for n in range(10)]
        source = pseudo_labels.provenance("0" * 64, names, ("a photo of a {}.",))
        labels = np.arange(images) % 10
        scores = np.full(images, 0.5, np.float32)
        path = directory / "labels.jsonl"
        pseudo_labels.write(path, ids, labels, scores, scores, source)
        found["memory before"] = peak()
        labels_read = timed("pseudo-labels", lambda: pseudo_labels.read(path, ids, source))
        expected = Expected(contents, {kind: [prompt] * images for kind in KINDS})
        read = timed("descriptions", lambda: descriptions.read(paths, KINDS, ids, expected))
        ordered = [read.texts[kind][n] for n in range(images) for kind in KINDS]
        tokenizer = clip_tokenizer(BPE)
        tokens = timed("tokens", lambda: tokenizer([text or "" for text in ordered]))
        config = TextConfig(512, 12, 8, 77, 49408)

        def plan() -> float:
            lengths = text_lengths(tokens, config)
            batch = min(512, images)
            Batches(images, batch, 0, 2000, lengths.reshape(images, len(KINDS)), 77)
            return float(lengths.mean())

        found["mean length"] = round(timed("lengths and plan", plan), 1)
        found["memory after"] = peak()
        if len(labels_read.ids) != images:
            raise RuntimeError(f"expected {images} labels, found {len(labels_read.ids)}")
    return found


def peak() -> float:
    """Return the peak memory of this process in GB."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    values = parser.parse_args()
    if values.child:
        print(json.dumps(measure(values.child)))
        return
    print(f"| images | {' (s) | '.join(STAGES)} (s) | peak memory (GB) |")
    print("|" + "---|" * (len(STAGES) + 2))
    for images in values.images:
        command = [sys.executable, "-m", "benchmarks.startup", f"--child={images}"]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        found = json.loads(output)
        print(output.strip(), file=sys.stderr)
        cells = [f"{found[stage]:.1f}" for stage in STAGES]
        print(f"| {images:,} | {' | '.join(cells)} | {found['memory after']:.1f} |", flush=True)


if __name__ == "__main__":
    main()
