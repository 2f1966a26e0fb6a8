"""EuroSAT: 10 classes of land use in satellite images, 18,900 for training and 8,100 for testing.

    python -m lattec_jax.train --config=configs/eurosat.py --config.weights=weights/ViT-B-32

Files, in CoOp's layout: `$LATTECLIP_DATA_DIR/eurosat/2750/` and
`split_zhou_EuroSAT.json` beside it.
`python -m lattec_jax.check_data --config=configs/eurosat.py` lists what is missing.
TensorFlow Datasets: `--config.dataset.kind=tfds`.
docs/one_gpu.md has the commands before this one (weights, descriptions).

Expect: 1,800 steps of 512 images (585 with preset=released_code). Accuracy not yet
measured here (the paper: 80.27 against 42.95 zero-shot); time not yet measured on these images
(noise of their size, bfloat16, one H200: 3 minutes 22 seconds with a compilation of 21 s that no
longer occurs).
"""

from ml_collections import ConfigDict

from configs import common, public


def get_config(options: str = "") -> ConfigDict:
    """Return the settings of a preset and a method."""
    config = common.get_config(options)
    public.describe_dataset(
        config,
        "eurosat",
        counts=(10, 18_900, 8_100),
        anchor="eurosat",
        root="eurosat",
        images="2750",
        split="split_zhou_EuroSAT.json",
        tfds=("eurosat/rgb", "{label}/{filename}"),
    )
    config.dataset.tfds.train, config.dataset.tfds.test = "train[:70%]", "train[70%:]"
    config.image_cache.max_side = 0  # the images are 64 x 64
    public.set_prompts(
        config,
        domain="land use",
        domains="land use",
        image="Describe the land use in the satellite image concisely, less than 20 words.",
        group="Describe the common visual attributes of the land use in all the satellite images "
        "concisely, less than 20 words.",
    )
    public.set_released_schedule(config, epochs=15, warmup_steps=40)
    return config
