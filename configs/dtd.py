"""DTD, Describable Textures: 47 classes of textures, 3,948 for training and 1,692 for testing.

    python -m lattec_jax.train --config=configs/dtd.py --config.weights=weights/ViT-B-32

Files, in CoOp's layout: `$LATTECLIP_DATA_DIR/dtd/images/` and
`split_zhou_DescribableTextures.json` beside it.
`python -m lattec_jax.check_data --config=configs/dtd.py` lists what is missing.
TensorFlow Datasets: `--config.dataset.kind=tfds`.
docs/one_gpu.md has the commands before this one (weights, descriptions).

Expect: 350 steps of 512 images (900 with preset=released_code). Accuracy not yet measured
here (the paper: 56.26 against 55.32 zero-shot); time not yet measured.
"""

from ml_collections import ConfigDict

from configs import common, public


def get_config(options: str = "") -> ConfigDict:
    """Return the settings of a preset and a method."""
    config = common.get_config(options)
    public.describe_dataset(
        config,
        "dtd",
        counts=(47, 3_948, 1_692),
        anchor="dtd",
        root="dtd",
        images="images",
        split="split_zhou_DescribableTextures.json",
        tfds=("dtd", "{file_name}"),
    )
    config.dataset.tfds.train = "train+validation"
    public.set_usual_prompts(config, domain="texture", domains="textures")
    public.set_released_schedule(config, epochs=100, warmup_steps=10, template="{} texture.")
    return config
