"""Caltech101: 100 classes of objects, 5,777 for training and 2,465 for testing.

    python -m lattec_jax.train --config=configs/caltech101.py --config.weights=weights/ViT-B-32

Files, in CoOp's layout: `$LATTECLIP_DATA_DIR/caltech-101/101_ObjectCategories/` and
`split_zhou_Caltech101.json` beside it.
`python -m lattec_jax.check_data --config=configs/caltech101.py` lists what is missing.
TensorFlow Datasets: `--config.dataset.kind=tfds`.
docs/one_gpu.md has the commands before this one (weights, descriptions).

Expect: 550 steps of 512 images (600 with preset=released_code). Accuracy not yet measured
here (the paper: 94.77 against 94.73 zero-shot); time not yet measured.
"""

from ml_collections import ConfigDict

from configs import common, public


def get_config(options: str = "") -> ConfigDict:
    """Return the settings of a preset and a method."""
    config = common.get_config(options)
    public.describe_dataset(
        config,
        "caltech101",
        counts=(100, 5_777, 2_465),
        anchor="caltech101",
        root="caltech-101",
        images="101_ObjectCategories",
        split="split_zhou_Caltech101.json",
        tfds=("caltech101", "{label}/{image/file_name}"),
    )
    public.set_usual_prompts(config, domain="object", domains="objects")
    public.set_released_schedule(config, epochs=50, warmup_steps=10)
    if config.preset == "released_code":
        common.set_train(config, weight_decay=1e-7)
    return config
