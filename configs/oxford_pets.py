"""Oxford-IIIT Pets: 37 breeds of cats and dogs, 3,680 for training and 3,669 for testing.

    python -m lattec_jax.train --config=configs/oxford_pets.py --config.weights=weights/ViT-B-32

Files, in CoOp's layout: `$LATTECLIP_DATA_DIR/oxford_pets/images/` and
`split_zhou_OxfordPets.json` beside it.
`python -m lattec_jax.check_data --config=configs/oxford_pets.py` lists what is missing.
TensorFlow Datasets: `--config.dataset.kind=tfds`; it compresses 12 images again, so results name
it as their protocol and have no number of the paper beside them.
docs/one_gpu.md has the commands before this one (weights, descriptions).

Expect: 350 steps of 512 images (900 with preset=released_code). Accuracy not yet measured
here (the paper: 89.21 against 87.30 zero-shot); time not yet measured.
"""

from ml_collections import ConfigDict

from configs import common, public


def get_config(options: str = "") -> ConfigDict:
    """Return the settings of a preset and a method."""
    config = common.get_config(options)
    public.describe_dataset(
        config,
        "oxford_pets",
        counts=(37, 3_680, 3_669),
        anchor="oxfordpets",
        root="oxford_pets",
        images="images",
        split="split_zhou_OxfordPets.json",
        tfds=("oxford_iiit_pet", "{file_name}"),
    )
    public.set_usual_prompts(config, domain="pet", domains="pets")
    public.set_released_schedule(config, epochs=100, warmup_steps=10)
    return config
