"""The encoders of a step, on the whole batch or on pieces of it with cached gradients.

A contrastive loss needs the features of the whole batch at once, but not its activations. GradCache
(Gao et al. 2021, arXiv 2101.06983) encodes the batch piece by piece and keeps nothing but the
features, takes the loss and its gradient with respect to them, and encodes each piece again to
carry that gradient on to the parameters. The numbers are those of the whole batch; the price is one
more forward pass.

In JAX this is a scan over pieces whose body is re-materialised: the scan keeps the features; its
transpose runs over the pieces again, re-computes one, and adds what it contributes to the gradient
of the parameters, in float32 as they are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from lattec_jax import sharding
from lattec_jax.models.clip import CLIP, Params, bind

Rows = Any  # a pytree of arrays whose first dimensions are equal


@dataclasses.dataclass(frozen=True)
class Encoder:
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
    pieces: int = 1

    @property
    def scale(self) -> Float[Array, ""]:
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
        return self._encode(lambda model, piece: model.encode_image(load(piece)), rows)

    def texts(self, tokens: Int[Array, "N L"]) -> Float[Array, "N D"]:
        """Unit features of a token matrix."""
        return self._encode(CLIP.encode_text, tokens)

    def _encode(
        self, encode: Callable[[CLIP, Rows], Float[Array, "P D"]], rows: Rows
    ) -> Float[Array, "N D"]:
        def encode_piece(piece: Rows) -> jax.Array:
            piece = jax.lax.with_sharding_constraint(piece, sharding.over_batch(self.mesh))
            return encode(bind(self.definition, self.params), piece)

        count = jax.tree.leaves(rows)[0].shape[0]
        # A few texts are not worth more pieces than each device has texts.
        pieces = min(self.pieces, -(-count // self.mesh.size))
        rows = _fill_up(rows, count, pieces * self.mesh.size)
        if pieces == 1:
            return encode_piece(rows)[:count]
        # [N, ...] -> [N / pieces, pieces, ...] -> [pieces, N / pieces, ...]: every `pieces`-th row
        # is of one piece, so that a device's part of each piece is of the rows that lie on it.
        split = jax.tree.map(lambda x: x.reshape(-1, pieces, *x.shape[1:]).swapaxes(0, 1), rows)
        # Forward and backward scan are loops of their own: nothing could be merged.
        features = jax.lax.map(jax.checkpoint(encode_piece, prevent_cse=False), split)
        # [pieces, N / pieces, D] -> [N, D]
        return features.swapaxes(0, 1).reshape(-1, features.shape[2])[:count]


def _fill_up(rows: Rows, count: int, multiple: int) -> Rows:
    """Repeat the first rows up to a multiple; their features are dropped, and so no gradient."""
    missing = -count % multiple
    if not missing:
        return rows
    return jax.tree.map(
        lambda x: jnp.pad(x, ((0, missing), *[(0, 0)] * (x.ndim - 1)), mode="wrap"), rows
    )
