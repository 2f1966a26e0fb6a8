"""The transformer blocks of CLIP's towers: layer norm, MLP and the residual branches.

The backward pass recomputes norm, activation and attention from their inputs. They are cheap to
compute; storing their results would take several times the memory, and the time to write and read
it.

Source: open_clip 3.3, `open_clip/transformer.py`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from lattec_jax.models.attention import Attention, Packing, ShardingConstraint, linear
from lattec_jax.models.config import TextConfig, VisionConfig

Activation = Callable[[jax.Array], jax.Array]


def quick_gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """OpenAI's approximation of GELU: x · sigmoid(1.702 x)."""
    return x * jax.nn.sigmoid(1.702 * x)


def exact_gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """GELU by the error function, computed in float32 as PyTorch's `nn.GELU` does.

    `jax.nn.gelu` uses the complementary error function, for which XLA takes three times as long.
    """
    x32 = x.astype(jnp.float32)
    return (0.5 * x32 * (1 + jax.lax.erf(x32 * np.float32(0.5**0.5)))).astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def layer_norm(
    x: Float[Array, "*tokens W"],
    scale: Float[Array, " W"],
    bias: Float[Array, " W"],
    epsilon: float,
) -> Float[Array, "*tokens W"]:
    """Normalize over the last dimension in float32; the result has the type of `x`.

    The gradient is written out so that the backward pass reads the tokens twice only: once for two
    means per token, once for the gradient of `x` and, in the same pass, both sums over tokens.

    Source: arXiv 1607.06450, Eq. 3; PyTorch's `nn.LayerNorm`.
    """
    return _layer_norm_forward(x, scale, bias, epsilon)[0]


def _layer_norm_forward(
    x: Float[Array, "*tokens W"],
    scale: Float[Array, " W"],
    bias: Float[Array, " W"],
    epsilon: float,
) -> tuple[Float[Array, "*tokens W"], tuple[jax.Array, ...]]:
    x32 = x.astype(jnp.float32)
    mean = x32.mean(axis=-1, keepdims=True)  # [*tokens, 1]
    # The fast variance E[x²] − E[x]² loses digits that the comparison with open_clip needs.
    variance = jnp.square(x32 - mean).mean(axis=-1, keepdims=True)
    inverse_std = jax.lax.rsqrt(variance + epsilon)
    y = (x32 - mean) * (inverse_std * scale) + bias
    return y.astype(x.dtype), (x, mean, inverse_std, scale)


def _layer_norm_backward(
    epsilon: float, residuals: tuple[jax.Array, ...], dy: Float[Array, "*tokens W"]
) -> tuple[Float[Array, "*tokens W"], Float[Array, " W"], Float[Array, " W"]]:
    # One token has W entries x. With x̂ = (x − μ) / σ, σ² = var(x) + ε, y = s x̂ + b and g = s dy,
    # the gradient of the loss by x̂. μ depends on every entry, ∂μ/∂xⱼ = 1/W, and so does σ,
    # ∂σ/∂xⱼ = x̂ⱼ/W, hence
    #   ∂x̂ᵢ/∂xⱼ = (δᵢⱼ − 1/W − x̂ᵢ x̂ⱼ/W) / σ
    #   dxⱼ = Σᵢ gᵢ ∂x̂ᵢ/∂xⱼ = (gⱼ − mean(g) − x̂ⱼ mean(g x̂)) / σ
    # Scale and bias are shared by all tokens: ds = Σ dy x̂ and db = Σ dy over the tokens.
    x, mean, inverse_std, scale = residuals
    x32, dy = x.astype(jnp.float32), dy.astype(jnp.float32)
    g = dy * scale
    mean_g = g.mean(axis=-1, keepdims=True)  # [*tokens, 1]
    mean_g_xhat = (g * (x32 - mean) * inverse_std).mean(axis=-1, keepdims=True)  # [*tokens, 1]
    # The first pass ends here. Without the barrier XLA would compute x̂ once for both passes and
    # write it to memory, which costs more than to compute it again.
    mean_g, mean_g_xhat, mean, inverse_std = jax.lax.optimization_barrier(
        (mean_g, mean_g_xhat, mean, inverse_std)
    )
    xhat = (x32 - mean) * inverse_std
    tokens = tuple(range(x.ndim - 1))
    return (
        (inverse_std * (g - mean_g - xhat * mean_g_xhat)).astype(x.dtype),
        (dy * xhat).sum(axis=tokens),
        dy.sum(axis=tokens),
    )


layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


