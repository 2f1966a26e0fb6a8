"""The values that a preset or a method chooses, by dotted keys.

`--config=FILE:preset=NAME,method=NAME` names one of each. `configs/common.py` explains
the keys and contains all other values; a data set's file may change both.
"""

from typing import Any

Values = dict[str, Any]

# "paper" follows arXiv 2410.08211; "released_code" follows the authors' repository where it departs
# from the paper. Both have the same keys.
PRESETS: dict[str, Values] = {
    "paper": {
        "descriptions.group_members": "with_image",
        "method.momentum": 0.99,
        "method.prototype_update": "sequential",
        "method.mixer_prototypes": "current",
        "method.group_text": "own",
        "method.loss_reduction": "sum",
        "method.flyp.pseudo_labels": "current",
        "train.max_steps": 2000,
        "train.epoch_batch_multiple": 0,
        "augment.color_jitter": (0.0, 0.0, 0.0, 0.0),
        "augment.color_jitter_probability": 0.0,
        "augment.grayscale_probability": 0.0,
    },
    "released_code": {
        "descriptions.group_members": "drawn",
        "method.momentum": 0.0,
        "method.prototype_update": "joint",
        "method.mixer_prototypes": "epoch_start",
        "method.group_text": "redrawn",
        "method.loss_reduction": "mean",
        "method.flyp.pseudo_labels": "zero_shot",
        "train.max_steps": 1_000_000,  # the released scripts bound epochs only
        "train.epoch_batch_multiple": 3,
        "augment.color_jitter": (0.5, 0.5, 0.5, 0.1),
        "augment.color_jitter_probability": 0.8,
        "augment.grayscale_probability": 0.2,
    },
}

# What a method sets under every preset and for every data set. A method without an entry, such as
# a file of your own in lattec_jax/methods, trains with the values of the preset.
METHODS: dict[str, Values] = {
    "reclip": {  # the repository of ReCLIP
        "train.batch_size": 64,
        "train.max_steps": 1_000_000,  # epochs decide
        "train.epochs": 100,
        "train.epoch_batch_multiple": 0,
        "train.learning_rate": 1e-3,
        "train.warmup_steps": 0,
        "train.schedule": "constant",
        "train.optimizer": "sgd",
        "train.weight_decay": 1e-4,
    },
}
