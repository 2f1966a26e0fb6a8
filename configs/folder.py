"""Your own images: a folder of images and a list of class names. No labels are needed.

    python -m lattec_jax.train --config=configs/folder.py --config.dataset.name=birds \
        --config.dataset.root=images --config.dataset.class_names=images/classes.txt \
        --config.weights=weights/ViT-B-32

`images` holds `train/` and, if there is one, `test/` (JPEG, PNG, WebP, BMP, GIF, TIFF, in any
sub-folders); without `test/`, 20% of the images are held out. Sub-folders that bear class names
are labels, which are used to measure and never to train. docs/own_images.md says more.

Expect: not yet measured on a set of yours. The paper's length is min(2000 steps, 50 epochs): 4,000
training images and a batch of 512 make 7 steps an epoch and 350 in all.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(options: str = "") -> ConfigDict:
    """Return the settings for a folder of images, of a preset and a method."""
    config = common.get_config(options)
    config.dataset.kind = "folder"
    prompts = config.descriptions.prompts
    prompts.image = "Describe the object in the photo concisely, using less than 20 words."
    prompts.group = (
        "Describe the common visual attributes of the objects in all the photos concisely, "
        "in fewer than 20 words."
    )
    return config
