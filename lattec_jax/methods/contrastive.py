"""The contrastive loss of LatteCLIP and FLYP."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

MAX_LOGITS = 2**25  # in memory at once, over all devices: 128 MiB


def info_nce(
    images: Float[Array, "B D"],
    texts: Float[Array, "B D"],
    logit_scale: Float[Array, ""],
    max_logits: int = MAX_LOGITS,
) -> Float[Array, ""]:
    """Symmetric InfoNCE over the global batch, Eq. (3): the sum of its two directions.

    The i-th image and the i-th text are the positive pair; all other texts and images of the batch
    are the negatives. OpenCLIP's loss is half of this. For a large batch, the `[B, B]` logits are
    computed block by block, each of some images and all texts, and again for the gradient.

    Args:
        images: unit vectors.
        texts: not normalized here (Eq. 2 leaves them as they are mixed).
        max_logits: maximum size of the logits of a block.
    """
    count = images.shape[0]
    blocks = min(-(-count * count // max_logits), count)
    if blocks == 1:
        logits = logit_scale * images @ texts.T  # [B, B]
        positives = jnp.diagonal(logits)
        image_to_text = jax.nn.logsumexp(logits, axis=1) - positives
        text_to_image = jax.nn.logsumexp(logits, axis=0) - positives
        return jnp.mean(image_to_text) + jnp.mean(text_to_image)

    def block(images: Float[Array, "R D"], valid: Bool[Array, " R"]) -> tuple[jax.Array, jax.Array]:
        logits = logit_scale * images @ texts.T  # [R, B]
        over_images = jax.nn.logsumexp(logits, axis=0, where=valid[:, None])  # [B]
        return jax.nn.logsumexp(logits, axis=1), over_images

    missing = -count % blocks
    padded = jnp.pad(images, ((0, missing), (0, 0)))
    valid = jnp.arange(count + missing) < count
    # [B, ...] -> [R, blocks, ...] -> [blocks, R, ...]: a block takes every `blocks`-th image,
    # so that each device has its part of every block already.
    split = [x.reshape(-1, blocks, *x.shape[1:]).swapaxes(0, 1) for x in (padded, valid)]
    over_texts, over_images = jax.lax.map(
        lambda arrays: jax.checkpoint(block, prevent_cse=False)(*arrays), split
    )  # [blocks, R], [blocks, B]
    image_to_text = over_texts.swapaxes(0, 1).reshape(-1)[:count]
    text_to_image = jax.nn.logsumexp(over_images, axis=0)
    positives = logit_scale * jnp.sum(images * texts, axis=1)
    return jnp.mean(image_to_text - positives) + jnp.mean(text_to_image - positives)
