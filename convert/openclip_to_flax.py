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

import argparse
from collections.abc import Sequence
from pathlib import Path

from convert import hub, names, sources
from convert.sources import Source
from lattec_jax.config import command
from lattec_jax.errors import ConfigError
from lattec_jax.models.checkpoint import Checkpoint, refuse_other_directory


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
    arguments = _parser().parse_args(argv[1:])
    refuse_other_directory(arguments.out)
    checkpoint = convert(_read_source(arguments))
    checkpoint.save(arguments.out)
    parameters = sum(array.size for array in checkpoint.params.values())
    print(f"wrote {arguments.out}: {parameters:,} parameters, sha256 {checkpoint.sha256}")
    if "converted_to_float32_from" in checkpoint.source:
        types = checkpoint.source["converted_to_float32_from"].items()
        print("converted to float32: " + ", ".join(f"{n} tensors of {t}" for t, n in types))


def _read_source(arguments: argparse.Namespace) -> Source:
    """The weights that the flags name."""
    values = {
        key: getattr(arguments, key) for key in ("mean", "std", "interpolation", "resize_mode")
    }
    preprocess = {key: value for key, value in values.items() if value is not None}
    if preprocess and len(preprocess) < len(values):
        raise ConfigError(
            "--mean, --std, --interpolation and --resize-mode go together; missing: "
            + ", ".join(sorted(set(values) - set(preprocess)))
        )
    if hub.is_hub_name(arguments.pretrained):
        if preprocess or arguments.preprocess_of or arguments.model:
            raise ConfigError(
                f"{arguments.pretrained} brings its own architecture and preprocessing; leave out "
                "--model, --preprocess-of, --mean, --std, --interpolation and --resize-mode"
            )
        return sources.from_hub(arguments.pretrained)
    if sources.is_file_name(arguments.pretrained):
        return sources.from_file(
            Path(arguments.pretrained), arguments.model, arguments.preprocess_of, preprocess
        )
    if preprocess or arguments.preprocess_of:
        raise ConfigError(
            "a tag brings its own preprocessing; --preprocess-of, --mean, --std, --interpolation "
            f"and --resize-mode are for files, and {arguments.pretrained!r} is not one"
        )
    if arguments.model is None:
        raise ConfigError(
            f"--pretrained={arguments.pretrained} is a tag and needs --model=NAME, for example "
            "--model=ViT-B-32"
        )
    return sources.from_tag(arguments.model, arguments.pretrained)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m convert.openclip_to_flax",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--model", help="open_clip's name of the architecture, such as ViT-B-32")
    parser.add_argument(
        "--pretrained",
        required=True,
        help="open_clip's tag, a .safetensors or .pt file, or hf:organisation/name",
    )
    parser.add_argument("--out", required=True, type=Path, help="the directory to write")
    files = parser.add_argument_group(
        "preprocessing of a file that has no open_clip_config.json beside it"
    )
    files.add_argument("--preprocess-of", metavar="TAG", help="as this open_clip tag of --model")
    files.add_argument("--mean", type=_triple, metavar="R,G,B")
    files.add_argument("--std", type=_triple, metavar="R,G,B")
    files.add_argument("--interpolation", choices=["bicubic", "bilinear"])
    files.add_argument("--resize-mode", choices=["shortest", "longest", "squash"])
    return parser


def _triple(text: str) -> tuple[float, ...]:
    values = tuple(float(value) for value in text.split(","))
    if len(values) != 3:
        raise argparse.ArgumentTypeError(f"expected three numbers R,G,B, found {text!r}")
    return values


if __name__ == "__main__":
    command(main)
