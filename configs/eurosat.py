"""EuroSAT: 10 classes of land use in satellite images, 18,900 for training and 8,100 for testing.

    python -m lattec_jax.train --config=configs/eurosat.py --config.weights=weights/ViT-B-32

The README, "A real run", has the commands before this one (weights, descriptions). The images lie
in CoOp's layout: `$LATTECLIP_DATA_DIR/eurosat/2750/` and `split_zhou_EuroSAT.json` beside it.

Expect: 1,800 steps of 512 images. Accuracy not yet measured here (the paper: 80.27 against 42.95
zero-shot); time not yet measured.
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    """EuroSAT with the paper's settings, or the released code's (--config.preset=released_code)."""
    config = common.get_config()
    config.dataset.kind = "coop"
    config.dataset.name = "eurosat"
    config.dataset.root = "eurosat"
    config.dataset.images = "2750"
    config.dataset.split = "split_zhou_EuroSAT.json"
    config.store.long_side = 0  # the pictures are 64 x 64

    common.set_prompts(
        config,
        domain="land use",
        domains="land use",
        image="Describe the land use in the satellite image concisely, less than 20 words.",
        group="Describe the common visual attributes of the land use in all the satellite images "
        "concisely, less than 20 words.",
    )
    config.presets.released_code.train.epochs = 15
    return config
