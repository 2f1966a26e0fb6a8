"""The encoder of a step: the full batch at once, or microbatches with cached gradients.

A contrastive loss needs the features of the full batch at once, but not its activations. GradCache
(Gao et al. 2021, arXiv 2101.06983) encodes one microbatch after the other and stores only the
features. It then computes the loss and its gradient with respect to the features, and encodes each
microbatch again to continue that gradient to the parameters. The numbers are those of the full
batch; the price is one more forward pass.

In JAX this is a scan over microbatches with a rematerialized body. The scan stores the features.
Its transpose runs over the microbatches again, recomputes the activations of one, and adds its
contribution to the gradient of the parameters, in float32 like the parameters themselves.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from lattec_jax.models.clip import CLIP, bind
from lattec_jax.runtime import sharding

Examples = Any  # a pytree of arrays with the same first dimension


@dataclasses.dataclass(frozen=True)
class StepEncoder:
    """The model that is being trained, inside of a jitted step. Features are differentiable with
    respect to `params`."""

    definition: nnx.GraphDef  # of the model (`lattec_jax.models.clip.define`)
    params: dict[str, Any]
    mesh: Mesh  # over whose devices each microbatch is sharded
    num_microbatches: int = 1  # into which a batch is split; 1: the full batch at once

    @property
    def logit_scale(self) -> Float[Array, ""]:
        """The factor of the cosines in the logits."""
        return jnp.exp(self.params["logit_scale"])

    def encode_images(
        self, examples: Examples, make_images: Callable[[Examples], Float[Array, "m H W 3"]]
    ) -> Float[Array, "B D"]:
        """Return unit features of B images.

        Args:
            examples: the inputs of `make_images` for each image, such as its index.
            make_images: gathers, crops and normalizes the images of one microbatch, so that those
                of the batch never exist at once.
        """
        (features,) = self._encode(
            lambda model, buckets: [model.encode_image(make_images(buckets[0]))],
            [examples],
            self.num_microbatches,
        )
        return features

    def encode_texts(self, buckets: Sequence[Int[Array, "_n _L"]]) -> list[Float[Array, "_n D"]]:
        """Return unit features of token matrices of several lengths."""
        # A small bucket is encoded at once: split, it would have less than a text for each device.
        small = self.num_microbatches * self.mesh.size
        splits = [1 if len(tokens) < small else self.num_microbatches for tokens in buckets]
        features = {}
        for split in sorted(set(splits)):
            chosen = [index for index, own in enumerate(splits) if own == split]
            encoded = self._encode(CLIP.encode_texts, [buckets[i] for i in chosen], split)
            features |= dict(zip(chosen, encoded, strict=True))
        return [features[i] for i in range(len(buckets))]

    def _encode(
        self,
        encode: Callable[[CLIP, list[Examples]], list[Float[Array, "_m D"]]],
        buckets: list[Examples],
        num_microbatches: int,
    ) -> list[Float[Array, "_n D"]]:
        def encode_microbatch(microbatch: list[Examples]) -> list[jax.Array]:
            # Without the constraint the compiler may gather a microbatch on every device.
            microbatch = jax.lax.with_sharding_constraint(
                microbatch, sharding.over_batch(self.mesh)
            )
            return encode(bind(self.definition, self.params), microbatch)

        counts = [jax.tree.leaves(bucket)[0].shape[0] for bucket in buckets]
        buckets = [
            _pad(bucket, count, num_microbatches * self.mesh.size)
            for bucket, count in zip(buckets, counts, strict=True)
        ]
        if num_microbatches == 1:
            features = encode_microbatch(buckets)
        else:
            # [n, ...] -> [n / M, M, ...] -> [M, n / M, ...] for M microbatches. Each takes every
            # M-th example, not a contiguous block: the batch is sharded in contiguous blocks, so
            # every device has its part of every microbatch already.
            stacked = jax.tree.map(
                lambda x: x.reshape(-1, num_microbatches, *x.shape[1:]).swapaxes(0, 1), buckets
            )
            # No common subexpressions to protect from merging: the forward and the backward scan
            # are separate loops.
            encoded = jax.lax.map(jax.checkpoint(encode_microbatch, prevent_cse=False), stacked)
            # [M, n / M, D] -> [n / M, M, D] -> [n, D]
            features = [x.swapaxes(0, 1).reshape(-1, x.shape[2]) for x in encoded]
        return [x[:count] for x, count in zip(features, counts, strict=True)]


def _pad(examples: Examples, count: int, multiple: int) -> Examples:
    """Repeat the first examples up to a multiple. Their features are dropped, and with them any
    gradient."""
    missing = -count % multiple
    if not missing:
        return examples
    return jax.tree.map(
        lambda x: jnp.pad(x, ((0, missing), *[(0, 0)] * (x.ndim - 1)), mode="wrap"), examples
    )
