"""Adapt a CLIP to images: `lattec_jax.adapt`, and the command `python -m lattec_jax adapt`.

The function does what the commands `pseudo_label`, `describe` and `train` do with a configuration
that it makes itself (`choices`); any of them continues the run, given the same configuration.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ml_collections import ConfigDict

from lattec_jax.adaptation.describing import (
    DescribeImages,
    Describer,
    describe,
    make_describer,
    served_model,
)
from lattec_jax.adaptation.images import (
    Images,
    check_test_folder,
    class_names_file,
    no_folder,
    parts_in_use,
    read_class_names,
    read_images,
)
from lattec_jax.runtime import progress as progress_bars
from lattec_jax.runtime import run_directory
from lattec_jax.runtime.config import default_workdir, flatten, from_json, parse
from lattec_jax.runtime.config_file import PACKAGED_CONFIGS
from lattec_jax.runtime.config_schema import allowed
from lattec_jax.runtime.errors import ConfigError, DataError, short_repr
from lattec_jax.runtime.preemption import terminating
from lattec_jax.runtime.text import print_escaped

if TYPE_CHECKING:
    from lattec_jax.inference.classifier import Classifier

WEIGHTS = "ViT-B-32:laion2b_s34b_b79k"  # the paper's
MAX_UNREADABLE = 0.1  # of the images; a few broken photos of a small folder are no reason to stop
# Keys that are chosen once for a run (`choices`, `_model`).
_RECORDED = (
    "train.batch_size", "train.warmup_steps", "method.alpha", "method.momentum",
    "descriptions.openai.model",
)  # fmt: skip


def adapt(
    images: Images,
    classes: str | os.PathLike[str] | Iterable[str],
    *,
    weights: str | os.PathLike[str] = WEIGHTS,
    descriptions: str | DescribeImages | None = None,
    domain: str = "",
    test: str | os.PathLike[str] | None = None,
    method: str = "latteclip",
    preset: str = "paper",
    seed: int = 0,
    workdir: str | os.PathLike[str] | None = None,
    settings: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> Classifier:
    """Adapt a CLIP to unlabeled images of known classes, and return it as a classifier.

    The same call continues an interrupted run, or returns the finished one. Ctrl-C (in a notebook:
    interrupt) saves the current step.

    Args:
        images: a folder (with sub-folders, JPEG, PNG, WebP, BMP, GIF and TIFF), a pattern such as
            "photos/*.jpg", or several paths, PIL images or arrays (`[H, W, 3]` or `[H, W]`, uint8).
            Images in memory are saved as PNG below `artifacts/`, named by their content. Of a
            folder with a sub-folder `train`, only that is used; `test` is the folder of test
            images.
        classes: the class names, in the order of the labels; "car | automobile" has two names. Or
            a text file with one line for each class.
        weights: as `config.weights`: a tag of OpenCLIP, a file, a directory or hf:REPOSITORY.
        descriptions: None: the model learns from the class names alone. "pixels" (drawings of
            single symbols), "llava" (needs a GPU and the extra `captioning`), "openai", or the
            address of a server with the OpenAI API. Or a function that gets a list of RGB PIL
            images and returns as many texts; a group of images comes as one collage. Answers are
            stored under the function's name and its attribute `identity` (a string): set or change
            that when the function's answers would change.
        domain: what the images show, such as "bird", for the prompts of the language model.
        test: a folder of test images in sub-folders named like the classes; the table then shows
            accuracies. Training never uses them.
        method: latteclip, flyp, reclip or zero_shot.
        preset: "paper" or "released_code".
        seed: of training.
        workdir: of the run; default: runs/<name>-<method>-s<seed>.
        settings: further values of the configuration (docs/configuration.md) by dotted keys, such
            as {"train.max_steps": 200}. They have priority over all chosen values.
        progress: print what was chosen and the results, and show progress bars. Warnings are
            shown on the standard error in any case.

    Raises:
        UserError: invalid input; its subclasses are in `lattec_jax.runtime.errors`.
    """
    given = _as_mapping(settings)
    describer = make_describer(descriptions, domain)
    with progress_bars.hidden(not progress), terminating(), _os_errors():
        arguments = _arguments(images, classes, describer, given, {
            "preset": preset, "method": method, "weights": weights, "test": test, "seed": seed,
        })  # fmt: skip
        directory = Path(workdir).expanduser() if workdir else default_workdir(_parse(arguments))
        recorded = _recorded(directory, given, test is not None)
        arguments += _overrides(recorded)
        arguments += _model(_parse(arguments), describer)
        try:
            _train(arguments, directory, describer, given, recorded, progress)
        finally:
            run_directory.release(directory)
        from lattec_jax.inference.classifier import Classifier

        return Classifier.load(directory)


def _as_mapping(settings: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the caller's settings with those that are arguments of `adapt` refused."""
    if settings is not None and not isinstance(settings, Mapping):
        raise ConfigError(
            "settings: expected values by dotted keys, such as {'train.max_steps': 200}, found "
            f"{type(settings).__name__}"
        )
    given = {str(key).removeprefix("config."): value for key, value in (settings or {}).items()}
    for key, argument in (("preset", "preset"), ("method.name", "method")):
        if key in given:
            raise ConfigError(
                f"settings: config.{key} chooses other values too; pass it as {argument}=... "
                f"(--{argument}=...)"
            )
    return given


