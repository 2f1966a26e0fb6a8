"""CLIP's two towers in Flax NNX, equal to open_clip's plain ViT models.

Parameters are one flat dictionary (`Params`) with the names of the checkpoint file, for example
``visual/blocks/0/attn/qkv/kernel``. `define` and `bind` turn them into a model inside a jitted
function:

    definition = define(config)
    features = jax.jit(lambda params, x: bind(definition, params).encode_image(x))(params, images)

In shapes, a leading underscore marks a dimension that differs between the buckets of a list.

Source: open_clip 3.3, `open_clip/transformer.py` and `open_clip/model.py`.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from lattec_jax.models.attention import Packing, activation_constraint, linear, num_devices
from lattec_jax.models.blocks import (
    Activation,
    Block,
    LayerNorm,
    exact_gelu,
    quick_gelu,
    run_blocks,
)
from lattec_jax.models.config import CLIPConfig, TextConfig, VisionConfig

Params = dict[str, jax.Array]

# Texts of a causal tower are padded to a multiple of so many tokens. Matrix units work on eight
# values of bfloat16 at once: if the number of tokens of a batch is not a multiple of eight, XLA
# copies every matrix before and after each product.
LENGTH_MULTIPLE = 8


def normalize(x: Float[Array, "*shape D"]) -> Float[Array, "*shape D"]:
    """Divide by the Euclidean norm, or by 1e-12 where it is smaller, as PyTorch does."""
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


class ImageTower(nnx.Module):
    """Vision transformer with a class token; open_clip's `VisionTransformer`."""

    def __init__(
        self,
        config: VisionConfig,
        embed_dim: int,
        activation: Activation,
        dtype: DTypeLike,
        remat: bool,
        mesh: Mesh | None,
        rngs: nnx.Rngs,
    ):
        width, std = config.width, config.width**-0.5
        self.config, self.dtype, self.remat, self.mesh = config, dtype, remat, mesh
        values = 3 * config.patch_size**2
        self.patch_embedding = linear(values, width, values**-0.5, dtype, rngs, use_bias=False)
        tokens = 1 + config.grid[0] * config.grid[1]
        self.class_embedding = nnx.Param(std * jax.random.normal(rngs(), (width,)))
        self.positional_embedding = nnx.Param(std * jax.random.normal(rngs(), (tokens, width)))
        if config.pre_norm:
            self.ln_pre = LayerNorm(width, config.norm_epsilon)
        self.blocks = nnx.List(
            [Block(config, activation, False, dtype, mesh, rngs) for _ in range(config.layers)]
        )
        self.ln_post = LayerNorm(width, config.norm_epsilon)
        self.projection = nnx.Param(std * jax.random.normal(rngs(), (width, embed_dim)))

    def __call__(self, images: Float[Array, "B H W 3"]) -> Float[Array, "B D"]:
        config, patch = self.config, self.config.patch_size
        batch, (rows, columns) = images.shape[0], config.grid
        # A convolution whose stride is its size is a matrix product over patches. Pixels beyond the
        # last full patch are cropped.
        # [B, H, W, 3] -> [B, rows, P, columns, P, 3]
        patches = images[:, : rows * patch, : columns * patch].reshape(
            batch, rows, patch, columns, patch, 3
        )
        # -> [B, rows, columns, P, P, 3] -> [B, rows · columns, P · P · 3]
        patches = patches.transpose(0, 1, 3, 2, 4, 5).reshape(batch, rows * columns, -1)
        x = self.patch_embedding(patches.astype(self.dtype))
        # The class token in front: [B, 1 + rows · columns, W], L tokens in all
        cls = jnp.broadcast_to(self.class_embedding[...].astype(self.dtype), (batch, 1, x.shape[2]))
        x = jnp.concatenate([cls, x], axis=1) + self.positional_embedding[...].astype(self.dtype)
        packing = Packing(((x.shape[0], x.shape[1]),), num_devices(self.mesh))
        x = packing.pack([x])  # [B · L, W]
        if config.pre_norm:
            x = self.ln_pre(x)
        class_token = [jnp.zeros(batch, jnp.int32)] if config.pool == "tok" else None
        constrain = activation_constraint(self.mesh)
        x = run_blocks(self.blocks, x, packing, self.remat, constrain, class_token)
        # -> [B, 1, W] if the class token is pooled, else [B, L, W]
        (x,) = (packing if class_token is None else packing.one_per_sequence()).unpack(x)
        if config.pool == "tok":
            pooled = self.ln_post(x[:, 0])
        elif config.final_norm_after_pool:
            pooled = self.ln_post(x[:, 1:].mean(axis=1))
        else:
            pooled = self.ln_post(x)[:, 1:].mean(axis=1)
        return pooled.astype(jnp.float32) @ self.projection[...]


