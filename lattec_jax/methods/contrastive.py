"""The contrastive loss that all trained methods share."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

MOST_LOGITS = 2**25  # that exist at once, over all devices: 128 MiB


def info_nce(
    images: Float[Array, "B D"],
    texts: Float[Array, "B D"],
    logit_scale: Float[Array, ""],
    most_logits: int = MOST_LOGITS,
) -> Float[Array, ""]:
    """Symmetric InfoNCE over the whole batch, Eq. (3): the sum of its two directions.

    The i-th image and the i-th text are the positive pair, all other texts and images of the global
    batch the negatives. OpenCLIP's loss is half of this. The `[B, B]` logits of a large batch never
    exist: a block of images meets all texts at a time, and is computed again for the gradient.

    Args:
        images: image features, unit vectors.
        texts: the features to match; not normalized here (Eq. 2 leaves them as they are mixed).
        scale: the inverse temperature.
        most_logits: that a block may have.
    """
    count = images.shape[0]
    blocks = min(-(-count * count // most_logits), count)
    if blocks == 1:
        logits = logit_scale * images @ texts.T  # [B, B]
        positives = jnp.diagonal(logits)
        image_to_text = jax.nn.logsumexp(logits, axis=1) - positives
        text_to_image = jax.nn.logsumexp(logits, axis=0) - positives
        return jnp.mean(image_to_text) + jnp.mean(text_to_image)

    def block(rows: Float[Array, "R D"], there: Bool[Array, " R"]) -> tuple[jax.Array, jax.Array]:
        logits = logit_scale * rows @ texts.T  # [R, B]
        over_images = jax.nn.logsumexp(logits, axis=0, where=there[:, None])  # [B]
        return jax.nn.logsumexp(logits, axis=1), over_images

    missing = -count % blocks
    rows = jnp.pad(images, ((0, missing), (0, 0)))
    there = jnp.arange(count + missing) < count
    # [B, ...] -> [R, blocks, ...] -> [blocks, R, ...]: every `blocks`-th image is of one block, so
    # that each device works on images that lie on it.
    split = [x.reshape(-1, blocks, *x.shape[1:]).swapaxes(0, 1) for x in (rows, there)]
    over_texts, over_images = jax.lax.map(
        lambda piece: jax.checkpoint(block, prevent_cse=False)(*piece), split
    )  # [blocks, R], [blocks, B]
    image_to_text = over_texts.swapaxes(0, 1).reshape(-1)[:count]
    text_to_image = jax.nn.logsumexp(over_images, axis=0)
    positives = logit_scale * jnp.sum(images * texts, axis=1)
    return jnp.mean(image_to_text - positives) + jnp.mean(text_to_image - positives)
