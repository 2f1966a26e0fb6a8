"""The input of every program of `benchmarks.train_step`: a model, images, texts and batches.

Nothing is downloaded. Weights are open_clip's initial ones for a fixed seed; images are random
color fields; a text is a start token, random words and an end token, and its length follows a
log-normal distribution (median 20.5, deviation 0.4 of the logarithm: mean 22 tokens), clipped to 7
and the context length. Class descriptions have 7 to 10 tokens. Needs no JAX, as the PyTorch
programs use it too.
"""

from __future__ import annotations

import dataclasses
import json
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from convert.open_clip_package import built_in_model_cfg
from lattec_jax.data.text.bucketing import bucket_length, text_lengths
from lattec_jax.models.config import CLIPConfig
from lattec_jax.training.batches import Batches, HostBatch

KINDS = ("image", "group")  # of generated text
ALPHA, MOMENTUM = 0.99, 0.99
LEARNING_RATE, BETA1, BETA2, EPSILON, DECAY = 1e-7, 0.9, 0.98, 1e-6, 0.2
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
SIDE = 256  # pixels of the stored images; crops have 0.9 to 1 of the area


@dataclasses.dataclass(frozen=True)
class Workload:
    """Arrays for C classes, N images, K kinds of text and context length L.

    Attributes:
        model_cfg: open_clip's configuration of the model.
        batch: images per step.
        weights: open_clip's state dict.
        pixels: `[N, SIDE, SIDE, 3]` uint8.
        class_tokens: `[C, L]`.
        description_tokens: `[N · K, L]`; entry n · K + k is the k-th text of image n.
        zero_shot: `[N]` labels of the frozen model.
    """

    model_cfg: dict[str, Any]
    batch: int
    weights: dict[str, np.ndarray]
    pixels: np.ndarray
    class_tokens: np.ndarray
    description_tokens: np.ndarray
    zero_shot: np.ndarray

    @property
    def config(self) -> CLIPConfig:
        """Return the architecture."""
        return CLIPConfig.from_open_clip(self.model_cfg)

    @cached_property
    def batches(self) -> Batches:
        """Return the batches of a run of one epoch."""
        text, count = self.config.text, len(self.pixels)
        return Batches(
            num_images=count,
            batch_size=self.batch,
            seed=0,
            steps=count // self.batch,
            lengths=text_lengths(self.description_tokens, text).reshape(count, len(KINDS)),
            context_length=text.context_length,
        )

    def cropped_classes(self) -> np.ndarray:
        """Return the class descriptions, truncated to the smallest bucket length for all."""
        text = self.config.text
        longest = int(text_lengths(self.class_tokens, text).max())
        return self.class_tokens[:, : bucket_length(longest, text.context_length)]

    def save(self, folder: Path) -> None:
        """Write the workload for the processes that run the programs."""
        settings = {"model_cfg": self.model_cfg, "batch": self.batch}
        (folder / "workload.json").write_text(json.dumps(settings), encoding="utf-8")
        np.savez(folder / "weights.npz", **self.weights)
        np.savez(folder / "data.npz", **{name: getattr(self, name) for name in _ARRAYS})

    @classmethod
    def load(cls, folder: Path) -> Workload:
        """Read what `save` wrote."""
        settings = json.loads((folder / "workload.json").read_text(encoding="utf-8"))
        with np.load(folder / "weights.npz", allow_pickle=False) as file:
            weights = dict(file)
        with np.load(folder / "data.npz", allow_pickle=False) as file:
            return cls(**settings, weights=weights, **{name: file[name] for name in _ARRAYS})


_ARRAYS = ("pixels", "class_tokens", "description_tokens", "zero_shot")


def shortened(name: str, layers: int) -> dict[str, Any]:
    """Return open_clip's configuration of a model, with `layers` in each tower unless that is 0."""
    found = built_in_model_cfg(name)
    if layers:
        for tower in ("vision_cfg", "text_cfg"):
            found[tower]["layers"] = layers
    return found


