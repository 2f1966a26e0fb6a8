"""Multi-head self-attention over packed sequences.

Inside a tower the tokens of all sequences are packed into one matrix `[T, W]` (`Packing`), so that
texts of several lengths share every layer that treats tokens one by one. Only attention unpacks
them.

In shapes, a leading underscore marks a dimension that differs between the buckets of a list.

Source: open_clip 3.3, `open_clip/transformer.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Shaped

from lattec_jax.models.config import TextConfig, VisionConfig
from lattec_jax.runtime import sharding

ShardingConstraint = Callable[[jax.Array], jax.Array]


class Packing(NamedTuple):
    """The layout of buckets of sequences, those of a bucket of one length, in one matrix of tokens.

    Two buckets of 4 sequences `a b c d` and 2 sequences `E F`, on two devices:

        device 0: a a a b b b E E E E E    device 1: c c c d d d F F F F F

    Every device holds an equal part of each bucket, so that packing and unpacking move no data
    between devices.
    """

    shapes: tuple[tuple[int, int], ...]  # number and length of the sequences of each bucket
    num_devices: int  # a divisor of every number of sequences

    def pack(self, buckets: Sequence[Shaped[Array, "_N _L W"]]) -> Shaped[Array, "T W"]:
        """Concatenate the tokens of all buckets, device by device."""
        width = buckets[0].shape[2]
        # [N, L, W] -> [devices, N / devices · L, W]: the first dimension of a bucket is split over
        # the devices, so this reshape is local to each.
        parts = [x.reshape(self.num_devices, -1, width) for x in buckets]
        # [devices, T / devices, W] -> [T, W]
        return jnp.concatenate(parts, axis=1).reshape(-1, width)

    def unpack(self, tokens: Float[Array, "T W"]) -> list[Float[Array, "_N _L W"]]:
        """Invert `pack`."""
        width = tokens.shape[1]
        ends = np.cumsum([count // self.num_devices * length for count, length in self.shapes])
        # [T, W] -> [devices, T / devices, W] -> of each bucket [devices, N / devices · L, W]
        parts = jnp.split(tokens.reshape(self.num_devices, -1, width), ends[:-1], axis=1)
        # -> [N, L, W]
        return [part.reshape(*shape, width) for part, shape in zip(parts, self.shapes, strict=True)]

    def one_per_sequence(self) -> Packing:
        """Return the layout of one token per sequence."""
        return Packing(tuple((count, 1) for count, _ in self.shapes), self.num_devices)

    def select(
        self, tokens: Float[Array, "T W"], positions: Sequence[Int[Array, " _N"]]
    ) -> Float[Array, "S W"]:
        """Return the token at one position of each of the S sequences (`one_per_sequence`)."""
        pooled = zip(self.unpack(tokens), positions, strict=True)
        # take_along_axis: for `x[jnp.arange(N), position]` the partitioner would gather all
        # sequences on every device. [N, L, W] -> [N, 1, W]
        return self.one_per_sequence().pack(
            [jnp.take_along_axis(x, position[:, None, None], axis=1) for x, position in pooled]
        )


def num_devices(mesh: Mesh | None) -> int:
    """Return the number of devices in the mesh, or 1 without a mesh."""
    return 1 if mesh is None else mesh.size


def activation_constraint(mesh: Mesh | None) -> ShardingConstraint:
    """Return a function that constrains activations to stay split over the batch.

    It is the identity unless parameters are split over `fsdp`. In that case the compiler could move
    the activations to the devices of the parameters. With the constraint it gathers the parameters
    instead, layer by layer.
    """
    spec = None if mesh is None else sharding.activations(mesh)
    return lambda x: x if spec is None else jax.lax.with_sharding_constraint(x, spec)


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
    """Compute attention with cuDNN, whose backward pass takes even lengths only."""
    count, length = query.shape[:2]
    if length % 2 == 0:
        return jax.nn.dot_product_attention(
            query, key, value, is_causal=is_causal, implementation="cudnn"
        )
    # An odd length gets one token of padding: [N, L, H, D] -> [N, L + 1, H, D]. The lengths mask
    # it as a key, and its query gets no gradient; its output is dropped below.
    padded = (jnp.pad(x, ((0, 0), (0, 1), (0, 0), (0, 0))) for x in (query, key, value))
    # [N], one constant: whichever part a device receives, its values are right.
    lengths = jnp.full(count, length, jnp.int32)
    attended = jax.nn.dot_product_attention(
        *padded,
        is_causal=is_causal,
        query_seq_lengths=lengths,
        key_value_seq_lengths=lengths,
        implementation="cudnn",
    )
    return attended[:, :length]


def linear(
    inputs: int, outputs: int, std: float, dtype: DTypeLike, rngs: nnx.Rngs, use_bias: bool = True
) -> nnx.Linear:
    """Return a layer whose kernel starts with this standard deviation."""
    init = nnx.initializers.normal(std)
    return nnx.Linear(inputs, outputs, use_bias=use_bias, dtype=dtype, kernel_init=init, rngs=rngs)


class Attention(nnx.Module):
    """Multi-head self-attention with one fused projection for queries, keys and values.

    In bfloat16 on NVIDIA GPUs it uses cuDNN's flash attention (`has_flash_attention`).
    """

    def __init__(
        self,
        config: VisionConfig | TextConfig,
        causal: bool,
        dtype: DTypeLike,
        mesh: Mesh | None,
        rngs: nnx.Rngs,
    ):
        width, std = config.width, config.width**-0.5
        self.heads, self.causal = config.heads, causal
        self.flash = dtype == jnp.bfloat16 and has_flash_attention(mesh, width // config.heads)
        self.qkv = linear(width, 3 * width, std, dtype, rngs)
        self.out = linear(width, width, std * (2 * config.layers) ** -0.5, dtype, rngs)

    def __call__(
        self, x: Float[Array, "T W"], packing: Packing, constrain: ShardingConstraint
    ) -> Float[Array, "T W"]:
        # [T, W] -> [T, 3W] -> of each bucket [N, L, 3W]
        buckets = packing.unpack(constrain(self.qkv(x)))
        # The attention weights [N, H, L, L] are recomputed in the backward pass; flash attention
        # never stores them.
        attend = self._attend if self.flash else jax.checkpoint(self._attend)
        # of each bucket [N, L, W] -> [T, W]
        return self.out(constrain(packing.pack([attend(qkv) for qkv in buckets])))

    def pool(
        self,
        x: Float[Array, "T W"],
        packing: Packing,
        constrain: ShardingConstraint,
        positions: Sequence[Int[Array, " _N"]],
    ) -> Float[Array, "S W"]:
        """Return what `__call__` gives for the token at one position of each sequence.

        Keys and values are computed for all tokens, queries and outputs only for these.
        """
        assert self.qkv.bias is not None  # nnx.Linear's default
        width = x.shape[1]
        # [W, 3W] and [3W]: queries first, then keys and values.
        kernel, bias = (p[...].astype(x.dtype) for p in (self.qkv.kernel, self.qkv.bias))
        one_token = packing.one_per_sequence()
        # [S, W], and [T, 2W] -> of each bucket [N, L, 2W]
        queries = constrain(packing.select(x, positions) @ kernel[:, :width] + bias[:width])
        keys_values = packing.unpack(constrain(x @ kernel[:, width:] + bias[width:]))
        # [S, W] -> of each bucket [N, 1, W]
        pooled = zip(one_token.unpack(queries), keys_values, positions, strict=True)
        attended = [self._attend_one(*bucket) for bucket in pooled]
        return self.out(constrain(one_token.pack(attended)))

    def _attend_one(
        self,
        query: Float[Array, "N 1 W"],
        key_value: Float[Array, "N L 2*W"],
        position: Int[Array, " N"],
    ) -> Float[Array, "N 1 W"]:
        by_head = map(self._split_heads, (query, *jnp.split(key_value, 2, axis=2)))
        # [L] <= [N, 1, 1, 1] -> [N, 1 (heads), 1 (query), L]
        mask = None
        if self.causal:
            mask = jnp.arange(key_value.shape[1]) <= position[:, None, None, None]
        # [N, 1, H, D] -> [N, 1, W]
        return jax.nn.dot_product_attention(*by_head, mask=mask).reshape(query.shape)

    def _attend(self, qkv: Float[Array, "N L QKV"]) -> Float[Array, "N L W"]:
        # jnp.split, not indices: the gradient of a split is one concatenation, that of three
        # indices a sum of three arrays that are mostly zero.
        by_head = map(self._split_heads, jnp.split(qkv, 3, axis=2))
        attention = flash_attention if self.flash else jax.nn.dot_product_attention
        # [N, L, H, D] -> [N, L, W]
        return attention(*by_head, is_causal=self.causal).reshape(*qkv.shape[:2], -1)

    def _split_heads(self, x: Float[Array, "N L W"]) -> Float[Array, "N L H D"]:
        count, length, width = x.shape
        return x.reshape(count, length, self.heads, width // self.heads)
