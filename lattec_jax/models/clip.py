"""CLIP's two towers in Flax NNX, equal to open_clip's plain ViT models.

Parameters travel as one flat dictionary (`Params`) with the names of the checkpoint file, for
example ``visual/blocks/0/attn/qkv/kernel``; `define` and `bind` turn them into a model inside a
jitted function:

    definition = define(config)
    features = jax.jit(lambda params, x: bind(definition, params).encode_image(x))(params, images)

Source: open_clip 3.3, `open_clip/transformer.py` and `open_clip/model.py`.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import NamedSharding
from jaxtyping import Array, Float, Int

from lattec_jax.models.config import CLIPConfig, TextConfig, VisionConfig

Params = dict[str, jax.Array]
Activation = Callable[[jax.Array], jax.Array]
Keep = Callable[[jax.Array], jax.Array]


def keep_in_place(where: NamedSharding | None) -> Keep:
    """A function that keeps activations split by images or texts over the devices.

    Where parameters are split, the compiler might move the activations to them instead of bringing
    the parameters together, layer by layer.
    """
    return lambda x: x if where is None else jax.lax.with_sharding_constraint(x, where)


def quick_gelu(x: jax.Array) -> jax.Array:
    """OpenAI's approximation of GELU: x · sigmoid(1.702 x)."""
    return x * jax.nn.sigmoid(1.702 * x)


def exact_gelu(x: jax.Array) -> jax.Array:
    """GELU by the error function, as PyTorch's `nn.GELU`."""
    return jax.nn.gelu(x, approximate=False)


def normalise(x: Float[Array, "... D"]) -> Float[Array, "... D"]:
    """Divide by the Euclidean length, which is bounded below by 1e-12 as in PyTorch."""
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def _normal(std: float) -> nnx.Initializer:
    return nnx.initializers.normal(std)


def _layer_norm(width: int, epsilon: float, dtype: jnp.dtype, rngs: nnx.Rngs) -> nnx.LayerNorm:
    # The fast variance E[x²] − E[x]² loses digits that the comparison with open_clip needs.
    return nnx.LayerNorm(width, epsilon=epsilon, dtype=dtype, use_fast_variance=False, rngs=rngs)