def _arguments(
    images: Images,
    classes: str | os.PathLike[str] | Iterable[str],
    describer: Describer,
    given: Mapping[str, Any],
    options: Mapping[str, Any],
) -> list[str]:
    """Return the `--config...` arguments of the run, those of the caller last."""
    _check_types(options)
    artifacts = Path(str(given.get("artifacts") or "artifacts"))
    names = read_class_names(classes)
    test = None
    if options["test"] is not None:
        test = Path(os.path.abspath(Path(options["test"]).expanduser()))
        if not test.is_dir():
            raise no_folder("test", Path(options["test"]).expanduser())
        if "dataset.labels" not in given:
            check_test_folder(test, names)
    source = read_images(images, artifacts, test)
    for warning in source.warnings:
        print_escaped(f"warning: {warning}", sys.stderr)
    folder = artifacts / str(given.get("dataset.name") or source.settings["name"])
    values = {f"dataset.{key}": value for key, value in source.settings.items()}
    values |= {
        "dataset.class_names": class_names_file(names, folder),
        "dataset.held_out_fraction": 0.0,
        "image_cache.max_unreadable_fraction": MAX_UNREADABLE,
        "seed": options["seed"],
        "weights": options["weights"],
        **describer.settings,
    }
    if test is not None:
        values["dataset.test"] = test
    file = f"{PACKAGED_CONFIGS / 'common.py'}:preset={options['preset']},method={options['method']}"
    return [f"--config={file}", *_overrides(values), *_overrides(given)]


def _check_types(options: Mapping[str, Any]) -> None:
    path: tuple[type, ...] = (str, os.PathLike)
    kinds = {"seed": (int,), "weights": path, "test": (*path, type(None))}
    for name, value in options.items():
        expected = kinds.get(name, (str,))
        if not isinstance(value, expected):
            raise ConfigError(
                f"{name}: expected {' or '.join(kind.__name__ for kind in expected)}, found "
                f"{short_repr(value)}"
            )


def _overrides(values: Mapping[str, Any]) -> list[str]:
    """Return values of the configuration as arguments. None is left out: where a value may be None,
    that is the default."""
    shown = []
    for key, value in values.items():
        expected = allowed(key)
        if value is None and expected is not None and not expected.accepts(None):
            raise ConfigError(f"config.{key}: expected {expected.description}, found None")
        if value is not None:
            value = tuple(value) if isinstance(value, list) else value
            shown.append(f"--config.{key}={value}")
    return shown


