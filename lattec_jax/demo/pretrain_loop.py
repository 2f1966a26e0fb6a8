"""Pre-training of the demo's CLIP: render, train, evaluate, save."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Int, UInt8
from PIL import Image

from lattec_jax.data.datasets.digits import CLASS_NAMES
from lattec_jax.data.glyphs import describe_image
from lattec_jax.data.images.preprocess import Preprocess
from lattec_jax.data.text.tokenizer import Tokenizer
from lattec_jax.data.text.word_level import word_tokenizer
from lattec_jax.demo.rendering import HELD_OUT_FONTS, TRAINING_FONTS, Renderer
from lattec_jax.models.checkpoint import Checkpoint
from lattec_jax.models.clip import Params, bind, define, initial_params
from lattec_jax.models.config import CLIPConfig, TextConfig, VisionConfig
from lattec_jax.runtime.progress import progress_bar
from lattec_jax.runtime.text import print_escaped

IMAGE_SIZE, CONTEXT_LENGTH = 32, 32
TEMPLATE = "a photo of a {}."
MEAN = STD = (0.5, 0.5, 0.5)

IMAGES, HELD_OUT_IMAGES = 20_000, 2_000
BATCH_SIZE, WARMUP_STEPS = 128, 100
LEARNING_RATE, WEIGHT_DECAY = 1e-3, 0.1
# The probability that a stroke is left out of a caption: descriptions of groups are shorter too.
DROP = 0.3


class Rendered(NamedTuple):
    """N rendered images with their captions."""

    images: UInt8[np.ndarray, "N S S"]
    labels: Int[np.ndarray, " N"]
    captions: list[tuple[str, str, str]]  # class; class and strokes; strokes


def render(fonts: tuple[str, ...], count: int, seed: int, drop: float) -> Rendered:
    """Draw images and compose their captions."""
    images, labels = Renderer(fonts, IMAGE_SIZE).images(count, seed)
    rng = np.random.default_rng((seed, 1))
    captions = []
    bar = progress_bar(images, desc="captions", unit="image")
    for image, label in zip(bar, labels, strict=True):
        phrases = describe_image(Image.fromarray(image)).split(", ")
        kept = [phrase for phrase in phrases if rng.random() >= drop]
        strokes = ", ".join(kept or phrases[:1])
        name = TEMPLATE.format(CLASS_NAMES[label])
        captions.append((name, f"{name.removesuffix('.')}, {strokes}", strokes))
    return Rendered(images, labels, captions)


def model_config(vocab_size: int) -> CLIPConfig:
    """Return the tiny CLIP's architecture."""
    return CLIPConfig(
        embed_dim=64,
        vision=VisionConfig(
            width=96, layers=3, heads=3, patch_size=8, image_size=(IMAGE_SIZE, IMAGE_SIZE)
        ),
        text=TextConfig(
            width=64, layers=2, heads=2, context_length=CONTEXT_LENGTH, vocab_size=vocab_size
        ),
    )


def contrastive_loss(
    images: Float[Array, "B D"],
    texts: Float[Array, "B D"],
    tokens: Int[Array, "B L"],
    logit_scale: Float[Array, ""],
) -> Float[Array, ""]:
    """CLIP's symmetric loss. Images with equal captions are positives of each other's captions."""
    logits = logit_scale * images @ texts.T
    # [B, 1, L] == [1, B, L] -> [B, B]
    equal = jnp.all(tokens[:, None] == tokens[None], axis=-1)
    target = equal / equal.sum(axis=1, keepdims=True)
    log_probs = jax.nn.log_softmax(logits, axis=1) + jax.nn.log_softmax(logits.T, axis=1)
    return -(target * log_probs).sum(axis=1).mean() / 2


def normalize_images(images: UInt8[Array, "B S S"]) -> Float[Array, "B S S 3"]:
    """Normalize grayscale images and repeat them in three channels."""
    gray = (images.astype(jnp.float32) / 255 - MEAN[0]) / STD[0]
    return jnp.repeat(gray[..., None], 3, axis=-1)


def batches(
    count: int, batch_size: int, steps: int, rng: np.random.Generator
) -> Iterator[Int[np.ndarray, " B"]]:
    """Yield the indices of `steps` batches, in epochs without their incomplete last batch."""
    order = np.zeros(0, int)
    for _ in range(steps):
        if len(order) < batch_size:
            order = rng.permutation(count)
        yield order[:batch_size]
        order = order[batch_size:]