class Attention(nnx.Module):
    """Multi-head self-attention with one fused projection for queries, keys and values."""

    def __init__(
        self, config: VisionConfig | TextConfig, causal: bool, dtype: jnp.dtype, rngs: nnx.Rngs
    ):
        width = config.width
        out_std = width**-0.5 * (2 * config.layers) ** -0.5
        self.heads, self.causal = config.heads, causal
        self.qkv = nnx.Linear(
            width, 3 * width, dtype=dtype, kernel_init=_normal(width**-0.5), rngs=rngs
        )
        self.out = nnx.Linear(width, width, dtype=dtype, kernel_init=_normal(out_std), rngs=rngs)

    def __call__(self, x: Float[Array, "B L W"], keep: Keep) -> Float[Array, "B L W"]:
        batch, length, width = x.shape
        # [B, L, 3W] -> three of [B, L, H, W/H]
        qkv = keep(self.qkv(x)).reshape(batch, length, 3, self.heads, width // self.heads)
        query, key, value = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        mixed = jax.nn.dot_product_attention(query, key, value, is_causal=self.causal)
        return self.out(keep(mixed.reshape(batch, length, width)))


class MLP(nnx.Module):
    """Two linear layers around the activation."""

    def __init__(
        self,
        config: VisionConfig | TextConfig,
        activation: Activation,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        width = config.width
        hidden = int(width * config.mlp_ratio)
        out_std = width**-0.5 * (2 * config.layers) ** -0.5
        self.activation = activation
        self.fc = nnx.Linear(
            width, hidden, dtype=dtype, kernel_init=_normal((2 * width) ** -0.5), rngs=rngs
        )
        self.proj = nnx.Linear(hidden, width, dtype=dtype, kernel_init=_normal(out_std), rngs=rngs)

    def __call__(self, x: Float[Array, "B L W"], keep: Keep) -> Float[Array, "B L W"]:
        return self.proj(self.activation(keep(self.fc(x))))


class Block(nnx.Module):
    """Pre-norm transformer block, with a learned scale on both branches where the model has one."""

    def __init__(
        self,
        config: VisionConfig | TextConfig,
        activation: Activation,
        causal: bool,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        width = config.width
        self.ln_1 = _layer_norm(width, config.norm_epsilon, dtype, rngs)
        self.attn = Attention(config, causal, dtype, rngs)
        self.ln_2 = _layer_norm(width, config.norm_epsilon, dtype, rngs)
        self.mlp = MLP(config, activation, dtype, rngs)
        self.scaled = config.layer_scale is not None
        if self.scaled:
            self.layer_scale_1 = nnx.Param(jnp.full((width,), config.layer_scale))
            self.layer_scale_2 = nnx.Param(jnp.full((width,), config.layer_scale))

    def __call__(self, x: Float[Array, "B L W"], keep: Keep) -> Float[Array, "B L W"]:
        attended = self.attn(self.ln_1(x), keep)
        if self.scaled:
            attended = attended * self.layer_scale_1[...].astype(x.dtype)
        x = x + attended
        hidden = self.mlp(self.ln_2(x), keep)
        if self.scaled:
            hidden = hidden * self.layer_scale_2[...].astype(x.dtype)
        return x + hidden


def _run_blocks(
    blocks: nnx.List, x: jax.Array, remat: bool, where: NamedSharding | None
) -> jax.Array:
    keep = keep_in_place(where)

    def run(block: Block, x: jax.Array) -> jax.Array:
        return block(keep(x), keep)

    if remat:
        run = nnx.remat(run)
    for block in blocks:
        x = run(block, x)
    return keep(x)


class ImageTower(nnx.Module):
    """Vision transformer with a class token; open_clip's `VisionTransformer`."""

    def __init__(
        self,
        config: VisionConfig,
        embed_dim: int,
        activation: Activation,
        dtype: jnp.dtype,
        remat: bool,
        where: NamedSharding | None,
        rngs: nnx.Rngs,
    ):
        width, std = config.width, config.width**-0.5
        self.config, self.dtype, self.remat, self.where = config, dtype, remat, where
        self.patch_embedding = nnx.Linear(
            3 * config.patch_size**2,
            width,
            use_bias=False,
            dtype=dtype,
            kernel_init=_normal((3 * config.patch_size**2) ** -0.5),
            rngs=rngs,
        )
        tokens = 1 + config.grid[0] * config.grid[1]
        self.class_embedding = nnx.Param(std * jax.random.normal(rngs(), (width,)))
        self.positional_embedding = nnx.Param(std * jax.random.normal(rngs(), (tokens, width)))
        if config.pre_norm:
            self.ln_pre = _layer_norm(width, config.norm_epsilon, dtype, rngs)
        self.blocks = nnx.List(
            [Block(config, activation, False, dtype, rngs) for _ in range(config.layers)]
        )
        self.ln_post = _layer_norm(width, config.norm_epsilon, dtype, rngs)
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
        if config.pre_norm:
            x = self.ln_pre(x)
        x = _run_blocks(self.blocks, x, self.remat, self.where)
        if (
            config.pool == "tok"
        ):  # the norm acts on each token by itself, so it may follow the choice
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
        where: NamedSharding | None,
        rngs: nnx.Rngs,
    ):
        width, length = config.width, config.context_length
        self.config, self.dtype, self.remat, self.where = config, dtype, remat, where
        self.token_embedding = nnx.Param(
            0.02 * jax.random.normal(rngs(), (config.vocab_size, width))
        )
        self.positional_embedding = nnx.Param(0.01 * jax.random.normal(rngs(), (length, width)))
        self.blocks = nnx.List(
            [Block(config, activation, config.causal, dtype, rngs) for _ in range(config.layers)]
        )
        self.ln_final = _layer_norm(width, config.norm_epsilon, dtype, rngs)
        self.projection = nnx.Param(width**-0.5 * jax.random.normal(rngs(), (width, embed_dim)))

    def __call__(self, tokens: Int[Array, "N L"]) -> Float[Array, "N D"]:
        count, length = tokens.shape
        # Looked up before it is cast: the gradient of a common token is a sum over all its places,
        # and bfloat16 would lose most of it.
        x = self.token_embedding[...][tokens].astype(self.dtype)
        x = x + self.positional_embedding[...].astype(self.dtype)[:length]
        x = _run_blocks(self.blocks, x, self.remat, self.where)
        read_out = self.ln_final(x[jnp.arange(count), self._positions(tokens)])
        return read_out.astype(jnp.float32) @ self.projection[...]

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
        where: how activations lie on several devices, by their first dimension.
        rngs: where the initial parameters come from.
    """

    def __init__(
        self,
        config: CLIPConfig,
        *,
        dtype: jnp.dtype = jnp.float32,
        remat: bool = False,
        where: NamedSharding | None = None,
        rngs: nnx.Rngs,
    ):
        activation = quick_gelu if config.quick_gelu else exact_gelu
        shared = (config.embed_dim, activation, dtype, remat, where, rngs)
        self.visual = ImageTower(config.vision, *shared)
        self.text = TextTower(config.text, *shared)
        self.logit_scale = nnx.Param(jnp.log(jnp.float32(1 / 0.07)))

    def encode_image(self, images: Float[Array, "B H W 3"]) -> Float[Array, "B D"]:
        """Unit features of images in [0, 1] that are normalised by mean and deviation."""
        return normalise(self.visual(images))

    def encode_text(self, tokens: Int[Array, "N L"]) -> Float[Array, "N D"]:
        """Unit features of token matrices of any length L up to the context length.

        A causal model read out at the end-of-text token needs no padding: crop L to the longest
        text (`lattec_jax.models.config.text_lengths`).
        """
        return normalise(self.text(tokens))


def define(
    config: CLIPConfig,
    *,
    dtype: jnp.dtype = jnp.float32,
    remat: bool = False,
    where: NamedSharding | None = None,
) -> nnx.GraphDef:
    """The model without its parameters, see `CLIP`; nothing is allocated."""
    return nnx.graphdef(
        nnx.eval_shape(
            lambda: CLIP(config, dtype=dtype, remat=remat, where=where, rngs=nnx.Rngs(0))
        )
    )


def bind(definition: nnx.GraphDef, params: Params) -> CLIP:
    """A model of `definition` with `params`; cheap, and meant to be called inside `jax.jit`."""
    paths = {
        tuple(int(part) if part.isdigit() else part for part in name.split("/")): nnx.Param(value)
        for name, value in params.items()
    }
    return nnx.merge(definition, nnx.from_flat_state(paths))


def initial_params(config: CLIPConfig, seed: int) -> Params:
    """Randomly initialised parameters, with open_clip's standard deviations."""
    state = nnx.state(CLIP(config, rngs=nnx.Rngs(seed)), nnx.Param)
    return {
        "/".join(str(part) for part in path): variable[...]
        for path, variable in nnx.to_flat_state(state)
    }
