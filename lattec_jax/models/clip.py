"""CLIP's two towers in Flax NNX, equal to open_clip's plain ViT models.

Both are made of `lattec_jax.models.blocks`. Texts of a causal tower are filled up to a multiple of
eight tokens.

Parameters travel as one flat dictionary (`Params`) with the names of the checkpoint file, for
example ``visual/blocks/0/attn/qkv/kernel``; `define` and `bind` turn them into a model inside a
jitted function:

    definition = define(config)
    features = jax.jit(lambda params, x: bind(definition, params).encode_image(x))(params, images)

Source: open_clip 3.3, `open_clip/transformer.py` and `open_clip/model.py`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from lattec_jax.models.blocks import (
    Activation,
    Block,
    LayerNorm,
    Packing,
    constrain,
    device_count,
    exact_gelu,
    quick_gelu,
    run_blocks,
)
from lattec_jax.models.config import CLIPConfig, TextConfig, VisionConfig

Params = dict[str, jax.Array]

# Tokens of a text. Matrix units work on eight values of bfloat16 at once: where the tokens of a
# batch are no multiple of that, XLA copies every matrix before and behind each product.
LENGTH_MULTIPLE = 8


def normalize(x: Float[Array, "... D"]) -> Float[Array, "... D"]:
    """Divide by the Euclidean length, which is bounded below by 1e-12 as in PyTorch."""
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


class ImageTower(nnx.Module):
    """Vision transformer with a class token; open_clip's `VisionTransformer`."""

    def __init__(
        self,
        config: VisionConfig,
        embed_dim: int,
        activation: Activation,
        dtype: jnp.dtype,
        remat: bool,
        mesh: Mesh | None,
        rngs: nnx.Rngs,
    ):
        width, std = config.width, config.width**-0.5
        self.config, self.dtype, self.remat, self.mesh = config, dtype, remat, mesh
        self.patch_embedding = nnx.Linear(
            3 * config.patch_size**2,
            width,
            use_bias=False,
            dtype=dtype,
            kernel_init=nnx.initializers.normal((3 * config.patch_size**2) ** -0.5),
            rngs=rngs,
        )
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
        # A convolution whose stride is its size is a matrix product over patches:
        # [B, H, W, 3] -> [B, rows, P, columns, P, 3] -> [B, rows · columns, P · P · 3]
        patches = images[:, : rows * patch, : columns * patch].reshape(
            batch, rows, patch, columns, patch, 3
        )
        patches = patches.transpose(0, 1, 3, 2, 4, 5).reshape(batch, rows * columns, -1)
        x = self.patch_embedding(patches.astype(self.dtype))
        cls = jnp.broadcast_to(self.class_embedding[...].astype(self.dtype), (batch, 1, x.shape[2]))
        x = jnp.concatenate([cls, x], axis=1) + self.positional_embedding[...].astype(self.dtype)
        packing = Packing((x.shape[:2],), device_count(self.mesh))
        x = packing.join([x])
        if config.pre_norm:
            x = self.ln_pre(x)
        places = [jnp.zeros(batch, jnp.int32)] if config.pool == "tok" else None
        keep = constrain(self.mesh)
        x = run_blocks(self.blocks, x, packing, self.remat, keep, places)
        (x,) = (packing if places is None else packing.ones()).separate(x)
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
        dtype: jnp.dtype,
        remat: bool,
        mesh: Mesh | None,
        rngs: nnx.Rngs,
    ):
        width, length = config.width, config.context_length
        self.config, self.dtype, self.remat, self.mesh = config, dtype, remat, mesh
        # No token of a causal tower sees a later one, so tokens may follow that nobody reads.
        self.multiple = LENGTH_MULTIPLE if config.causal else 1
        self.token_embedding = nnx.Param(
            0.02 * jax.random.normal(rngs(), (config.vocab_size, width))
        )
        self.positional_embedding = nnx.Param(0.01 * jax.random.normal(rngs(), (length, width)))
        self.blocks = nnx.List(
            [
                Block(config, activation, config.causal, dtype, mesh, rngs)
                for _ in range(config.layers)
            ]
        )
        self.ln_final = LayerNorm(width, config.norm_epsilon)
        self.projection = nnx.Param(width**-0.5 * jax.random.normal(rngs(), (width, embed_dim)))

    def __call__(self, groups: Sequence[Int[Array, "N L"]]) -> list[Float[Array, "N D"]]:
        embedded = [self._embed(tokens) for tokens in groups]
        packing = Packing(tuple(x.shape[:2] for x in embedded), device_count(self.mesh))
        x = packing.join(embedded)
        keep, places = constrain(self.mesh), [self._positions(tokens) for tokens in groups]
        x = run_blocks(self.blocks, x, packing, self.remat, keep, places)
        features = self.ln_final(x).astype(jnp.float32) @ self.projection[...]
        return [group[:, 0] for group in packing.ones().separate(features)]

    def _embed(self, tokens: Int[Array, "N L"]) -> Float[Array, "N M W"]:
        """Embedded tokens and, up to the next multiple, zeros."""
        # Looked up before it is cast: the gradient of a common token is a sum over all its places,
        # and bfloat16 would lose most of it.
        x = self.token_embedding[...][tokens].astype(self.dtype)
        x = x + self.positional_embedding[...].astype(self.dtype)[: tokens.shape[1]]
        return jnp.pad(x, ((0, 0), (0, -x.shape[1] % self.multiple), (0, 0)))

    def _positions(self, tokens: Int[Array, "N L"]) -> Int[Array, " N"]:
        """The position at which each text is read out."""
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
    """An image tower, a text tower and the logarithm of their inverse temperature.

    Args:
        config: the architecture.
        dtype: the type in which the towers compute; parameters and features are float32.
        remat: recompute each block in the backward pass instead of keeping its activations.
        mesh: the devices that share the images and texts of a call, whose numbers they must
            divide; None: one device.
        rngs: where the initial parameters come from.
    """

    def __init__(
        self,
        config: CLIPConfig,
        *,
        dtype: jnp.dtype = jnp.float32,
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
        """Unit features of images in [0, 1] that are normalized by mean and deviation."""
        return normalize(self.visual(images))

    def encode_text(self, tokens: Int[Array, "N L"]) -> Float[Array, "N D"]:
        """Unit features of token matrices of any length L up to the context length.

        A causal model read out at the end-of-text token needs no padding: crop L to the longest
        text (`lattec_jax.data.text.bucketing.text_lengths`).
        """
        return self.encode_texts([tokens])[0]

    def encode_texts(self, groups: Sequence[Int[Array, "N L"]]) -> list[Float[Array, "N D"]]:
        """Unit features of token matrices of several lengths, in one pass."""
        return [normalize(features) for features in self.text(groups)]


@functools.lru_cache(maxsize=32)
def define(
    config: CLIPConfig,
    *,
    dtype: jnp.dtype = jnp.float32,
    remat: bool = False,
    mesh: Mesh | None = None,
) -> nnx.GraphDef:
    """The model without its parameters, see `CLIP`; nothing is allocated."""
    return nnx.graphdef(
        nnx.eval_shape(lambda: CLIP(config, dtype=dtype, remat=remat, mesh=mesh, rngs=nnx.Rngs(0)))
    )


def bind(definition: nnx.GraphDef, params: Params) -> CLIP:
    """A model of `definition` with `params`; cheap, and meant to be called inside `jax.jit`."""
    paths = {
        tuple(int(part) if part.isdigit() else part for part in name.split("/")): nnx.Param(value)
        for name, value in params.items()
    }
    return nnx.merge(definition, nnx.from_flat_state(paths))


def initial_params(config: CLIPConfig, seed: int) -> Params:
    """Randomly initialized parameters, with open_clip's standard deviations."""
    state = nnx.state(CLIP(config, rngs=nnx.Rngs(seed)), nnx.Param)
    return {
        "/".join(str(part) for part in path): variable[...]
        for path, variable in nnx.to_flat_state(state)
    }