class TextTower(nnx.Module):
    """Text transformer; open_clip's `TextTransformer`."""

    def __init__(
        self,
        config: TextConfig,
        embed_dim: int,
        activation: Activation,
        dtype: DTypeLike,
        remat: bool,
        mesh: Mesh | None,
        rngs: nnx.Rngs,
    ):
        width, length = config.width, config.context_length
        self.config, self.dtype, self.remat, self.mesh = config, dtype, remat, mesh
        # In a causal tower no token attends to a later one, so padding changes no pooled token.
        self.multiple = LENGTH_MULTIPLE if config.causal else 1
        self.token_embedding = nnx.Param(
            0.02 * jax.random.normal(rngs(), (config.vocab_size, width))
        )
        self.positional_embedding = nnx.Param(0.01 * jax.random.normal(rngs(), (length, width)))
        shared = (config, activation, config.causal, dtype, mesh, rngs)
        self.blocks = nnx.List([Block(*shared) for _ in range(config.layers)])
        self.ln_final = LayerNorm(width, config.norm_epsilon)
        self.projection = nnx.Param(width**-0.5 * jax.random.normal(rngs(), (width, embed_dim)))

    def __call__(self, buckets: Sequence[Int[Array, "_N _L"]]) -> list[Float[Array, "_N D"]]:
        # A token more than the texts need changes nothing: pad L to M, the next multiple.
        padded = [jnp.pad(x, ((0, 0), (0, -x.shape[1] % self.multiple))) for x in buckets]
        packing = Packing(tuple((x.shape[0], x.shape[1]) for x in padded), num_devices(self.mesh))
        x = self._embed(padded, packing)
        constrain = activation_constraint(self.mesh)
        positions = [self._pool_positions(tokens) for tokens in buckets]
        x = run_blocks(self.blocks, x, packing, self.remat, constrain, positions)  # [S, W]
        features = self.ln_final(x).astype(jnp.float32) @ self.projection[...]  # [S, D]
        # -> of each bucket [N, 1, D] -> [N, D]
        return [bucket[:, 0] for bucket in packing.one_per_sequence().unpack(features)]

    def _embed(self, buckets: list[Int[Array, "_N _M"]], packing: Packing) -> Float[Array, "T W"]:
        """Embed the tokens of all buckets, with their positions."""
        # One lookup for all buckets: its gradient has the size of the vocabulary, and is reduced
        # over the devices once. Look up, then cast: the gradient of a frequent token is a sum over
        # all its positions, of which bfloat16 would lose most. Of each bucket [N, M, 1] -> [T, 1]
        tokens = packing.pack([x[:, :, None] for x in buckets])[:, 0]
        x = self.token_embedding[...][tokens].astype(self.dtype)
        table = self.positional_embedding[...].astype(self.dtype)
        # Of each bucket [M, W] -> [N, M, W]; all of them -> [T, W]
        longest = max(x.shape[1] for x in buckets)
        table = jnp.pad(table, ((0, max(0, longest - table.shape[0])), (0, 0)))
        positions = [
            jnp.broadcast_to(table[: x.shape[1]], (*x.shape, table.shape[1])) for x in buckets
        ]
        return x + packing.pack(positions)

    def _pool_positions(self, tokens: Int[Array, "N L"]) -> Int[Array, " N"]:
        """Return the position of each text's pooled token."""
        match self.config.pool:
            case "argmax":
                return jnp.argmax(tokens, axis=1)
            case "eos":
                return jnp.argmax(tokens == self.config.eos_id, axis=1)
            case "first":
                return jnp.zeros(tokens.shape[0], jnp.int32)
            case _:  # "last"
                return jnp.full(tokens.shape[0], tokens.shape[1] - 1, jnp.int32)


