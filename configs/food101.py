"""Food-101: 101 classes of dishes, 70,700 for training and 30,300 for testing.

    python -m lattec_jax.train --config=configs/food101.py --config.weights=weights/ViT-B-32

Files, in CoOp's layout: `$LATTECLIP_DATA_DIR/food-101/images/` and
`split_zhou_Food101.json` beside it.
`python -m lattec_jax.check_data --config=configs/food101.py` lists what is missing.
TensorFlow Datasets: `--config.dataset.kind=tfds`, with the builder's own splits, for it gives no
file names.
docs/one_gpu.md has the commands before this one (weights, descriptions).

Expect: 2,000 steps of 512 images (2,115 with preset=released_code). Accuracy not yet
measured here (the paper: 79.63 against 78.65 zero-shot); time not yet measured.
"""

from ml_collections import ConfigDict

from configs import common, public


def get_config(options: str = "") -> ConfigDict:
    """Return the settings of a preset and a method."""
    config = common.get_config(options)
    public.describe_dataset(
        config,
        "food101",
        counts=(101, 70_700, 30_300),
        anchor="food101",
        root="food-101",
        images="images",
        split="split_zhou_Food101.json",
        tfds=("food101", ""),
    )
    config.dataset.tfds.test = "validation"  # the builder's name of the test images
    public.set_usual_prompts(config, domain="food", domains="foods", image="{class} food")
    public.set_released_schedule(
        config, epochs=15, warmup_steps=140, template="a photo of a {}, a type of food."
    )
    if config.preset == "paper":
        common.set_train(config, learning_rate=1e-6)
    return config
