"""What the configurations of the paper's ten public data sets share."""

from ml_collections import ConfigDict

from configs.common import set_train


def describe_dataset(
    config: ConfigDict,
    name: str,
    *,
    counts: tuple[int, int, int],
    anchor: str,
    root: str,
    images: str,
    split: str = "",
    name_spaces: str = "_",
    tfds: tuple[str, str] = ("", ""),
) -> None:
    """Describe a data set in CoOp's layout below $LATTECLIP_DATA_DIR.

    Args:
        config: changed in place.
        name: the data set's name here.
        counts: classes, training images (CoOp's train and val) and test images.
        anchor: its section in CoOp's DATASETS.md.
        root: its folder below the data directory.
        images: the folder of images below root.
        split: the split file below root; "": the data set has none (FGVC Aircraft).
        name_spaces: characters that stand for spaces in its class names.
        tfds: builder of TensorFlow Datasets and the pattern of its file names.
    """
    config.dataset.update(
        {
            "kind": "coop" if split else "fgvc",
            "name": name,
            "root": root,
            "images": images,
            "split": split,
            "name_spaces": name_spaces,
            "source": f"https://github.com/KaiyangZhou/CoOp/blob/main/DATASETS.md#{anchor}",
        }
    )
    config.dataset.expected.update(dict(zip(("classes", "train", "test"), counts, strict=True)))
    config.dataset.tfds.builder, config.dataset.tfds.file_name = tfds


def set_prompts(config: ConfigDict, domain: str, domains: str, image: str, group: str) -> None:
    """Set the prompts for image and group descriptions, as the preset has them.

    Args:
        config: changed in place.
        domain: what the paper's prompt for an image asks about, such as "flower".
        domains: the same for a group, such as "flowers".
        image: the released code's prompt; {class} stands for the image's pseudo-label.
        group: the released code's prompt for a group.
    """
    prompts = config.descriptions.prompts
    prompts.image, prompts.group = image, group
    if config.preset != "released_code":
        prompts.image = f"Describe the {domain} in the photo concisely, using less than 20 words."
        prompts.group = (
            f"Describe the common visual attributes of the {domains} in all the photos "
            "concisely, in fewer than 20 words."
        )


def set_usual_prompts(config: ConfigDict, domain: str, domains: str, image: str = "") -> None:
    """Set the prompts in the wording that nearly all data sets of the released code share.

    Args:
        config: changed in place.
        domain, domains: see `set_prompts`.
        image: what the released code's prompt for an image asks about; "": `domain`.
    """
    set_prompts(
        config,
        domain,
        domains,
        image=f"Describe the {image or domain} in the photo concisely, less than 20 words.",
        group=f"Describe the common visual attributes of the {domains} in all the photos "
        "concisely, less than 20 words.",
    )


def set_released_schedule(
    config: ConfigDict,
    epochs: int,
    warmup_steps: int,
    template: str = "a photo of a {}.",
    workers: int = 3,
) -> None:
    """Set the length and the template of a released script.

    Its warm-up serves both presets: the paper gives none.

    Args:
        config: changed in place.
        epochs: number of epochs of the script.
        warmup_steps: number of warm-up steps of the script.
        template: template of the class descriptions.
        workers: processes of the script's data loader; an epoch is a multiple of as many batches.
    """
    set_train(config, warmup_steps=warmup_steps)
    if config.preset == "released_code":
        set_train(config, epochs=epochs, epoch_batch_multiple=workers)
        config.templates = (template,)