class CLIP(nnx.Module):
    """An image tower, a text tower and the logarithm of the logit scale.

    Args:
        dtype: in which the towers compute; parameters and features are float32.
        remat: recompute each block in the backward pass instead of storing its activations.
        mesh: the devices over which a batch is split; their number must divide the numbers of
            images and of texts. None: one device.
    """

    def __init__(
        self,
        config: CLIPConfig,
        *,
        dtype: DTypeLike = jnp.float32,
        remat: bool = False,
        mesh: Mesh | None = None,
        rngs: nnx.Rngs,
    ):
        activation = quick_gelu if config.quick_gelu else exact_gelu
        shared = (config.embed_dim, activation, dtype, remat, mesh, rngs)
        self.visual = ImageTower(config.vision, *shared)
        self.text = TextTower(config.text, *shared)
        self.logit_scale = nnx.Param(jnp.log(jnp.float32(1 / 0.07)))

    def encode_image(self, images: Float[Array, "B H W 3"]) -> Float[Array, "B D"]:
        """Return unit features of images, whose pixels are normalized by mean and deviation."""
        return normalize(self.visual(images))

    def encode_text(self, tokens: Int[Array, "N L"]) -> Float[Array, "N D"]:
        """Return unit features of texts.

        L may be any length up to the context length. A causal tower that pools the end-of-text
        token needs no padding: crop to the longest text
        (`lattec_jax.data.text.bucketing.text_lengths`).
        """
        return self.encode_texts([tokens])[0]

    def encode_texts(self, buckets: Sequence[Int[Array, "_N _L"]]) -> list[Float[Array, "_N D"]]:
        """Return unit features of buckets of texts, each bucket cropped to one length."""
        return [normalize(features) for features in self.text(buckets)]


@functools.lru_cache(maxsize=32)
def define(
    config: CLIPConfig,
    *,
    dtype: DTypeLike = jnp.float32,
    remat: bool = False,
    mesh: Mesh | None = None,
) -> nnx.GraphDef:
    """Return the graph of a `CLIP` without its parameters; nothing is allocated."""
    return nnx.graphdef(
        nnx.eval_shape(lambda: CLIP(config, dtype=dtype, remat=remat, mesh=mesh, rngs=nnx.Rngs(0)))
    )


def bind(definition: nnx.GraphDef, params: Mapping[str, jax.Array | np.ndarray]) -> CLIP:
    """Return a model with these parameters. Cheap; call it inside `jax.jit`."""
    # "visual/blocks/0/ln_1/scale" -> ("visual", "blocks", 0, "ln_1", "scale")
    flat_state = [
        (tuple(int(part) if part.isdigit() else part for part in name.split("/")), nnx.Param(value))
        for name, value in params.items()
    ]
    return nnx.merge(definition, nnx.from_flat_state(flat_state))


def initial_params(config: CLIPConfig, seed: int) -> Params:
    """Return randomly initialized parameters, with open_clip's standard deviations."""
    state = nnx.state(CLIP(config, rngs=nnx.Rngs(seed)), nnx.Param)
    return {
        "/".join(str(part) for part in path): variable[...]
        for path, variable in nnx.to_flat_state(state)
    }