def _parse(arguments: list[str]) -> ConfigDict:
    return parse(["adapt", *arguments])[0]


def _recorded(directory: Path, given: Mapping[str, Any], has_test: bool) -> dict[str, Any]:
    """Return what a run in this work directory has chosen, without what the caller sets: another
    host, or another number of readable images, does not change a run. Raise ConfigError if the run
    has a folder of test images and the caller names none."""
    path = directory / run_directory.CONFIG
    if not path.exists():
        return {}
    recorded = dict(flatten(from_json(path)))
    before = recorded.get("dataset.test")
    if not has_test and "dataset.test" not in given and before and os.path.isabs(before):
        raise ConfigError(
            f"the run in {directory} has the test images of {before}; repeat --test={before} "
            "(test=...) to continue it, or choose another --workdir"
        )
    keys = [key for key in _RECORDED if key not in given]
    return {key: recorded[key] for key in keys if recorded.get(key) not in (None, "")}


def _model(config: ConfigDict, describer: Describer) -> list[str]:
    """Return the model of the server as an argument, if none is known and one is needed."""
    from lattec_jax.methods import make_method

    settings = config.descriptions.openai
    if describer.engine != "openai" or settings.model:
        return []
    if not make_method(config.method).description_kinds:
        return []
    model = served_model(settings.base_url, settings.key_variable)
    print_escaped(f"descriptions by {model} at {settings.base_url}")
    return [f"--config.descriptions.openai.model={model}"]


@contextlib.contextmanager
def _os_errors() -> Iterator[None]:
    """Raise DataError where a file cannot be read or written."""
    try:
        yield
    except OSError as error:
        if error.errno is None or isinstance(error, (ConnectionError, TimeoutError)):
            raise
        where = f" {error.filename}" if error.filename else ""
        raise DataError(
            f"cannot read or write{where}: {error.strerror}. Fix this; the same call continues"
        ) from error


def _train(
    arguments: list[str],
    directory: Path,
    describer: Describer,
    given: Mapping[str, Any],
    recorded: Mapping[str, Any],
    progress: bool,
) -> None:
    import shlex

    from lattec_jax import train, train_loop
    from lattec_jax.adaptation.choices import choose
    from lattec_jax.data import datasets
    from lattec_jax.methods import make_method
    from lattec_jax.runtime import compilation_cache, distributed
    from lattec_jax.training.prepare import load_weights, open_images

    config = _parse(arguments)
    # Before descriptions are made, which may take hours.
    run_directory.check_available(directory, config)
    distributed.initialize(False)
    compilation_cache.enable()
    for line in parts_in_use(config):
        print_escaped(line)
    dataset, method = datasets.read(config), make_method(config.method)
    if len(dataset.train.ids) < 2:
        raise DataError("images: expected at least two images to learn from, found one")
    if not (directory / run_directory.RESULTS).exists():
        describe(config, describer, arguments, progress)
    weights = load_weights(config)
    readable = open_images(config, dataset, "train", weights, method.trains and method.augments)
    if len(readable.ids) < len(dataset.class_names):
        print(
            f"warning: {len(readable.ids)} images for {len(dataset.class_names)} classes are too "
            "few to learn from; use several images of each class",
            file=sys.stderr,
        )
    choices = choose(config, given, len(readable.ids), weights, recorded)
    count = f"{len(readable.ids):,}"
    if len(readable.ids) < len(dataset.train.ids):
        count += f" of {len(dataset.train.ids):,}"
    head = [
        f"{count} images from {config.dataset.root}; work directory {directory}",
        f"weights: {config.weights}",
    ]
    print_escaped("\n".join([*head, *choices.lines]))
    arguments = [*arguments, *_overrides(choices.settings)]
    train_loop.train(_parse(arguments), directory, shlex.join(arguments), train.describe)
