"""The contrastive loss that all trained methods share."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def info_nce(
    images: Float[Array, "B D"], texts: Float[Array, "B D"], scale: Float[Array, ""]
) -> Float[Array, ""]:
    """Symmetric InfoNCE over the whole batch, Eq. (3): the sum of its two directions.

    The i-th image and the i-th text are the positive pair, all other texts and images of the global
    batch the negatives. OpenCLIP's loss is half of this.

    Args:
        images: image features, unit vectors.
        texts: the features to match; not normalised here (Eq. 2 leaves them as they are mixed).
        scale: the inverse temperature.
    """
    logits = scale * images @ texts.T  # [B, B]
    positives = jnp.diagonal(logits)
    image_to_text = jax.nn.logsumexp(logits, axis=1) - positives
    text_to_image = jax.nn.logsumexp(logits, axis=0) - positives
    return jnp.mean(image_to_text) + jnp.mean(text_to_image)
