"""The values that all configurations share. Copy `configs/folder.py` for images of your own.

    python -m lattec_jax.train --config=configs/eurosat.py:preset=released_code,method=reclip

`preset` and `method` choose values in `configs/presets.py`. A data set's file changes what it
needs, and `--config.key=value`, such as --config.train.batch_size=256, overrides both.

`get_config` is one long function on purpose: a page to read from top to bottom, where every key
stands once, beside its value and its meaning. `--print_config` and docs/configuration.md quote it.
"""

from ml_collections import ConfigDict, config_dict

from lattec_jax.runtime.config_file import Choice, parse_options

from .presets import METHODS, PRESETS  # relative: a project may have a `configs` of its own


def get_config(options: str = "") -> ConfigDict:
    """Return a configuration with every value set: the paper's (Sec. 4.1, appendix B) by default.

    Args:
        options: "preset=NAME,method=NAME", each optional.
    """
    chosen = parse_options(options, PRESETS)
    preset = PRESETS[chosen["preset"]]
    config = ConfigDict()
    config.preset = Choice("preset", chosen["preset"])  # "paper" or "released_code"
    config.seed = 0  # of training: batch order, crops and what a method draws
    config.artifacts = "artifacts"  # folder of image caches, pseudo-labels and descriptions
    # A directory written by python -m convert.openclip_to_flax, a .safetensors or .pt file, a tag
    # (ViT-B-32:laion2b_s34b_b79k) or a repository of the hub (hf:laion/...).
    config.weights = ""
    # Checkpoint to initialize training from: a finished run's work directory, RUN/checkpoints/STEP,
    # or any form of config.weights; "": config.weights, which is always the frozen reference.
    config.init = ""
    # {} stands for the class name. Several templates form an ensemble for what is computed once:
    # pseudo-labels, initial prototypes, the zero-shot and FLYP's final classifier. A training step
    # encodes the first template only: an ensemble of 80 would cost 80 times as much.
    config.templates = ("a photo of a {}.",)

    config.dataset = ConfigDict()
    config.dataset.kind = "folder"  # "folder", "coop", "fgvc", "tfds" or "digits"
    config.dataset.name = ""  # names the folders of its artifacts and runs
    config.dataset.root = ""  # folder of the files; public sets: below $LATTECLIP_DATA_DIR
    config.dataset.train = "train"  # folder below root or .txt list of paths; "": root itself
    config.dataset.test = "test"  # the same; "": a fraction of the training images is held out
    config.dataset.held_out_fraction = 0.2  # that fraction; 0: no test images
    # Fraction of the training images that is used (Figure 6); a larger one contains a smaller one.
    config.dataset.train_fraction = 1.0
    config.dataset.split_seed = 0  # draws the held-out images and the fraction
    config.dataset.class_names = ""  # text file, "name | another name" per line; "": folder names
    config.dataset.labels = "auto"  # "auto", "none", "folders" or a CSV with header image,label
    config.dataset.images = ""  # only "coop" and "fgvc": folder of images below root
    config.dataset.split = ""  # only "coop" and "tfds": split file below root
    config.dataset.name_spaces = "_"  # characters of public sets' class names that become spaces
    config.dataset.source = ""  # where the public files are described
    # Counts that `python -m lattec_jax.check_data` compares with; 0: not known.
    config.dataset.expected = ConfigDict({"classes": 0, "train": 0, "test": 0})
    config.dataset.tfds = ConfigDict()  # only "tfds": TensorFlow Datasets
    config.dataset.tfds.builder = ""  # such as eurosat/rgb
    # Pattern of its examples' paths in the split file, {key} being a feature and {split} the
    # builder's split; "": the builder's own splits are used.
    config.dataset.tfds.file_name = ""
    config.dataset.tfds.data_dir = ""  # "": ~/tensorflow_datasets
    config.dataset.tfds.train = "train"  # the builder's own split, also train[:80%] or a+b
    config.dataset.tfds.test = "test"  # the same, of the test images

    config.image_cache = ConfigDict()
    # Maximum long side of training images in pixels; 0: no bound; None: 1.5 times the model's
    # input, so that images up to 3:2 keep at least the model's resolution in both directions.
    config.image_cache.max_side = config_dict.placeholder(int)
    config.image_cache.max_unreadable_fraction = 0.01  # a run with more unreadable images stops
    # Where training images are read from: "device" (all are in its memory), "host" (from disk for
    # each batch), or "auto": "device" if they fit into 40% of the memory of a device.
    config.image_cache.placement = "auto"

    config.descriptions = ConfigDict()
    config.descriptions.engine = "llava"  # "llava", "openai", "pixels", or "released" (imported)
    config.descriptions.prompts = ConfigDict()  # one for each kind of description
    config.descriptions.prompts.image = ""
    config.descriptions.prompts.group = ""
    config.descriptions.group_size = 4  # images in a collage
    # "with_image": the image and other images with its pseudo-label. "drawn": all are drawn from
    # the images with this label, perhaps without the image itself. Not with correct_per_group.
    config.descriptions.group_members = preset["descriptions.group_members"]
    # Analysis with true labels (Table 4): number of images of a group that have the group's class
    # as their true label. None: groups by pseudo-label, the method.
    config.descriptions.correct_per_group = config_dict.placeholder(int)
    # The class of an image's group in that analysis: the image's pseudo-label ("pseudo") or its own
    # true label ("true"). The paper does not state which.
    config.descriptions.correct_label = "pseudo"
    config.descriptions.max_new_tokens = 77  # of a description
    config.descriptions.seed = 0  # draws the members of the groups
    config.descriptions.max_missing_fraction = 0.05  # a run with more images without one stops
    config.descriptions.shuffle = False  # control experiment: descriptions of other images
    config.descriptions.llava = ConfigDict()
    # A LLaVA-NeXT checkpoint of the hub, or a directory.
    config.descriptions.llava.model = "llava-hf/llava-v1.6-mistral-7b-hf"
    config.descriptions.llava.revision = ""  # commit, tag or branch of the hub's repository
    config.descriptions.llava.precision = "nf4"  # or "int8", "bfloat16", "float32"
    config.descriptions.llava.device = "auto"  # "cuda", "cpu"; "auto": never a 7B on the CPU
    config.descriptions.llava.batch_size = 0  # 0: from the free memory
    config.descriptions.openai = ConfigDict()
    config.descriptions.openai.base_url = "http://localhost:8000/v1"  # of the server's API
    config.descriptions.openai.model = ""  # as the server names it
    config.descriptions.openai.concurrency = 32  # requests at once
    config.descriptions.openai.timeout = 120.0  # seconds for one answer, to its last byte
    config.descriptions.openai.retries = 6  # after time-outs, lost connections, 429 and 5xx
    config.descriptions.openai.key_variable = "OPENAI_API_KEY"  # environment variable of the key
    config.descriptions.openai.allow_redirects = False  # to another scheme, host or port

    config.method = ConfigDict()
    # latteclip, flyp, flyp_oracle, reclip, zero_shot or one of your own
    config.method.name = Choice("method", chosen["method"])
    config.method.alpha = 0.99  # weight of the prototype in the mixed text, Eq. (2)
    config.method.momentum = preset["method.momentum"]  # μ of the prototype update
    config.method.texts = ("class", "image", "group")  # Table 2
    config.method.labels = ("zero_shot", "current")  # L_zs and L_ft; Table 3
    config.method.mixer = True  # Dynamic Feature Mixer; False: all weights 1; Table 3
    # "sequential": label by label; "joint": one mean over both
    config.method.prototype_update = preset["method.prototype_update"]
    # prototypes that the mixer compares with: "current" or those of the "epoch_start"
    config.method.mixer_prototypes = preset["method.mixer_prototypes"]
    # "own": of the image; "redrawn": of an image with the same zero-shot label
    config.method.group_text = preset["method.group_text"]
    # "sum" or "mean" of the two directions of InfoNCE
    config.method.loss_reduction = preset["method.loss_reduction"]
    config.method.flyp = ConfigDict()
    # Pseudo-labels of flyp: those that the "current" model assigns at every step, or the fixed
    # "zero_shot" ones of the frozen model.
    config.method.flyp.pseudo_labels = preset["method.flyp.pseudo_labels"]
    config.method.reclip = ConfigDict()
    config.method.reclip.neighbors = 20  # in the graph that labels are propagated over
    config.method.reclip.diffusion = 0.99  # what a node takes from its neighbors, below 1
    config.method.reclip.iterations = 20  # of the conjugate gradients
    config.method.reclip.tolerance = 1e-6  # at which they stop, relative
    config.method.reclip.cut_dim = 768  # singular directions of the classes that are kept
    # At most images // images_per_epoch + 2 epochs; 0: config.train.epochs decides.
    config.method.reclip.images_per_epoch = 5000

    config.train = ConfigDict()
    config.train.batch_size = 512  # images in a step, over all devices
    # Images encoded at once, a divisor of the batch; 0: all; "auto": as many as fit into memory.
    config.train.microbatch_size = config_dict.FieldReference("auto", field_type=object)
    config.train.max_steps = preset["train.max_steps"]  # at most; `epochs` may end a run earlier
    config.train.epochs = 50  # passes over the training images
    # 0: an epoch drops its incomplete last batch (the paper names no rule). n: an epoch has enough
    # batches for all images, rounded up to a multiple of n and filled with repeated images; the
    # released code takes the number of its data loader's workers.
    config.train.epoch_batch_multiple = preset["train.epoch_batch_multiple"]
    config.train.learning_rate = 1e-7  # the peak, after the warm-up
    config.train.warmup_steps = 40  # linear; as in the released code
    config.train.schedule = "cosine"  # after the warm-up: "cosine" to zero or "constant"
    config.train.optimizer = "adamw"  # "adamw" or "sgd"
    config.train.weight_decay = 0.2  # adamw: of matrices; sgd: of all trained parameters
    config.train.momentum = 0.9  # of sgd
    config.train.beta1 = 0.9  # of adamw
    config.train.beta2 = 0.98  # of adamw
    config.train.epsilon = 1e-6  # of adamw

    # WiSE-FT, for any method: weight of the adapted parameters in their average with the initial
    # ones, taken once after the last step; its paper: 0.5; None: no average.
    config.wise_ft = config_dict.placeholder(float)

    config.augment = ConfigDict()
    config.augment.scale = (0.9, 1.0)  # fraction of the image's area that a crop covers
    config.augment.ratio = (3 / 4, 4 / 3)  # width over height of the crop
    config.augment.flip_probability = 0.0  # left to right; neither the paper nor its code flips
    # Strengths of brightness, contrast, saturation and hue.
    config.augment.color_jitter = preset["augment.color_jitter"]
    # Probability of an image to be jittered.
    config.augment.color_jitter_probability = preset["augment.color_jitter_probability"]
    # Probability of an image to be turned gray.
    config.augment.grayscale_probability = preset["augment.grayscale_probability"]

    config.compute = ConfigDict()
    config.compute.dtype = "float32"  # or "bfloat16"; parameters and losses stay float32
    config.compute.remat = False  # recompute the blocks in the backward pass
    config.compute.fsdp = 1  # devices that parameters are split over; the others split the batch
    config.compute.eval_batch_size = 256  # images or texts encoded at once outside of training

    config.log_every = 10  # steps
    config.eval_every = 0  # steps; 0: only at the end
    config.checkpoint_every = 500  # steps; a signal to stop saves one at once
    config.max_checkpoints = 2  # number of newest checkpoints to keep
    # Experiment trackers that get the metrics of the log: "tensorboard", "wandb"; () is none.
    config.trackers = ("tensorboard",)
    config.profile = ""  # directory for a JAX trace of steps 3 to 7; "": none

    config.update_from_flattened_dict(METHODS.get(chosen["method"], {}))
    return config


def set_train(config: ConfigDict, **values: float) -> None:
    """Set values of config.train, except those that the method sets (`METHODS`)."""
    own = METHODS.get(config.method.name, {})
    config.train.update({key: value for key, value in values.items() if f"train.{key}" not in own})
