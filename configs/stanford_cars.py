"""Stanford Cars: 196 models of cars, 8,144 for training and 8,041 for testing.

    python -m lattec_jax.train --config=configs/stanford_cars.py --config.weights=weights/ViT-B-32

Files, in CoOp's layout: `$LATTECLIP_DATA_DIR/stanford_cars/cars_train/`, `cars_test/` and
`split_zhou_StanfordCars.json` beside them.
`python -m lattec_jax.check_data --config=configs/stanford_cars.py` lists what is missing.
TensorFlow Datasets: `--config.dataset.kind=tfds`; an example's id within `train` or `test` is its
file's name in `cars_train/` or `cars_test/`.
docs/one_gpu.md has the commands before this one (weights, descriptions).

Expect: 750 steps of 512 images (900 with preset=released_code). Accuracy not yet measured
here (the paper: 87.40 against 88.25 zero-shot); time not yet measured.
"""

from ml_collections import ConfigDict

from configs import common, public


def get_config(options: str = "") -> ConfigDict:
    """Return the settings of a preset and a method."""
    config = common.get_config(options)
    public.describe_dataset(
        config,
        "stanford_cars",
        counts=(196, 8_144, 8_041),
        anchor="stanfordcars",
        root="stanford_cars",
        images="",
        split="split_zhou_StanfordCars.json",
        name_spaces="_.",
        tfds=("cars196", "cars_{split}/{id}.jpg"),
    )
    public.set_usual_prompts(config, domain="car", domains="cars")
    public.set_released_schedule(config, epochs=50, warmup_steps=20)
    return config
