"""Results of a run: evaluation, the entries of `results.json`, and the adapted model."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from jaxtyping import Float, Int
from ml_collections import ConfigDict

from lattec_jax.data import evaluation_metrics
from lattec_jax.methods.base import EpochMethod, Method
from lattec_jax.models.checkpoint import Checkpoint
from lattec_jax.models.clip import Params
from lattec_jax.models.run_artifacts import ZeroShotHeads
from lattec_jax.reporting.health_metrics import Baseline
from lattec_jax.runtime.files import write_atomic
from lattec_jax.runtime.run_directory import CLASSIFIER, MODEL
from lattec_jax.runtime.version import __version__
from lattec_jax.training.prepare import Inputs
from lattec_jax.training.state import TrainState


def zero_shot_heads(inputs: Inputs, method: Method, state: TrainState) -> ZeroShotHeads:
    """Return the class weights of the method in this state."""
    extractor, prompts = inputs.extractor, inputs.prompts
    adapted = method.class_weights(
        state.method, lambda: jnp.asarray(extractor.encode_classes(state.params, prompts))
    )
    pretrained = None
    if isinstance(method, EpochMethod):
        pretrained = method.pretrained_class_weights(
            state.method, lambda: jnp.asarray(extractor.encode_texts(state.params, prompts.first))
        )
    return ZeroShotHeads(
        np.asarray(adapted), None if pretrained is None else np.asarray(pretrained)
    )


def encode_test_images(inputs: Inputs, params: Params) -> Float[np.ndarray, "T D"]:
    """Return features of the test images, or of the training images if there are no others."""
    return inputs.extractor.encode_images(params, inputs.eval_split.eval_cache.pixels, "evaluation")


def evaluate(
    inputs: Inputs,
    params: Params,
    heads: ZeroShotHeads,
    pretrained_features: Float[np.ndarray, "T D"],
) -> dict[str, Any]:
    """Evaluate a model on the test images, see `evaluate_scores`; `pretrained_features` are
    `encode_test_images` of the pre-trained model."""
    scores = heads.cosines(encode_test_images(inputs, params), pretrained_features)
    return evaluate_scores(scores, inputs.test_labels)


def evaluate_scores(
    scores: Float[np.ndarray, "N C"], labels: Int[np.ndarray, " N"] | None
) -> dict[str, Any]:
    """Return predictions, their distribution over the classes and, given labels, accuracies."""
    predictions, classes = scores.argmax(axis=1), scores.shape[1]
    fractions = evaluation_metrics.class_fractions(predictions, classes)
    per_class = None
    if labels is not None:
        per_class = evaluation_metrics.per_class_accuracy(predictions, labels, classes)
    return {
        "predictions": predictions,
        "accuracy": evaluation_metrics.accuracies(scores, labels),
        "per_class": per_class,
        "class_fractions": fractions,
        "class_entropy": evaluation_metrics.entropy(fractions),
    }


def comparison_table(
    class_names: Sequence[str], before: Mapping, after: Mapping, images: int
) -> str:
    """Return a table of accuracies, or of class fractions without labels, before and after."""
    width = max(len("class"), *map(len, class_names)) + 2
    if before["accuracy"] is None:
        title = f"fraction of {images} images per predicted class (there are no labels)"
        rows = list(
            zip(class_names, before["class_fractions"], after["class_fractions"], strict=True)
        )
    else:
        title = f"accuracy on {images} test images"
        rows = list(zip(class_names, before["per_class"], after["per_class"], strict=True))
        for key in ("top5", "top1"):
            rows.insert(0, (key, before["accuracy"][key], after["accuracy"][key]))
    lines = [title, f"{'':{width}}{'zero-shot':>10}{'adapted':>10}{'change':>9}"]
    for name, first, second in rows:
        if first is None or second is None:
            lines.append(f"{name:{width}}{'no images':>10}")
        else:
            change = 100 * (second - first)
            lines.append(f"{name:{width}}{first:10.1%}{second:10.1%}{change:+z9.1f}")
    return "\n".join(lines)


def test_metrics(inputs: Inputs, found: Mapping[str, Any]) -> dict[str, float]:
    """Return the metrics of an evaluation during training, for the log."""
    metrics = {"class_entropy": found["class_entropy"]}
    if found["accuracy"]:
        metrics |= {f"test_{name}": value for name, value in found["accuracy"].items()}
        for name, value in zip(inputs.dataset.class_names, found["per_class"], strict=True):
            if value is not None:
                metrics[f"test_class/{name}"] = value
    return metrics


def run_settings(config: ConfigDict, inputs: Inputs, method: Method) -> dict[str, Any]:
    """Return the entries of `results.json` that describe the run: method, data, weights, values."""
    weights, texts = inputs.weights, inputs.descriptions
    return {
        "method": method.name,
        "preset": config.preset,
        "dataset": inputs.dataset.name,
        "protocol": inputs.dataset.protocol,
        "model": weights.source.get("model", "unknown"),
        "weights": config.weights,
        "weights_sha256": weights.sha256,
        "weights_source": weights.source,
        "init": config.init or None,
        "init_sha256": inputs.warm_start.sha256 if inputs.warm_start else None,
        "init_prototypes": bool(inputs.warm_start and inputs.warm_start.prototypes is not None),
        "descriptions_sha256": texts.sha256 if texts else None,
        "descriptions_shuffled": config.descriptions.shuffle if texts else None,
        "descriptions": texts.counts if texts else None,
        "descriptions_notes": list(texts.notes) if texts else None,
        "seed": config.seed,
        "alpha": None,
        "momentum": None,
        **method.settings(),
        "wise_ft": config.wise_ft,
        "learning_rate": config.train.learning_rate if method.trains else None,
        "class_names": list(inputs.dataset.class_names),
        "names": [list(names) for names in inputs.dataset.class_synonyms],
        "template": config.templates[0],
        "templates": list(config.templates),
        "dtype": config.compute.dtype,
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "version": __version__,
    }


def input_fingerprints(inputs: Inputs, batch_size: int) -> dict[str, Any]:
    """Return the content of `inputs.json`: a run is resumed only with the same inputs."""
    labels = np.ascontiguousarray(inputs.pseudo_labels.labels)
    return {
        "weights_sha256": inputs.weights.sha256,
        "init_sha256": inputs.warm_start.sha256 if inputs.warm_start else None,
        "class_names": list(inputs.dataset.class_names),
        "n_train": len(inputs.train.ids),
        "n_test": len(inputs.test.ids) if inputs.test else 0,
        "training_images": inputs.train.fingerprint,
        "test_images": inputs.test.fingerprint if inputs.test else None,
        "pseudo_labels_sha256": hashlib.sha256(labels.tobytes()).hexdigest(),
        "descriptions_sha256": inputs.descriptions.sha256 if inputs.descriptions else None,
        "batch_size": batch_size,
    }


def compare_accuracies(inputs: Inputs, before: Mapping, after: Mapping) -> dict[str, Any]:
    """Return the entries of `results.json` with accuracies (None without labels) and their table,
    from `evaluate_scores` of the zero-shot and of the adapted model."""
    names, images = inputs.dataset.class_names, len(inputs.eval_split.ids)
    unreadable = {
        "train": inputs.train.unreadable,
        "test": inputs.test.unreadable if inputs.test else [],
    }
    return {
        "n_train": len(inputs.train.ids),
        "n_test": len(inputs.test.ids) if inputs.test else 0,
        "unreadable": [*unreadable["train"], *unreadable["test"]],
        "n_left_out": {split: len(images) for split, images in unreadable.items()},
        "zero_shot": before["accuracy"],
        "adapted": after["accuracy"],
        "per_class": {"zero_shot": before["per_class"], "adapted": after["per_class"]},
        "table": comparison_table(names, before, after, images),
    }


def predict_training_images(
    inputs: Inputs,
    params: Params,
    heads: ZeroShotHeads,
    pretrained_features: Float[np.ndarray, "N D"] | None,
) -> Int[np.ndarray, " N"]:
    """Return the predicted classes of the training images."""
    pixels = inputs.train.eval_cache.pixels
    features = inputs.extractor.encode_images(params, pixels, "training images")
    return heads.cosines(features, pretrained_features).argmax(axis=1)


def label_free_metrics(
    baseline: Baseline,
    predictions: Int[np.ndarray, " N"],
    class_weights: Float[np.ndarray, "C D"],
) -> dict[str, Any]:
    """Return the entry "label_free" of `results.json`: of the adapted model on the training
    images, compared with the zero-shot model."""
    fractions = evaluation_metrics.class_fractions(predictions, len(class_weights))
    return {
        "label_agreement": float(np.mean(predictions == baseline.labels)),
        "class_fractions": fractions,
        "class_entropy": evaluation_metrics.entropy(fractions),
        "prototype_drift": evaluation_metrics.drift(baseline.class_weights, class_weights),
    }


def save_adapted_model(
    workdir: Path,
    inputs: Inputs,
    method: Method,
    params: Mapping[str, np.ndarray],
    heads: ZeroShotHeads,
) -> None:
    """Write the adapted CLIP, as a checkpoint directory, and its class weights."""
    weights = inputs.weights
    source = {
        **weights.source,
        "adapted_with": method.name,
        "class_names": list(inputs.dataset.class_names),
    }
    params = {name: np.asarray(params[name], np.float32) for name in weights.params}
    Checkpoint(weights.config, params, weights.tokenizer, weights.preprocess, source).save(
        workdir / MODEL
    )
    arrays = {"classifier": heads.adapted, "frozen_class_weights": heads.pretrained}
    arrays = {
        name: np.ascontiguousarray(array, np.float32)
        for name, array in arrays.items()
        if array is not None
    }
    write_atomic(workdir / CLASSIFIER, safetensors.numpy.save(arrays))
