"""Export a finished run to other libraries: its model, its classifier, and a script for both.

    python -m convert.export --workdir=runs/mine-latteclip-s0 --to=openclip --out=DIR
    python -m convert.export --workdir=runs/mine-latteclip-s0 --to=huggingface --out=DIR
    python -m convert.export --workdir=runs/mine-latteclip-s0 --to=prototypes --out=DIR

Every directory contains

    prototypes.safetensors    [C, D] float32, a unit vector for each class
    classes.json              class names, logit scale, preprocessing, provenance

openclip and huggingface add the model in the format of that library and `use.py`, which classifies
images: `python DIR/use.py IMAGE ...`. prototypes is for a system that already has the adapted image
tower. If a run classifies with two models (ReCLIP), `prototypes.safetensors` also contains
`frozen_prototypes`, and the pre-trained model is written to DIR/pretrained.

(`python -m convert.flax_to_openclip` converts any checkpoint directory, without a classifier.)
Needs neither JAX nor torch.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import flags

from convert import example_script, flax_to_openclip, to_huggingface
from lattec_jax.models import run_artifacts
from lattec_jax.models.checkpoint import Checkpoint
from lattec_jax.models.run_artifacts import ZeroShotHeads
from lattec_jax.runtime.cli import WORKDIR, command, define_workdir, print_next, read
from lattec_jax.runtime.config import load_run_config
from lattec_jax.runtime.errors import WeightsError
from lattec_jax.runtime.files import partial_directory, remove_abandoned, write_safetensors
from lattec_jax.runtime.run_directory import CONFIG
from lattec_jax.runtime.text import print_escaped
from lattec_jax.runtime.version import __version__

PRETRAINED = "pretrained"  # folder of the second model
REQUIRED = {**WORKDIR, "to": "openclip", "out": "exported"}


def export(workdir: Path, to: str, out: Path) -> None:
    """Write the directory of a finished run's export, new or empty, atomically.

    Raises:
        WeightsError: the run is not finished, `out` is not empty, or the library cannot represent
            the model.
    """
    if os.path.lexists(out) and (not out.is_dir() or any(out.iterdir())):
        raise WeightsError(f"{out} exists and is not an empty folder; choose another --out")
    if out.resolve() == Path.cwd():
        raise WeightsError(f"--out={out} is the working directory; name a folder to create in it")
    checkpoint, vectors = run_artifacts.load(workdir)
    models = {"": checkpoint}
    if vectors.pretrained is not None and to != "prototypes":
        models[PRETRAINED] = run_artifacts.load_pretrained(
            load_run_config(workdir / CONFIG), workdir
        )
    if to == "huggingface":
        for model in models.values():
            to_huggingface.refuse_unrepresentable(model)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise WeightsError(f"cannot create {out}: a folder above it is a file") from error
    remove_abandoned(out.parent, out.name)
    with partial_directory(out) as scratch:
        new = scratch / "new"
        new.mkdir()
        for folder, model in models.items():
            (new / folder).mkdir(exist_ok=True)
            if to != "prototypes":
                _write_model(model, new / folder, to)
        write_classifier(new, checkpoint, vectors)
        if to != "prototypes":
            frozen = PRETRAINED if PRETRAINED in models else None
            lines = example_script.script(to, checkpoint.preprocess, frozen)
            (new / "use.py").write_text(lines, encoding="utf-8")
        os.replace(new, out)


def write_classifier(folder: Path, checkpoint: Checkpoint, vectors: ZeroShotHeads) -> None:
    """Write the class vectors and their metadata."""
    arrays = {"prototypes": vectors.adapted, "frozen_prototypes": vectors.pretrained}
    arrays = {name: np.ascontiguousarray(a) for name, a in arrays.items() if a is not None}
    write_safetensors(folder / "prototypes.safetensors", arrays)
    content = {
        "class_names": list(checkpoint.source["class_names"]),
        "scale": float(np.exp(np.float64(checkpoint.params["logit_scale"]))),
        "preprocess": checkpoint.preprocess.to_dict(),
        "model_sha256": checkpoint.sha256,
        "source": checkpoint.source,
        "lattec_jax": __version__,
    }
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    (folder / "classes.json").write_text(text, encoding="utf-8")


def _write_model(checkpoint: Checkpoint, folder: Path, to: str) -> None:
    if to == "openclip":
        flax_to_openclip.export(checkpoint, folder / "open_clip_model.safetensors")
        return
    tensors = to_huggingface.tensors(checkpoint)
    write_safetensors(folder / "model.safetensors", tensors, {"format": "pt"})
    for name, text in to_huggingface.files(checkpoint).items():
        (folder / name).write_text(text, encoding="utf-8")


def define_flags(values: flags.FlagValues) -> None:
    define_workdir(values)
    to = ["openclip", "huggingface", "prototypes"]
    flags.DEFINE_enum("to", None, to, "The library to export for.", flag_values=values)
    flags.DEFINE_string("out", "", "The directory to write.", flag_values=values)


def main(argv: Sequence[str]) -> None:
    values, _ = read(argv, __doc__, define_flags, REQUIRED)
    out = Path(values.out)
    export(Path(values.workdir), values.to, out)
    print_escaped(f"wrote {', '.join(sorted(p.name for p in out.iterdir()))} to {out}")
    script = out / "use.py"
    if script.exists():
        print_next(f"python {shlex.quote(str(script))} IMAGE ...")


if __name__ == "__main__":
    command(main)
