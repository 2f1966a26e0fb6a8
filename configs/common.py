"""What all configurations share. `configs/folder.py` is the file to copy for a set of your own.

Any value can be set on the command line, for example --config.train.batch_size=256. A value that is
None here is decided by the method, where `config.method_presets` has one, and then by the preset
(`config.preset`): "paper" follows arXiv 2410.08211, "released_code" follows the authors' repository
where it departs from the paper.
"""

from ml_collections import ConfigDict, config_dict

placeholder = config_dict.placeholder


def get_config() -> ConfigDict:
    """The shared defaults: the paper's settings (Sec. 4.1 and appendix B)."""
    config = ConfigDict()
    config.preset = "paper"  # or "released_code"
    config.seed = 0  # of training: batch order, crops and what a method draws
    config.artifacts = (
        "artifacts"  # image caches, pseudo-labels and descriptions go below this folder
    )
    # A directory written by python -m convert.openclip_to_flax, a .safetensors or .pt file, a tag
    # (ViT-B-32:laion2b_s34b_b79k) or a repository of the hub (hf:laion/...):
    # lattec_jax/runtime/weights.py.
    config.weights = ""
    # Where training starts; "": at config.weights, which stays the frozen reference in any case.
    # The work directory of a finished run, RUN/checkpoints/STEP, or any form of config.weights:
    # lattec_jax/training/warm_start.py.
    config.init = ""
    # {} stands for the class name. Several templates make an ensemble for all that is computed
    # once: pseudo-labels, initial prototypes, the zero-shot and FLYP's final classifier. A training
    # step encodes the first template only: an ensemble of 80 would cost 80 times as much.
    config.templates = placeholder(tuple)

    config.dataset = ConfigDict()
    config.dataset.kind = "folder"  # "folder", "coop", "fgvc", "tfds" or "digits"
    config.dataset.name = ""  # names the folders of its artifacts and runs
    config.dataset.root = ""  # folder of the files; public sets: below $LATTECLIP_DATA_DIR
    config.dataset.train = "train"  # folder below root or .txt list of paths; "": root itself
    config.dataset.test = "test"  # the same; "": a share of the training images is held out
    config.dataset.held_out_fraction = 0.2  # that share; 0: no test images
    # Share of the training images that is used (Figure 6); a smaller one lies inside a larger one.
    config.dataset.train_fraction = 1.0
    config.dataset.split_seed = 0  # draws what is held out and the share
    config.dataset.class_names = (
        ""  # text file, "name | another name" a line; "": names of sub-folders
    )
    config.dataset.labels = "auto"  # "auto", "none", "folders" or a CSV with header image,label
    config.dataset.images = ""  # only "coop" and "fgvc": folder of images below root
    config.dataset.split = ""  # only "coop" and "tfds": split file below root
    config.dataset.name_spaces = "_"  # characters of public sets' class names that become spaces
    config.dataset.source = ""  # where the public files are described
    # Counts that `python -m lattec_jax.check_data` compares with; 0: not known.
    config.dataset.expected = ConfigDict({"classes": 0, "train": 0, "test": 0})
    config.dataset.tfds = ConfigDict()  # only "tfds": TensorFlow Datasets
    config.dataset.tfds.builder = ""  # such as eurosat/rgb
    # How its examples spell the paths of the split file, {key} being a feature and {split} the
    # builder's split; "": they do not, and the builder's own splits are used.
    config.dataset.tfds.file_name = ""
    config.dataset.tfds.data_dir = ""  # "": ~/tensorflow_datasets
    config.dataset.tfds.train = "train"  # of the builder's own splits, also train[:80%] or a+b
    config.dataset.tfds.test = "test"  # the same, of the test images

    config.image_cache = ConfigDict()
    # Bound on the long side of training images in pixels; 0: none; None: 1.5 times the model's
    # input, so that images up to 3:2 keep at least the model's resolution in both directions.
    config.image_cache.max_side = placeholder(int)
    config.image_cache.max_unreadable_fraction = (
        0.01  # share of unreadable images above which a run stops
    )
    config.image_cache.placement = (
        "auto"  # training image cache: "device", "host" (streamed) or "auto"
    )

    config.descriptions = ConfigDict()
    config.descriptions.engine = "llava"  # "llava", "openai", "pixels", or "released" (imported)
    config.descriptions.prompts = ConfigDict()  # one for each kind of description
    config.descriptions.prompts.image = ""
    config.descriptions.prompts.group = ""
    config.descriptions.group_size = 4  # images in a collage
    # "with_image": the image and others with its pseudo-label. "drawn": all are drawn from the
    # images with this label, so that the image itself may be missing. Not with correct_per_group.
    config.descriptions.group_members = placeholder(str)
    # Analysis with true labels (Table 4): how many images of a group are correct, that is, have the
    # group's class as their true label. None: groups by pseudo-label, the method.
    config.descriptions.correct_per_group = placeholder(int)
    # The class of an image's group in that analysis: the image's pseudo-label ("pseudo") or its own
    # true label ("true"). The paper does not say which.
    config.descriptions.correct_label = "pseudo"
    config.descriptions.max_new_tokens = 77  # of a description
    config.descriptions.seed = 0  # draws the members of the groups
    config.descriptions.max_missing_fraction = (
        0.05  # share of images without one above which a run stops
    )
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
    config.method.name = "latteclip"  # latteclip, flyp, flyp_oracle, reclip, zero_shot
    config.method.alpha = 0.99  # Eq. (2)
    config.method.momentum = placeholder(float)  # μ of the prototype update
    config.method.texts = ("class", "image", "group")  # Table 2
    config.method.labels = ("zero_shot", "current")  # L_zs and L_ft; Table 3
    config.method.mixer = True  # False: all weights 1; Table 3
    # "sequential": label by label; "joint": one mean over both
    config.method.prototype_update = placeholder(str)
    config.method.mixer_prototypes = placeholder(
        str
    )  # prototypes "current" or of the "epoch_start"
    config.method.group_text = placeholder(str)  # "own" or "redrawn" among the same zero-shot label
    config.method.loss_reduction = placeholder(
        str
    )  # "sum" or "mean" of the two directions of InfoNCE
    config.method.flyp = ConfigDict()
    # Pseudo-labels of flyp: those that the "current" model assigns at every step, or the fixed
    # "zero_shot" ones of the frozen model.
    config.method.flyp.pseudo_labels = placeholder(str)
    config.method.reclip = ConfigDict()
    config.method.reclip.neighbors = 20  # in the graph that labels are propagated over
    config.method.reclip.diffusion = 0.99  # what a node takes from its neighbors, below 1
    config.method.reclip.iterations = 20  # of the conjugate gradients
    config.method.reclip.tolerance = 1e-6  # at which they stop, relative
    config.method.reclip.cut_dim = 768  # singular directions of the classes that are kept
    # At most images // images_per_epoch + 2 epochs; 0: config.train.epochs decides.
    config.method.reclip.images_per_epoch = 5000

    config.train = ConfigDict()  # what is None is set by the method or the preset
    config.train.batch_size = placeholder(int)  # images in a step, over all devices
    config.train.microbatch_size = (
        0  # images encoded at a time, a divisor of the batch; 0: all of it
    )
    config.train.max_steps = placeholder(int)  # training ends here, or earlier after the epochs
    config.train.epochs = placeholder(int)  # passes over the training images
    # 0: an epoch drops its incomplete last batch (the paper names no rule). n: an epoch has enough
    # batches for all images, rounded up to a multiple of n and filled with repeated images; the
    # released code takes the number of its data loader's workers.
    config.train.epoch_batch_multiple = placeholder(int)
    config.train.learning_rate = placeholder(float)  # after the warm-up, the largest
    config.train.warmup_steps = placeholder(int)  # linear, from 0 to the learning rate
    config.train.schedule = placeholder(str)  # after the warm-up: "cosine" to zero or "constant"
    config.train.optimizer = placeholder(str)  # "adamw" or "sgd"
    config.train.weight_decay = placeholder(
        float
    )  # adamw: of matrices; sgd: of all that is trained
    config.train.momentum = 0.9  # of sgd
    config.train.beta1 = 0.9  # of adamw
    config.train.beta2 = 0.98  # of adamw
    config.train.epsilon = 1e-6  # of adamw

    # WiSE-FT, for any method: the adapted parameters' share in their average with those that
    # training started from, taken once after the last step; its paper: 0.5; None: the adapted
    # model as it is.
    config.wise_ft = placeholder(float)

    config.augment = ConfigDict()
    config.augment.scale = (0.9, 1.0)  # share of the image's area that a crop covers
    config.augment.ratio = (3 / 4, 4 / 3)  # width over height of the crop
    config.augment.flip_probability = 0.0  # left to right; neither the paper nor its code flips
    config.augment.color_jitter = placeholder(tuple)  # brightness, contrast, saturation, hue
    config.augment.color_jitter_probability = placeholder(float)  # of an image
    config.augment.grayscale_probability = placeholder(float)  # of an image

    config.compute = ConfigDict()
    config.compute.dtype = "float32"  # or "bfloat16"; parameters and losses stay float32
    config.compute.remat = False  # recompute the blocks in the backward pass
    config.compute.fsdp = 1  # devices over which parameters are split; the others split the batch
    config.compute.eval_batch_size = 256  # images or texts encoded at once outside of training

    config.log_every = 10  # steps
    config.eval_every = 0  # steps; 0: only at the end
    config.checkpoint_every = 500  # steps; a signal to stop brings one at once
    config.max_checkpoints = 2  # the newest
    # Directory for a JAX trace of the third to the seventh step: lattec_jax/runtime/profiling.py;
    # "": none.
    config.profile = ""

    paper, released = ConfigDict(), ConfigDict()
    paper.templates = released.templates = ("a photo of a {}.",)
    paper.method = ConfigDict(
        {
            "momentum": 0.99,
            "prototype_update": "sequential",
            "mixer_prototypes": "current",
            "group_text": "own",
            "loss_reduction": "sum",
            "flyp": {"pseudo_labels": "current"},
        }
    )
    released.method = ConfigDict(
        {
            "momentum": 0.0,
            "prototype_update": "joint",
            "mixer_prototypes": "epoch_start",
            "group_text": "redrawn",
            "loss_reduction": "mean",
            "flyp": {"pseudo_labels": "zero_shot"},
        }
    )
    paper.descriptions = ConfigDict({"group_members": "with_image"})
    released.descriptions = ConfigDict({"group_members": "drawn"})
    # The paper gives no warm-up; both presets take the released scripts'.
    paper.train = ConfigDict(
        {
            "batch_size": 512,
            "max_steps": 2000,
            "epochs": 50,
            "epoch_batch_multiple": 0,
            "learning_rate": 1e-7,
            "warmup_steps": 40,
            "schedule": "cosine",
            "optimizer": "adamw",
            "weight_decay": 0.2,
        }
    )
    released.train = ConfigDict(
        {
            "batch_size": 512,
            "max_steps": 1_000_000,  # the released scripts bound epochs only
            "epochs": 50,
            "epoch_batch_multiple": 3,
            "learning_rate": 1e-7,
            "warmup_steps": 40,
            "schedule": "cosine",
            "optimizer": "adamw",
            "weight_decay": 0.2,
        }
    )
    paper.augment = ConfigDict(
        {
            "color_jitter": (0.0, 0.0, 0.0, 0.0),
            "color_jitter_probability": 0.0,
            "grayscale_probability": 0.0,
        }
    )
    released.augment = ConfigDict(
        {
            "color_jitter": (0.5, 0.5, 0.5, 0.1),
            "color_jitter_probability": 0.8,
            "grayscale_probability": 0.2,
        }
    )
    config.presets = ConfigDict({"paper": paper, "released_code": released})
    # The repository of ReCLIP; whatever is not named here is as the preset has it.
    config.method_presets = ConfigDict()
    config.method_presets.reclip = ConfigDict(
        {
            "train": {
                "batch_size": 64,
                "max_steps": 1_000_000,  # epochs decide
                "epochs": 100,
                "epoch_batch_multiple": 0,
                "learning_rate": 1e-3,
                "warmup_steps": 0,
                "schedule": "constant",
                "optimizer": "sgd",
                "weight_decay": 1e-4,
            }
        }
    )
    return config


