"""Open a builder of TensorFlow Datasets without TensorFlow, and read its examples."""

from __future__ import annotations

import os
from typing import Any

from ml_collections import ConfigDict

from lattec_jax.runtime.errors import ConfigError, DataError


def import_tfds() -> Any:
    """Import TensorFlow Datasets. Raise DataError if it or the reader of its files is missing."""
    try:
        import array_record  # noqa: F401  tensorflow_datasets imports it late
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise DataError(
            'config.dataset.kind="tfds": expected TensorFlow Datasets and array_record, but '
            f"{error.name or error} is not installed; pip install -e '.[tfds]'"
        ) from error
    return tfds


def open_builder(settings: ConfigDict) -> Any:
    """Return the builder of `config.dataset.tfds`, whose data is prepared as array_record.

    Raise ConfigError if there is none with image and label, DataError if it is not prepared.
    """
    if not settings.builder:
        raise ConfigError(
            "config.dataset.tfds.builder is empty: TensorFlow Datasets has no builder with the "
            "images of this set; use its files (--config.dataset.kind=coop, or fgvc for FGVC "
            "Aircraft), or name a builder of yours"
        )
    tfds = import_tfds()
    folder = os.path.expanduser(settings.data_dir) or None
    try:
        builder = tfds.builder(settings.builder, data_dir=folder)
    except (ValueError, AssertionError) as error:  # an unknown set, configuration or version
        first_line = (str(error).splitlines() or [""])[0]
        raise ConfigError(
            f"config.dataset.tfds.builder={settings.builder}: TensorFlow Datasets knows no such "
            f"builder, and none is prepared in {folder or '~/tensorflow_datasets'}: "
            f"{first_line[:300]}"
        ) from error
    formats = {file_format.value for file_format in builder.info.available_file_formats()}
    if not builder.info.splits or "array_record" not in formats:
        found = f"as {', '.join(sorted(formats))} only" if builder.info.splits else "nothing"
        where = f", data_dir={folder!r}" if folder else ""
        raise DataError(
            f"expected {settings.builder} prepared as array_record in {builder.data_path}, found "
            f"{found}. Prepare it"
            f"{' in another data_dir' if builder.info.splits else ''} with\n"
            f'  python -c "import tensorflow_datasets as tfds; tfds.builder({settings.builder!r}'
            f"{where}, file_format='array_record').download_and_prepare()\"\n"
            "Preparing, unlike reading, needs tensorflow for most builders"
        )
    for key in ("image", "label"):
        if key not in builder.info.features:
            raise ConfigError(
                f"config.dataset.tfds.builder={settings.builder}: expected the features image and "
                f"label, found {', '.join(builder.info.features)}"
            )
    return builder


def label_names(builder: Any) -> list[str]:
    """Return the builder's class names, in the order of its labels."""
    return builder.info.features["label"].names


def open_split(builder: Any, split: str) -> Any:
    """Return the examples of a split, a sequence, with images as encoded bytes."""
    tfds = import_tfds()
    skip = {
        key: tfds.decode.SkipDecoding()
        for key, feature in builder.info.features.items()
        if isinstance(feature, tfds.features.Image)
    }
    return builder.as_data_source(split=split, decoders=skip)


def encoded_image(example: dict[str, Any], builder: Any) -> bytes:
    """Return the bytes of the image file of an example; refuse a builder that stores no files."""
    image = example["image"]
    if not isinstance(image, bytes):
        raise DataError(
            f"{builder.info.full_name}: expected encoded images, found {type(image).__name__}; "
            "only builders whose image feature stores encoded files can be read"
        )
    return image
