"""FGVC Aircraft: 100 variants of aircraft, 6,667 for training and 3,333 for testing.

    python -m lattec_jax.train --config=configs/fgvc_aircraft.py --config.weights=weights/ViT-B-32

Files: `data/` of the archive, renamed: `$LATTECLIP_DATA_DIR/fgvc_aircraft/images/`, and beside it
`variants.txt` and `images_variant_train.txt`, `..._val.txt` and `..._test.txt`.
`python -m lattec_jax.check_data --config=configs/fgvc_aircraft.py` lists what is missing.
docs/one_gpu.md has the commands before this one (weights, descriptions).

Expect: 650 steps of 512 images (750 with preset=released_code). Accuracy not yet measured
here (the paper: 22.02 against 23.79 zero-shot); time not yet measured.
"""

from ml_collections import ConfigDict

from configs import common, public


def get_config(options: str = "") -> ConfigDict:
    """Return the settings of a preset and a method."""
    config = common.get_config(options)
    public.describe_dataset(
        config,
        "fgvc_aircraft",
        counts=(100, 6_667, 3_333),
        anchor="fgvcaircraft",
        root="fgvc_aircraft",
        images="images",
    )
    public.set_usual_prompts(config, domain="aircraft", domains="aircrafts")
    public.set_released_schedule(
        config, epochs=50, warmup_steps=15, template="a photo of a {}, a type of aircraft."
    )
    return config
