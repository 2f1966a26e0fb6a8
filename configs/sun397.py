"""SUN397: 397 classes of scenes, 19,850 for training and 19,850 for testing.

    python -m lattec_jax.train --config=configs/sun397.py --config.weights=weights/ViT-B-32

Files, in CoOp's layout: `$LATTECLIP_DATA_DIR/sun397/SUN397/` and
`split_zhou_SUN397.json` beside it.
`python -m lattec_jax.check_data --config=configs/sun397.py` lists what is missing.
TensorFlow Datasets: `--config.dataset.kind=tfds`; it has the images at 120,000 pixels at most,
compressed again, so results name it as their protocol and have no number of the paper beside them.
docs/one_gpu.md has the commands before this one (weights, descriptions).

Expect: 1,900 steps of 512 images (585 with preset=released_code). Accuracy not yet
measured here (the paper: 70.68 against 68.20 zero-shot); time not yet measured.
"""

from ml_collections import ConfigDict

from configs import common, public


def get_config(options: str = "") -> ConfigDict:
    """Return the settings of a preset and a method."""
    config = common.get_config(options)
    public.describe_dataset(
        config,
        "sun397",
        counts=(397, 19_850, 19_850),
        anchor="sun397",
        root="sun397",
        images="SUN397",
        split="split_zhou_SUN397.json",
        tfds=("sun397/tfds", "{file_name}"),
    )
    config.dataset.tfds.train = "train+validation"
    public.set_usual_prompts(config, domain="scene", domains="scenes")
    public.set_released_schedule(config, epochs=15, warmup_steps=40)
    if config.preset == "paper":
        common.set_train(config, learning_rate=1e-6)
    return config
