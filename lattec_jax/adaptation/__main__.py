"""Adapt a CLIP to a folder of unlabeled images, without a configuration file.

    python -m lattec_jax adapt photos --classes=cat,dog
    python -m lattec_jax adapt photos --classes=classes.txt --describe=http://localhost:8000/v1
    python -m lattec_jax.adaptation photos --classes=cat,dog --test=labeled --workdir=runs/pets

PHOTOS is a folder (with its sub-folders) or a quoted pattern such as 'photos/*.jpg'. No labels are
needed; a folder of labeled test images, with one sub-folder for each class, is used to measure.

Batch size, warm-up, α and μ are chosen from the number of images, by the rules of
`lattec_jax/adaptation/choices.py`; each is printed with its reason, and `--config.KEY=VALUE`
(docs/configuration.md) replaces any of them. Without --describe the model learns from the class
names alone.

The same command continues an interrupted run, and shows a finished one. In Python:
`lattec_jax.adapt("photos", ["cat", "dog"])`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from absl import flags

from lattec_jax.adaptation import WEIGHTS, adapt
from lattec_jax.runtime.cli import command, define_workdir, read
from lattec_jax.runtime.errors import ConfigError

REQUIRED = {"classes": "cat,dog"}


def define_flags(values: flags.FlagValues) -> None:
    """Define the command's flags."""

    def text(name: str, default: str, description: str) -> None:
        flags.DEFINE_string(name, default, description, flag_values=values)

    text("classes", "", "Class names, separated by commas, or a text file with one per line.")
    text("weights", WEIGHTS, "As config.weights: an OpenCLIP tag, a file, a directory, hf:REPO.")
    text(
        "describe",
        "",
        "Describes the images: the address of a server with the OpenAI API, llava (on this GPU) or "
        "pixels (drawings of single symbols).",
    )
    text("describe_model", "", "The server's model; default: its only one.")
    text("domain", "", "What the images show, such as bird, for the prompts of --describe.")
    text("test", "", "Folder of labeled test images.")
    text("method", "latteclip", "latteclip, flyp, reclip or zero_shot.")
    text("preset", "paper", "paper or released_code.")
    define_workdir(values, "Work directory of the run; default: runs/<folder>-<method>-s<seed>.")


def main(argv: Sequence[str]) -> None:
    """Run the command."""
    settings, rest = _split(argv)
    values, images = read(rest, __doc__, define_flags, REQUIRED, "PHOTOS")
    if len(images) != 1:
        raise ConfigError(
            f"expected one folder of images, found {len(images)} arguments"
            f"{': ' + ' '.join(images[:3]) if images else ''}; quote a pattern: 'photos/*.jpg'"
        )
    if values.describe_model:
        settings["descriptions.openai.model"] = values.describe_model
    adapt(
        images[0],
        values.classes,
        weights=values.weights,
        descriptions=values.describe or None,
        domain=values.domain,
        test=values.test or None,
        method=values.method,
        preset=values.preset,
        workdir=values.workdir or None,
        settings=settings,
    )


def _split(argv: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Separate the `--config.KEY=VALUE` arguments, by key, from the others."""
    settings, others = {}, []
    for argument in argv:
        name, equals, value = argument.partition("=")
        if re.fullmatch(r"--?config", name):
            raise ConfigError(
                "--config: this command makes its configuration itself; pass single values as "
                "--config.KEY=VALUE, or use python -m lattec_jax.train --config=FILE"
            )
        if not re.match(r"--?config\.", name):
            others.append(argument)
        elif equals:
            settings[name.partition(".")[2]] = value
        else:
            raise ConfigError(f"{argument}: expected {argument}=VALUE")
    return settings, others


if __name__ == "__main__":
    command(main)
