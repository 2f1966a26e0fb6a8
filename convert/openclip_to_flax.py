"""Convert OpenCLIP's weights to a checkpoint directory.

    python -m convert.openclip_to_flax --model=ViT-B-32 --pretrained=laion2b_s34b_b79k --out=DIR
    python -m convert.openclip_to_flax --out=DIR \\
        --pretrained=hf:laion/CLIP-ViT-B-32-laion2B-s34B-b79K
    python -m convert.openclip_to_flax --pretrained=FOLDER/open_clip_model.safetensors --out=DIR
    python -m convert.openclip_to_flax --model=ViT-B-32 --pretrained=mine.safetensors \\
        --preprocess-of=laion2b_s34b_b79k --out=DIR

The directory is self-contained: parameters, model configuration, tokenizer and preprocessing. A
.safetensors file, local or of the Hugging Face hub (hf:...), is converted without torch; a tag or a
.pt file needs torch. A tokenizer beside a local file takes precedence over that of the hub.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from convert import hub, names, sources
from convert.sources import Source
from lattec_jax.data.images.preprocess import Preprocess
from lattec_jax.models.checkpoint import Checkpoint, check_can_overwrite
from lattec_jax.models.config import CLIPConfig
from lattec_jax.runtime.cli import command, read
from lattec_jax.runtime.errors import ConfigError
from lattec_jax.runtime.text import print_escaped

REQUIRED = {"pretrained": "laion2b_s34b_b79k", "out": "weights/ViT-B-32"}


def convert(source: Source) -> Checkpoint:
    """Convert OpenCLIP's weights to a checkpoint.

    Raises:
        WeightsError: the weights do not fit their configuration, or it is not supported.
    """
    config = CLIPConfig.from_open_clip(source.model_cfg, source.where)
    tokenizer = sources.tokenizer_for(source)
    description = dict(source.description)
    if names.has_custom_text(source.tensors):
        description["custom_text"] = True
    other_types = Counter(array.dtype.name for array in source.tensors.values())
    other_types.pop("float32", None)
    if other_types:
        description["converted_to_float32_from"] = dict(other_types)
    image_size = source.model_cfg["vision_cfg"]["image_size"]
    where = f"{source.where}: preprocess_cfg"
    return Checkpoint(
        config=config,
        params=names.to_flax(source.tensors, config, source.where),
        tokenizer=tokenizer,
        preprocess=Preprocess.from_open_clip(source.preprocess_cfg, image_size, where),
        source=description,
    )


def main(argv: Sequence[str]) -> None:
    values, _ = read(argv, __doc__, define_flags, REQUIRED)
    out = Path(values.out)
    check_can_overwrite(out)
    checkpoint = convert(_read_source(values))
    checkpoint.save(out)
    parameters = sum(array.size for array in checkpoint.params.values())
    print_escaped(f"wrote {out}: {parameters:,} parameters, sha256 {checkpoint.sha256}")
    if "converted_to_float32_from" in checkpoint.source:
        types = checkpoint.source["converted_to_float32_from"].items()
        print_escaped("converted to float32: " + ", ".join(f"{n} tensors of {t}" for t, n in types))
    print_escaped(f"use it by --config.weights={shlex.quote(str(out))}")


def _read_source(values: flags.FlagValues) -> Source:
    """Read the weights that the flags select."""
    given = {
        key: values[key.replace("_", "-")].value
        for key in ("mean", "std", "interpolation", "resize_mode")
    }
    preprocess = {key: value for key, value in given.items() if value is not None}
    preprocess_of = values["preprocess-of"].value
    if preprocess and len(preprocess) < len(given):
        raise ConfigError(
            "--mean, --std, --interpolation and --resize-mode must be given together; missing: "
            + ", ".join(sorted(set(given) - set(preprocess)))
        )
    if hub.is_hub_name(values.pretrained):
        if preprocess or preprocess_of or values.model:
            raise ConfigError(
                f"{values.pretrained} has its own architecture and preprocessing; leave out "
                "--model, --preprocess-of, --mean, --std, --interpolation and --resize-mode"
            )
        return sources.from_hub(values.pretrained)
    path = Path(values.pretrained)
    if path.name.endswith(sources.FILE_SUFFIXES) or path.is_file():
        return sources.from_file(path, values.model, preprocess_of, preprocess)
    if preprocess or preprocess_of:
        raise ConfigError(
            "a tag has its own preprocessing; --preprocess-of, --mean, --std, --interpolation "
            f"and --resize-mode are for files, and {values.pretrained!r} is not one"
        )
    if values.model is None:
        raise ConfigError(
            f"--pretrained={values.pretrained} is a tag and needs --model=NAME, for example "
            "--model=ViT-B-32"
        )
    return sources.from_tag(values.model, values.pretrained)


class _Triple(flags.ArgumentParser):
    """Parses three numbers with commas between them."""

    def parse(self, argument: str) -> tuple[float, ...]:
        values = tuple(float(value) for value in argument.split(","))
        if len(values) != 3:
            raise ValueError(f"expected three numbers R,G,B, found {argument!r}")
        return values

    def flag_type(self) -> str:
        return "R,G,B"


def define_flags(values: flags.FlagValues) -> None:

    def text(name: str, help_text: str) -> None:
        flags.DEFINE_string(name, None, help_text, flag_values=values)

    def choice(name: str, choices: list[str], help_text: str) -> None:
        flags.DEFINE_enum(name, None, choices, help_text, flag_values=values)

    text("model", "open_clip's name of the architecture, such as ViT-B-32.")
    text("pretrained", "open_clip's tag, a .safetensors or .pt file, or hf:organization/name.")
    text("out", "The directory to write.")
    when = "for a file without open_clip_config.json beside it."
    text("preprocess-of", f"Use the preprocessing of this open_clip tag of --model, {when}")
    for name in ("mean", "std"):
        help_text = f"{name} of the colors, {when}".capitalize()
        flags.DEFINE(_Triple(), name, None, help_text, flag_values=values)
    choice("interpolation", ["bicubic", "bilinear"], f"Interpolation of the resizing, {when}")
    choice(
        "resize-mode",
        ["shortest", "longest", "squash"],
        f"How images are brought to the input size, {when}",
    )


if __name__ == "__main__":
    command(main)
