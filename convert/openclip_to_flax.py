"""OpenCLIP's weights to a checkpoint directory.

    python -m convert.openclip_to_flax --model=ViT-B-32 --pretrained=laion2b_s34b_b79k --out=DIR
    python -m convert.openclip_to_flax --out=DIR \\
        --pretrained=hf:laion/CLIP-ViT-B-32-laion2B-s34B-b79K
    python -m convert.openclip_to_flax --pretrained=FOLDER/open_clip_model.safetensors --out=DIR
    python -m convert.openclip_to_flax --model=ViT-B-32 --pretrained=mine.safetensors \\
        --preprocess-of=laion2b_s34b_b79k --out=DIR

The directory is complete in itself: parameters, model configuration, tokenizer, preprocessing. A
.safetensors file, local or of the Hugging Face hub (hf:...), is converted without torch; a tag or a
.pt file needs it. A tokenizer of the hub is looked for beside a local file first.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from convert import hub, names, sources
from convert.sources import Source
from lattec_jax.models.checkpoint import Checkpoint, refuse_other_directory
from lattec_jax.runtime.cli import command, read
from lattec_jax.runtime.errors import ConfigError
from lattec_jax.runtime.text import print_escaped

REQUIRED = {"pretrained": "laion2b_s34b_b79k", "out": "weights/ViT-B-32"}


def convert(source: Source) -> Checkpoint:
    """The checkpoint that holds the same model.

    Raises:
        WeightsError: the weights do not fit their configuration, or it is not supported.
    """
    config = sources.readable_architecture(source.model_cfg, source.where)
    tokenizer = sources.tokenizer_for(source)
    description = dict(source.description)
    if names.has_custom_text(source.tensors):
        description["custom_text"] = True
    other_types = sources.stored_types(source.tensors)
    other_types.pop("float32", None)
    if other_types:
        description["converted_to_float32_from"] = other_types
    return Checkpoint(
        config=config,
        params=names.to_flax(source.tensors, config, source.where),
        tokenizer=tokenizer,
        preprocess=sources.preprocess_for(source),
        source=description,
    )


def main(argv: Sequence[str]) -> None:
    """The command."""
    values, _ = read(argv, __doc__, define_flags, REQUIRED)
    out = Path(values.out)
    refuse_other_directory(out)
    checkpoint = convert(_read_source(values))
    checkpoint.save(out)
    parameters = sum(array.size for array in checkpoint.params.values())
    print_escaped(f"wrote {out}: {parameters:,} parameters, sha256 {checkpoint.sha256}")
    if "converted_to_float32_from" in checkpoint.source:
        types = checkpoint.source["converted_to_float32_from"].items()
        print_escaped("converted to float32: " + ", ".join(f"{n} tensors of {t}" for t, n in types))


def _read_source(values: flags.FlagValues) -> Source:
    """The weights that the flags name."""
    given = {
        key: values[key.replace("_", "-")].value
        for key in ("mean", "std", "interpolation", "resize_mode")
    }
    preprocess = {key: value for key, value in given.items() if value is not None}
    preprocess_of = values["preprocess-of"].value
    if preprocess and len(preprocess) < len(given):
        raise ConfigError(
            "--mean, --std, --interpolation and --resize-mode go together; missing: "
            + ", ".join(sorted(set(given) - set(preprocess)))
        )
    if hub.is_hub_name(values.pretrained):
        if preprocess or preprocess_of or values.model:
            raise ConfigError(
                f"{values.pretrained} brings its own architecture and preprocessing; leave out "
                "--model, --preprocess-of, --mean, --std, --interpolation and --resize-mode"
            )
        return sources.from_hub(values.pretrained)
    if sources.is_file_name(values.pretrained):
        return sources.from_file(Path(values.pretrained), values.model, preprocess_of, preprocess)
    if preprocess or preprocess_of:
        raise ConfigError(
            "a tag brings its own preprocessing; --preprocess-of, --mean, --std, --interpolation "
            f"and --resize-mode are for files, and {values.pretrained!r} is not one"
        )
    if values.model is None:
        raise ConfigError(
            f"--pretrained={values.pretrained} is a tag and needs --model=NAME, for example "
            "--model=ViT-B-32"
        )
    return sources.from_tag(values.model, values.pretrained)


class _Triple(flags.ArgumentParser):
    """Three numbers with commas between them."""

    def parse(self, text: str) -> tuple[float, ...]:
        values = tuple(float(value) for value in text.split(","))
        if len(values) != 3:
            raise ValueError(f"expected three numbers R,G,B, found {text!r}")
        return values

    def flag_type(self) -> str:
        return "R,G,B"


def define_flags(values: flags.FlagValues) -> None:
    """The flags of the command."""

    def text(name: str, what: str) -> None:
        flags.DEFINE_string(name, None, what, flag_values=values)

    def choice(name: str, choices: list[str], what: str) -> None:
        flags.DEFINE_enum(name, None, choices, what, flag_values=values)

    text("model", "open_clip's name of the architecture, such as ViT-B-32.")
    text("pretrained", "open_clip's tag, a .safetensors or .pt file, or hf:organization/name.")
    text("out", "The directory to write.")
    what = "for a file that has no open_clip_config.json beside it."
    text("preprocess-of", f"Preprocessing of this open_clip tag of --model, {what}")
    for name in ("mean", "std"):
        words = f"{name} of the colors, {what}".capitalize()
        flags.DEFINE(_Triple(), name, None, words, flag_values=values)
    choice("interpolation", ["bicubic", "bilinear"], f"How images are resized, {what}")
    choice(
        "resize-mode",
        ["shortest", "longest", "squash"],
        f"How the input size is reached, {what}",
    )


if __name__ == "__main__":
    command(main)