def make(
    model_cfg: dict[str, Any], batch: int, classes: int, steps: int, seed: int = 0
) -> Workload:
    """Create a workload of `steps` batches; imports torch and open_clip for the weights."""
    config = CLIPConfig.from_open_clip(model_cfg)
    count = batch * steps
    random = np.random.default_rng(seed)
    tokens = _texts(random, _lengths(random, count * len(KINDS), config), config)
    fields = random.integers(0, 256, (count, SIDE // 32, SIDE // 32, 3), np.uint8)
    return Workload(
        model_cfg=model_cfg,
        batch=batch,
        weights=_initial_weights(model_cfg, seed),
        pixels=fields.repeat(32, axis=1).repeat(32, axis=2),
        class_tokens=_texts(random, random.integers(7, 11, classes), config),
        description_tokens=tokens,
        zero_shot=random.integers(0, classes, count).astype(np.int32),
    )


def _lengths(random: np.random.Generator, count: int, config: CLIPConfig) -> np.ndarray:
    drawn = np.round(random.lognormal(np.log(20.5), 0.4, count)).astype(int)
    return drawn.clip(7, config.text.context_length)


def _texts(random: np.random.Generator, lengths: np.ndarray, config: CLIPConfig) -> np.ndarray:
    """Return `[M, L]` tokens with these lengths, including start and end tokens."""
    context, end = config.text.context_length, config.text.vocab_size - 1
    words = random.integers(1, end - 1, (len(lengths), context))
    words[:, 0] = end - 1
    position = np.arange(context)
    return np.where(
        position == lengths[:, None] - 1, end, np.where(position < lengths[:, None], words, 0)
    ).astype(np.int32)


def _initial_weights(model_cfg: dict[str, Any], seed: int) -> dict[str, np.ndarray]:
    import torch

    from tests.torch_fix import define_missing_torchvision_operators

    define_missing_torchvision_operators()
    from open_clip.model import CLIP

    torch.manual_seed(seed)
    return {name: tensor.numpy() for name, tensor in CLIP(**model_cfg).state_dict().items()}


@dataclasses.dataclass(frozen=True)
class Cost:
    """Floating-point operations of one step by formula; a multiply-add counts as two."""

    forward: float
    training: float  # forward, and twice that backward, without the gradient of the pixels
    recomputed: float  # in the backward pass, with gradient checkpointing


def cost(
    config: CLIPConfig, images: int, text_lengths: np.ndarray, *, full_last_block: bool = False
) -> Cost:
    """Count the matrix products of both towers and of the two losses.

    A causal tower needs half of the products between tokens. The last block needs only the pooled
    token, and the keys and values of all tokens. Norms, activations, softmax, cropping and the
    optimizer are not counted, as usual.

    Args:
        config: the architecture, whose towers pool one token.
        images: B.
        text_lengths: in tokens, of each text that is encoded.
        full_last_block: count all tokens there, for a program that pools after it.
    """
    vision, text, dimension = config.vision, config.text, config.embed_dim
    tokens = vision.grid[0] * vision.grid[1] + 1
    patches = 2 * images * (tokens - 1) * 3 * vision.patch_size**2 * vision.width
    lengths = np.asarray(text_lengths, float)
    pairs = lengths * (lengths + 1) / 2 if text.causal else lengths**2
    blocks = _blocks(vision, images, images * tokens, images * tokens**2, full_last_block)
    blocks += _blocks(text, len(lengths), lengths.sum(), pairs.sum(), full_last_block)
    heads = 2 * dimension * (images * vision.width + len(lengths) * text.width)
    losses = 2 * 2 * images**2 * dimension
    forward = patches + blocks + heads + losses
    return Cost(forward, 3 * forward - patches, blocks)


def _blocks(
    tower: Any, sequences: float, tokens: float, pairs: float, full_last_block: bool
) -> float:
    """Count the operations of a tower's blocks; `pairs`: token pairs that attend to each other."""
    square = 2 * tower.width**2
    per_token = (4 + 2 * tower.mlp_ratio) * square
    block = tokens * per_token + 4 * pairs * tower.width
    last = tokens * 2 * square + sequences * (per_token - 2 * square) + 4 * tokens * tower.width
    return (tower.layers - 1) * block + (block if full_last_block else last)


def needed_lengths(work: Workload, batch: HostBatch) -> np.ndarray:
    """Return the text lengths that the method needs for a batch, without padding.

    These are each description once, and the descriptions of the classes that the frozen model
    predicts.
    """
    named = np.unique(work.zero_shot[batch.images])
    classes = text_lengths(work.class_tokens[named], work.config.text)
    indices = np.concatenate(batch.text_indices)
    return np.concatenate(
        [classes, text_lengths(work.description_tokens[indices], work.config.text)]
    )
