"""UCF101: 101 actions, the middle frames of videos, 9,537 for training and 3,783 for testing.

    python -m lattec_jax.train --config=configs/ucf101.py --config.weights=weights/ViT-B-32

Files, in CoOp's layout: `$LATTECLIP_DATA_DIR/ucf101/UCF-101-midframes/` and
`split_zhou_UCF101.json` beside it.
`python -m lattec_jax.check_data --config=configs/ucf101.py` lists what is missing.
docs/one_gpu.md has the commands before this one (weights, descriptions).

Expect: 900 steps of 512 images (1,050 with preset=released_code). Accuracy not yet
measured here (the paper: 70.08 against 64.37 zero-shot); time not yet measured.
"""

from ml_collections import ConfigDict

from configs import common, public


def get_config(options: str = "") -> ConfigDict:
    """Return the settings of a preset and a method."""
    config = common.get_config(options)
    public.describe_dataset(
        config,
        "ucf101",
        counts=(101, 9_537, 3_783),
        anchor="ucf101",
        root="ucf101",
        images="UCF-101-midframes",
        split="split_zhou_UCF101.json",
        name_spaces="_.",
    )
    public.set_usual_prompts(config, domain="action of the person", domains="person's actions")
    public.set_released_schedule(
        config, epochs=50, warmup_steps=20, template="a photo of a person doing {}"
    )
    return config