def pretrain(
    rendered: Rendered, tokenizer: Tokenizer, config: CLIPConfig, steps: int, batch_size: int,
    seed: int,
) -> tuple[Params, list[float]]:  # fmt: skip
    """Train from scratch; return the parameters and the loss of each step."""
    definition, params = define(config), initial_params(config, seed)
    # [kinds, N, L]
    tokens = np.stack([tokenizer(texts) for texts in zip(*rendered.captions, strict=True)])
    warmup = min(WARMUP_STEPS, steps // 2)
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(
            optax.warmup_cosine_decay_schedule(0.0, LEARNING_RATE, warmup, steps),
            b2=0.98,
            weight_decay=WEIGHT_DECAY,
            mask=lambda params: jax.tree.map(lambda value: value.ndim > 1, params),
        ),
    )

    @jax.jit
    def step(
        params: Params, state: optax.OptState, images: jax.Array, tokens: jax.Array
    ) -> tuple[Params, optax.OptState, jax.Array]:
        def loss(params: Params) -> jax.Array:
            model = bind(definition, params)
            image_features = model.encode_image(normalize_images(images))
            text_features = model.encode_text(tokens)
            return contrastive_loss(
                image_features, text_features, tokens, jnp.exp(model.logit_scale[...])
            )

        value, gradient = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradient, state, params)
        # optax declares any tree of arrays.
        params = cast("Params", optax.apply_updates(params, updates))
        # CLIP's bound on the logit scale
        params["logit_scale"] = jnp.minimum(params["logit_scale"], jnp.log(100.0))
        return params, state, value

    rng, state, losses = np.random.default_rng((seed, 2)), optimizer.init(params), []
    count = len(rendered.labels)
    drawn = batches(count, batch_size, steps, rng)
    for chosen in progress_bar(drawn, total=steps, desc="pre-training", unit="step"):
        kind = rng.integers(len(tokens), size=batch_size)
        params, state, value = step(params, state, rendered.images[chosen], tokens[kind, chosen])
        losses.append(value)
    return params, [float(value) for value in losses]


def evaluate(
    definition: nnx.GraphDef, params: Params, tokenizer: Tokenizer, rendered: Rendered
) -> dict[str, float]:
    """Return the zero-shot accuracy on images and on their stroke descriptions."""
    classes = jnp.asarray(tokenizer([TEMPLATE.format(name) for name in CLASS_NAMES]))
    strokes = jnp.asarray(tokenizer([caption[-1] for caption in rendered.captions]))

    @jax.jit
    def similarities(params: Params) -> tuple[jax.Array, jax.Array]:
        model = bind(definition, params)
        class_weights = model.encode_text(classes)  # [C, D]
        images = model.encode_image(normalize_images(jnp.asarray(rendered.images)))
        return images @ class_weights.T, model.encode_text(strokes) @ class_weights.T

    names = ("images", "descriptions")
    return {
        name: float(np.mean(np.argmax(scores, axis=1) == rendered.labels))
        for name, scores in zip(names, map(np.asarray, similarities(params)), strict=True)
    }


def make(out: Path, seed: int, steps: int) -> None:
    """Render, train, evaluate on held-out fonts and write the checkpoint directory."""
    start = time.perf_counter()
    rendered = render(TRAINING_FONTS, IMAGES, seed, DROP)
    held_out = render(HELD_OUT_FONTS, HELD_OUT_IMAGES, seed + 1, 0.0)
    text = " ".join([*CLASS_NAMES, *(caption for texts in rendered.captions for caption in texts)])
    words = text.lower().replace(",", " ").replace(".", " ").split()
    tokenizer = word_tokenizer(sorted(set(words)), CONTEXT_LENGTH)
    config = model_config(tokenizer.vocab_size)
    params, losses = pretrain(rendered, tokenizer, config, steps, BATCH_SIZE, seed)
    accuracy = evaluate(define(config), params, tokenizer, held_out)
    Checkpoint(
        config=config,
        params={name: np.asarray(value, np.float32) for name, value in params.items()},
        tokenizer=tokenizer,
        preprocess=Preprocess(size=(IMAGE_SIZE, IMAGE_SIZE), mean=MEAN, std=STD),
        source={
            "command": "python -m lattec_jax.demo.pretrain",
            "seed": seed,
            "steps": steps,
            "held_out_fonts": accuracy,
        },
    ).save(out)
    print(
        f"{sum(value.size for value in params.values()):,} parameters; last loss {losses[-1]:.3f}; "
        f"zero-shot accuracy on held-out fonts: {accuracy['images']:.1%} of the images, "
        f"{accuracy['descriptions']:.1%} of the descriptions; "
        f"{time.perf_counter() - start:.0f} s"
    )
    print_escaped(f"checkpoint in {out}; use it by --config.weights={shlex.quote(str(out))}")
