"""The extractor of a step, on the whole batch or on pieces of it with cached gradients.

A contrastive loss needs the features of the whole batch at once, but not its activations. GradCache
(Gao et al. 2021, arXiv 2101.06983) encodes the batch piece by piece and keeps nothing but the
features, takes the loss and its gradient with respect to them, and encodes each piece again to
carry that gradient on to the parameters. The numbers are those of the whole batch; the price is one
more forward pass.

In JAX this is a scan over pieces whose body is re-materialized: the scan keeps the features; its
transpose runs over the pieces again, re-computes one, and adds what it contributes to the gradient
of the parameters, in float32 as they are.
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

from lattec_jax.models.clip import CLIP, Params, bind
from lattec_jax.runtime import sharding

Rows = Any  # a pytree of arrays whose first dimensions are equal


@dataclasses.dataclass(frozen=True)
class StepEncoder:
    """The model that is being trained, inside of a jitted step.

    Attributes:
        definition: of the model (`lattec_jax.models.clip.define`).
        params: its parameters; features are differentiable with respect to them.
        mesh: the devices, which share each piece evenly.
        pieces: how many a batch is cut into; 1: the whole batch at once.
    """

    definition: nnx.GraphDef
    params: Params
    mesh: Mesh
    num_microbatches: int = 1

    @property
    def logit_scale(self) -> Float[Array, ""]:
        """The inverse temperature."""
        return jnp.exp(self.params["logit_scale"])

    def images(
        self, rows: Rows, load: Callable[[Rows], Float[Array, "P H W 3"]]
    ) -> Float[Array, "N D"]:
        """Unit features of N images.

        Args:
            rows: what `load` needs of each image, such as its index.
            load: makes the images of a piece, so that those of the batch need not exist at once.
        """
        (features,) = self._encode(
            lambda model, num_microbatches: [model.encode_image(load(num_microbatches[0]))],
            [rows],
            self.num_microbatches,
        )
        return features

    def texts(self, groups: Sequence[Int[Array, "N L"]]) -> list[Float[Array, "N D"]]:
        """Unit features of token matrices of several lengths."""
        # A few texts are not worth more pieces than each device has texts.
        few = self.num_microbatches * self.mesh.size
        num_microbatches = [1 if len(tokens) < few else self.num_microbatches for tokens in groups]
        features = {}
        for number in sorted(set(num_microbatches)):
            chosen = [i for i, own in enumerate(num_microbatches) if own == number]
            found = self._encode(CLIP.encode_texts, [groups[i] for i in chosen], number)
            features |= dict(zip(chosen, found, strict=True))
        return [features[i] for i in range(len(groups))]

    def _encode(
        self,
        encode: Callable[[CLIP, list[Rows]], list[Float[Array, "P D"]]],
        groups: list[Rows],
        num_microbatches: int,
    ) -> list[Float[Array, "N D"]]:
        def encode_piece(piece: list[Rows]) -> list[jax.Array]:
            piece = jax.lax.with_sharding_constraint(piece, sharding.over_batch(self.mesh))
            return encode(bind(self.definition, self.params), piece)

        counts = [jax.tree.leaves(rows)[0].shape[0] for rows in groups]
        groups = [
            _fill_up(rows, count, num_microbatches * self.mesh.size)
            for rows, count in zip(groups, counts, strict=True)
        ]
        if num_microbatches == 1:
            features = encode_piece(groups)
        else:
            # [N, ...] -> [N / pieces, pieces, ...] -> [pieces, N / pieces, ...]: every `pieces`-th
            # row is of one piece, so that a device's part of each is of the rows that lie on it.
            split = jax.tree.map(
                lambda x: x.reshape(-1, num_microbatches, *x.shape[1:]).swapaxes(0, 1), groups
            )
            # Forward and backward scan are loops of their own: nothing could be merged.
            found = jax.lax.map(jax.checkpoint(encode_piece, prevent_cse=False), split)
            # [pieces, N / pieces, D] -> [N, D]
            features = [x.swapaxes(0, 1).reshape(-1, x.shape[2]) for x in found]
        return [x[:count] for x, count in zip(features, counts, strict=True)]


def _fill_up(rows: Rows, count: int, multiple: int) -> Rows:
    """Repeat the first rows up to a multiple; their features are dropped, and so no gradient."""
    missing = -count % multiple
    if not missing:
        return rows
    return jax.tree.map(
        lambda x: jnp.pad(x, ((0, missing), *[(0, 0)] * (x.ndim - 1)), mode="wrap"), rows
    )
