"""The transformer blocks of CLIP's towers: norm, attention, feed-forward part.

Inside of a tower the tokens of all sequences lie one after the other, `[T, W]` (`Packing`). Texts
of several lengths thus share every layer that treats tokens one by one; only attention takes them
apart again. What a backward pass needs of norm, activation and attention is computed again from
their inputs: it is cheap, and to keep it would cost several times the memory and the time of
writing and reading it.

Source: open_clip 3.3, `open_clip/transformer.py`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from lattec_jax.models.config import TextConfig, VisionConfig
from lattec_jax.runtime import sharding

Activation = Callable[[jax.Array], jax.Array]
Keep = Callable[[jax.Array], jax.Array]


class Packing(NamedTuple):
    """How the tokens of sequences of several lengths lie one after the other.

    Each of the devices has an equal part of the sequences of every length, so that putting them
    together and taking them apart moves nothing between devices.

    Attributes:
        shapes: number and length of the sequences of each group.
        devices: which divide every number.
    """

    shapes: tuple[tuple[int, int], ...]
    devices: int

    def join(self, groups: Sequence[Float[Array, "N L W"]]) -> Float[Array, "T W"]:
        """All tokens, those of a device's sequences together."""
        width = groups[0].shape[2]
        # [N, L, W] -> [devices, N / devices · L, W]
        parts = [x.reshape(self.devices, -1, width) for x in groups]
        return jnp.concatenate(parts, axis=1).reshape(-1, width)

    def separate(self, tokens: Float[Array, "T W"]) -> list[Float[Array, "N L W"]]:
        """The sequences again, group by group."""
        width = tokens.shape[1]
        ends = np.cumsum([count // self.devices * length for count, length in self.shapes])
        parts = jnp.split(tokens.reshape(self.devices, -1, width), ends[:-1], axis=1)
        return [part.reshape(*shape, width) for part, shape in zip(parts, self.shapes, strict=True)]

    def ones(self) -> Packing:
        """Of one token of each sequence."""
        return Packing(tuple((count, 1) for count, _ in self.shapes), self.devices)

    def choose(
        self, tokens: Float[Array, "T W"], places: Sequence[Int[Array, " N"]]
    ) -> Float[Array, "S W"]:
        """The token at one place of each sequence, by `ones`."""
        groups = zip(self.separate(tokens), places, strict=True)
        # Not by two indices, for which the partitioner would bring all sequences together.
        return self.ones().join(
            [jnp.take_along_axis(x, place[:, None, None], axis=1) for x, place in groups]
        )


def device_count(mesh: Mesh | None) -> int:
    """Those of a mesh; one without."""
    return 1 if mesh is None else mesh.size


def has_flash_attention(mesh: Mesh | None, head_width: int) -> bool:
    """Whether cuDNN has flash attention for these devices and heads of this width.

    Source: JAX 0.11, `check_is_flash_attention` in `jax/_src/cudnn/fused_attention_stablehlo.py`.
    """
    if mesh is None or head_width % 8 or head_width > 128:
        return False
    device = mesh.devices.flat[0]
    if device.platform != "gpu" or "NVIDIA" not in device.device_kind:
        return False
    return float(device.compute_capability) >= 8


def flash_attention(
    query: Float[Array, "N L H D"],
    key: Float[Array, "N L H D"],
    value: Float[Array, "N L H D"],
    *,
    is_causal: bool,
) -> Float[Array, "N L H D"]:
    """cuDNN's, which trains on even lengths only: an odd one gets a token that nobody sees."""
    count, length = query.shape[:2]
    if length % 2 == 0:
        return jax.nn.dot_product_attention(
            query, key, value, is_causal=is_causal, implementation="cudnn"
        )
    even = (jnp.pad(x, ((0, 0), (0, 1), (0, 0), (0, 0))) for x in (query, key, value))
    lengths = jnp.full(count, length, jnp.int32)  # all equal: of several devices any part serves
    mixed = jax.nn.dot_product_attention(
        *even,
        is_causal=is_causal,
        query_seq_lengths=lengths,
        key_value_seq_lengths=lengths,
        implementation="cudnn",
    )
    return mixed[:, :length]


def constrain(mesh: Mesh | None) -> Keep:
    """A function that keeps tokens on their devices.

    Where parameters are split, the compiler might move the activations to them instead of bringing
    the parameters together, layer by layer.
    """
    where = None if mesh is None else sharding.activations(mesh)
    return lambda x: x if where is None else jax.lax.with_sharding_constraint(x, where)


def quick_gelu(x: jax.Array) -> jax.Array:
    """OpenAI's approximation of GELU: x · sigmoid(1.702 x)."""
    return x * jax.nn.sigmoid(1.702 * x)


def exact_gelu(x: jax.Array) -> jax.Array:
    """GELU by the error function, computed in float32 as PyTorch's `nn.GELU` does.

    `jax.nn.gelu` takes its complement, which XLA computes in three times the time.
    """
    wide = x.astype(jnp.float32)
    return (0.5 * wide * (1 + jax.lax.erf(wide * np.float32(0.5**0.5)))).astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def layer_norm(
    x: Float[Array, "... W"], scale: Float[Array, " W"], bias: Float[Array, " W"], epsilon: float
) -> Float[Array, "... W"]:
    """Layer normalization in float32, in the type of `x`.

    Its gradient is written out, so that the backward pass goes over the tokens twice: once for two
    means of each token, once for the gradient of `x` and both sums over tokens together.

    Source: arXiv 1607.06450, Eq. 3; PyTorch's `nn.LayerNorm`.
    """
    return _layer_norm_forward(x, scale, bias, epsilon)[0]


def _layer_norm_forward(
    x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float
) -> tuple[jax.Array, tuple]:
    wide = x.astype(jnp.float32)
    mean = wide.mean(axis=-1, keepdims=True)
    # The fast variance E[x²] − E[x]² loses digits that the comparison with open_clip needs.
    variance = jnp.square(wide - mean).mean(axis=-1, keepdims=True)
    inverse = jax.lax.rsqrt(variance + epsilon)
    y = (wide - mean) * (inverse * scale) + bias
    return y.astype(x.dtype), (x, mean, inverse, scale)


def _layer_norm_backward(
    epsilon: float, kept: tuple, gradient: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    x, mean, inverse, scale = kept
    wide, gradient = x.astype(jnp.float32), gradient.astype(jnp.float32)
    scaled = gradient * scale
    first = scaled.mean(axis=-1, keepdims=True)
    second = (scaled * (wide - mean) * inverse).mean(axis=-1, keepdims=True)
    # Otherwise XLA writes the normalized tokens to memory for all that follows.
    first, second, mean, inverse = jax.lax.optimization_barrier((first, second, mean, inverse))
    normalized = (wide - mean) * inverse
    tokens = tuple(range(x.ndim - 1))
    return (
        (inverse * (scaled - first - normalized * second)).astype(x.dtype),
        (gradient * normalized).sum(axis=tokens),
        gradient.sum(axis=tokens),
    )


layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


class LayerNorm(nnx.Module):
    """`layer_norm` with its parameters."""

    def __init__(self, width: int, epsilon: float):
        self.epsilon = epsilon
        self.scale = nnx.Param(jnp.ones((width,)))
        self.bias = nnx.Param(jnp.zeros((width,)))

    def __call__(self, x: Float[Array, "... W"]) -> Float[Array, "... W"]:
        return layer_norm(x, self.scale[...], self.bias[...], self.epsilon)


class Attention(nnx.Module):
    """Multi-head self-attention with one fused projection for queries, keys and values.

    In bfloat16 on NVIDIA GPUs it goes through cuDNN's flash attention (`has_flash_attention`).
    """

    def __init__(
        self,
        config: VisionConfig | TextConfig,
        causal: bool,
        dtype: jnp.dtype,
        mesh: Mesh | None,
        rngs: nnx.Rngs,
    ):
        width = config.width
        out_std = width**-0.5 * (2 * config.layers) ** -0.5
        self.heads, self.causal = config.heads, causal
        self.flash = dtype == jnp.bfloat16 and has_flash_attention(mesh, width // config.heads)
        self.qkv = nnx.Linear(
            width,
            3 * width,
            dtype=dtype,
            kernel_init=nnx.initializers.normal(width**-0.5),
            rngs=rngs,
        )
        self.out = nnx.Linear(
            width, width, dtype=dtype, kernel_init=nnx.initializers.normal(out_std), rngs=rngs
        )

    def __call__(self, x: Float[Array, "T W"], packing: Packing, keep: Keep) -> Float[Array, "T W"]:
        sequences = packing.separate(keep(self.qkv(x)))
        return self.out(keep(packing.join([self._attend(qkv) for qkv in sequences])))

    def read_out(
        self,
        x: Float[Array, "T W"],
        packing: Packing,
        keep: Keep,
        places: Sequence[Int[Array, " N"]],
    ) -> Float[Array, "S W"]:
        """What `__call__` gives for the token at one place of each sequence."""
        width = x.shape[1]
        kernel, bias = (p[...].astype(x.dtype) for p in (self.qkv.kernel, self.qkv.bias))
        queries = keep(packing.choose(x, places) @ kernel[:, :width] + bias[:width])
        pairs = packing.separate(keep(x @ kernel[:, width:] + bias[width:]))
        parts = zip(packing.ones().separate(queries), pairs, places, strict=True)
        mixed = [self._mix_one(query, pair, place) for query, pair, place in parts]
        return self.out(keep(packing.ones().join(mixed)))

    def _mix_one(
        self, query: Float[Array, "N 1 W"], pair: Float[Array, "N L 2W"], place: Int[Array, " N"]
    ) -> Float[Array, "N 1 W"]:
        heads = map(self._by_head, (query, *jnp.split(pair, 2, axis=2)))
        places = jnp.arange(pair.shape[1])
        seen = places <= place[:, None, None, None] if self.causal else None
        return jax.nn.dot_product_attention(*heads, mask=seen).reshape(query.shape)

    def _attend(self, qkv: Float[Array, "N L 3W"]) -> Float[Array, "N L W"]:
        # Flash attention keeps no weights; elsewhere they are computed again.
        return self._mix(qkv) if self.flash else jax.checkpoint(self._mix)(qkv)

    def _mix(self, qkv: Float[Array, "N L 3W"]) -> Float[Array, "N L W"]:
        # Splitting is undone by putting together; the gradient of an index would be a sum of arrays
        # that are mostly zero.
        heads = map(self._by_head, jnp.split(qkv, 3, axis=2))
        mix = flash_attention if self.flash else jax.nn.dot_product_attention
        count, length, width = qkv.shape
        return mix(*heads, is_causal=self.causal).reshape(count, length, width // 3)

    def _by_head(self, x: Float[Array, "N L W"]) -> Float[Array, "N L H D"]:
        count, length, width = x.shape
        return x.reshape(count, length, self.heads, width // self.heads)


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
            width,
            hidden,
            dtype=dtype,
            kernel_init=nnx.initializers.normal((2 * width) ** -0.5),
            rngs=rngs,
        )
        self.proj = nnx.Linear(
            hidden, width, dtype=dtype, kernel_init=nnx.initializers.normal(out_std), rngs=rngs
        )

    def __call__(self, x: Float[Array, "T W"], keep: Keep) -> Float[Array, "T W"]:
        return self.proj(jax.checkpoint(self.activation)(keep(self.fc(x))))


class Block(nnx.Module):
    """Pre-norm transformer block, with a learned scale on both branches where the model has one."""

    def __init__(
        self,
        config: VisionConfig | TextConfig,
        activation: Activation,
        causal: bool,
        dtype: jnp.dtype,
        mesh: Mesh | None,
        rngs: nnx.Rngs,
    ):
        width = config.width
        self.ln_1 = LayerNorm(width, config.norm_epsilon)
        self.attn = Attention(config, causal, dtype, mesh, rngs)
        self.ln_2 = LayerNorm(width, config.norm_epsilon)
        self.mlp = MLP(config, activation, dtype, rngs)
        self.scaled = config.layer_scale is not None
        if self.scaled:
            self.layer_scale_1 = nnx.Param(jnp.full((width,), config.layer_scale))
            self.layer_scale_2 = nnx.Param(jnp.full((width,), config.layer_scale))

    def __call__(self, x: Float[Array, "T W"], packing: Packing, keep: Keep) -> Float[Array, "T W"]:
        return self._finish(x, self.attn(self.ln_1(x), packing, keep), keep)

    def read_out(
        self,
        x: Float[Array, "T W"],
        packing: Packing,
        keep: Keep,
        places: Sequence[Int[Array, " N"]],
    ) -> Float[Array, "S W"]:
        """What `__call__` gives for the token at one place of each sequence, for little more than
        the keys and values of the others."""
        attended = self.attn.read_out(self.ln_1(x), packing, keep, places)
        return self._finish(packing.choose(x, places), attended, keep)

    def _finish(
        self, x: Float[Array, "T W"], attended: Float[Array, "T W"], keep: Keep
    ) -> Float[Array, "T W"]:
        if self.scaled:
            attended = attended * self.layer_scale_1[...].astype(x.dtype)
        x = x + attended
        hidden = self.mlp(self.ln_2(x), keep)
        if self.scaled:
            hidden = hidden * self.layer_scale_2[...].astype(x.dtype)
        return x + hidden


def run_blocks(
    blocks: nnx.List,
    x: Float[Array, "T W"],
    packing: Packing,
    remat: bool,
    keep: Keep,
    places: Sequence[Int[Array, " N"]] | None = None,
) -> Float[Array, "T W"]:
    """The tokens behind all blocks; only that at one place of each sequence, by `packing.ones()`,
    where `places` says which."""

    def run(block: Block, x: jax.Array) -> jax.Array:
        return block(keep(x), packing, keep)

    def read_out(block: Block, x: jax.Array) -> jax.Array:
        return block.read_out(keep(x), packing, keep, places)

    if remat:
        run, read_out = nnx.remat(run), nnx.remat(read_out)
    *first, last = blocks
    for block in first:
        x = run(block, x)
    return keep(run(last, x) if places is None else read_out(last, x))