class LayerNorm(nnx.Module):
    """`layer_norm` with its parameters."""

    def __init__(self, width: int, epsilon: float):
        self.epsilon = epsilon
        self.scale = nnx.Param(jnp.ones((width,)))
        self.bias = nnx.Param(jnp.zeros((width,)))

    def __call__(self, x: Float[Array, "*tokens W"]) -> Float[Array, "*tokens W"]:
        return layer_norm(x, self.scale[...], self.bias[...], self.epsilon)


class MLP(nnx.Module):
    """Two linear layers around the activation."""

    def __init__(
        self,
        config: VisionConfig | TextConfig,
        activation: Activation,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        width, hidden = config.width, int(config.width * config.mlp_ratio)
        self.activation = activation
        self.fc = linear(width, hidden, (2 * width) ** -0.5, dtype, rngs)
        out_std = width**-0.5 * (2 * config.layers) ** -0.5
        self.proj = linear(hidden, width, out_std, dtype, rngs)

    def __call__(
        self, x: Float[Array, "T W"], constrain: ShardingConstraint
    ) -> Float[Array, "T W"]:
        # [T, W] -> [T, hidden] -> [T, W]; only the input of the activation is stored.
        return self.proj(jax.checkpoint(self.activation)(constrain(self.fc(x))))


class Block(nnx.Module):
    """Pre-norm transformer block, with a learned scale on both branches where the model has one."""

    def __init__(
        self,
        config: VisionConfig | TextConfig,
        activation: Activation,
        causal: bool,
        dtype: DTypeLike,
        mesh: Mesh | None,
        rngs: nnx.Rngs,
    ):
        width = config.width
        self.ln_1 = LayerNorm(width, config.norm_epsilon)
        self.attn = Attention(config, causal, dtype, mesh, rngs)
        self.ln_2 = LayerNorm(width, config.norm_epsilon)
        self.mlp = MLP(config, activation, dtype, rngs)
        self.has_layer_scale = config.layer_scale is not None
        if config.layer_scale is not None:
            self.layer_scale_1 = nnx.Param(jnp.full((width,), config.layer_scale))
            self.layer_scale_2 = nnx.Param(jnp.full((width,), config.layer_scale))

    def __call__(
        self, x: Float[Array, "T W"], packing: Packing, constrain: ShardingConstraint
    ) -> Float[Array, "T W"]:
        return self._add_branches(x, self.attn(self.ln_1(x), packing, constrain), constrain)

    def pool(
        self,
        x: Float[Array, "T W"],
        packing: Packing,
        constrain: ShardingConstraint,
        positions: Sequence[Int[Array, " _N"]],
    ) -> Float[Array, "S W"]:
        """Return what `__call__` gives for the token at one position of each sequence.

        Of the other tokens only keys and values are computed.
        """
        attended = self.attn.pool(self.ln_1(x), packing, constrain, positions)
        return self._add_branches(packing.select(x, positions), attended, constrain)

    def _add_branches(
        self, x: Float[Array, "T W"], attended: Float[Array, "T W"], constrain: ShardingConstraint
    ) -> Float[Array, "T W"]:
        if self.has_layer_scale:
            attended = attended * self.layer_scale_1[...].astype(x.dtype)
        x = x + attended
        hidden = self.mlp(self.ln_2(x), constrain)
        if self.has_layer_scale:
            hidden = hidden * self.layer_scale_2[...].astype(x.dtype)
        return x + hidden


def run_blocks(
    blocks: Sequence[Block],
    x: Float[Array, "T W"],
    packing: Packing,
    remat: bool,
    constrain: ShardingConstraint,
    pool_positions: Sequence[Int[Array, " _N"]] | None = None,
) -> Float[Array, "_T W"]:
    """Run a tower's blocks.

    Args:
        remat: recompute each block in the backward pass instead of storing its activations.
        pool_positions: the position of the pooled token of each sequence, of which `[S, W]` are
            returned (`packing.one_per_sequence()`): then the last block computes no others. None:
            all tokens `[T, W]` are returned.
    """

    def run(block: Block, x: jax.Array) -> jax.Array:
        return block(constrain(x), packing, constrain)

    def run_last(block: Block, x: jax.Array) -> jax.Array:
        if pool_positions is None:
            return block(constrain(x), packing, constrain)
        return block.pool(constrain(x), packing, constrain, pool_positions)

    if remat:
        run, run_last = nnx.remat(run), nnx.remat(run_last)
    *first, last = blocks
    for block in first:
        x = run(block, x)
    return constrain(run_last(last, x))