def set_prompts(config: ConfigDict, domain: str, domains: str, image: str, group: str) -> None:
    """Let the preset decide the prompts for image and group descriptions.

    Args:
        config: changed in place.
        domain: what the paper's prompt for an image asks about, such as "flower".
        domains: the same for a group, such as "flowers".
        image: the released code's prompt; {class} stands for the image's pseudo-label.
        group: the released code's prompt for a group.
    """
    paper = {
        "image": f"Describe the {domain} in the photo concisely, using less than 20 words.",
        "group": f"Describe the common visual attributes of the {domains} in all the photos "
        "concisely, in fewer than 20 words.",
    }
    for preset, prompts in (("paper", paper), ("released_code", {"image": image, "group": group})):
        config.presets[preset].descriptions.prompts = ConfigDict(prompts)
    for kind in paper:
        del config.descriptions.prompts[kind]
        config.descriptions.prompts[kind] = placeholder(str)


def public_set(
    config: ConfigDict,
    name: str,
    *,
    counts: tuple[int, int, int],
    anchor: str,
    root: str,
    images: str,
    split: str = "",
    name_spaces: str = "_",
    tfds: tuple[str, str] = ("", ""),
) -> None:
    """Describe one of the paper's ten data sets, in CoOp's layout below $LATTECLIP_DATA_DIR.

    Args:
        config: changed in place.
        name: of the data set here.
        counts: classes, training images (CoOp's train and val) and test images.
        anchor: of its section in CoOp's DATASETS.md.
        root: its folder below the data directory.
        images: the folder of images below root.
        split: the split file below root; "": the set has none (FGVC Aircraft).
        name_spaces: characters that are spaces in its class names.
        tfds: builder of TensorFlow Datasets and the spelling of its file names.
    """
    config.dataset.update(
        {
            "kind": "coop" if split else "fgvc",
            "name": name,
            "root": root,
            "images": images,
            "split": split,
            "name_spaces": name_spaces,
            "source": f"https://github.com/KaiyangZhou/CoOp/blob/main/DATASETS.md#{anchor}",
        }
    )
    config.dataset.expected.update(dict(zip(("classes", "train", "test"), counts, strict=True)))
    config.dataset.tfds.builder, config.dataset.tfds.file_name = tfds


def public_prompts(config: ConfigDict, domain: str, domains: str, image: str = "") -> None:
    """Let the preset decide the prompts, in the words that nearly all sets of the release share.

    Args:
        config: changed in place.
        domain: as in `set_prompts`, as `domains`.
        image: what the released code's prompt asks about, where it is not `domain`.
    """
    set_prompts(
        config,
        domain,
        domains,
        image=f"Describe the {image or domain} in the photo concisely, less than 20 words.",
        group=f"Describe the common visual attributes of the {domains} in all the photos "
        "concisely, less than 20 words.",
    )


def released_schedule(
    config: ConfigDict,
    epochs: int,
    warmup_steps: int,
    template: str = "a photo of a {}.",
    workers: int = 3,
) -> None:
    """The released scripts' length and template; their warm-up serves both presets.

    Args:
        config: changed in place.
        epochs: of the script.
        warmup_steps: of the script.
        template: of the class-descriptions.
        workers: of the script's data loader; an epoch has a multiple of so many batches.
    """
    released = config.presets.released_code
    released.train.epochs = epochs
    released.train.epoch_batch_multiple = workers
    released.templates = (template,)
    for preset in config.presets.values():
        preset.train.warmup_steps = warmup_steps
