"""Oxford Flowers 102: 102 classes of flowers, 5,726 for training and 2,463 for testing.

    python -m lattec_jax.train --config=configs/flowers102.py --config.weights=weights/ViT-B-32

Files, in CoOp's layout: `$LATTECLIP_DATA_DIR/oxford_flowers/jpg/` and
`split_zhou_OxfordFlowers.json` beside it.
`python -m lattec_jax.check_data --config=configs/flowers102.py` lists what is missing.
TensorFlow Datasets: `--config.dataset.kind=tfds`.
docs/one_gpu.md has the commands before this one (weights, descriptions).

Expect: 550 steps of 512 images (600 with preset=released_code). Accuracy not yet measured
here (the paper: 71.94 against 71.30 zero-shot); time not yet measured.
"""

from ml_collections import ConfigDict

from configs import common, public


def get_config(options: str = "") -> ConfigDict:
    """Return the settings of a preset and a method."""
    config = common.get_config(options)
    public.describe_dataset(
        config,
        "flowers102",
        counts=(102, 5_726, 2_463),
        anchor="flowers102",
        root="oxford_flowers",
        images="jpg",
        split="split_zhou_OxfordFlowers.json",
        tfds=("oxford_flowers102", "{file_name}"),
    )
    config.dataset.tfds.train = "train+validation"
    public.set_usual_prompts(config, domain="flower", domains="flowers", image="{class} flower")
    public.set_released_schedule(
        config,
        epochs=50,
        warmup_steps=12,
        template="a photo of a {}, a type of flower.",
        workers=4,
    )
    return config
