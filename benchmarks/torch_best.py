"""The same step in PyTorch, with every optimization that we know of.

Each text is encoded once, at the bucket lengths that ours uses (`lattec_jax.data.text.bucketing`);
attention is `scaled_dot_product_attention` on one fused projection with the causal flag instead of
a mask; the last block computes only the pooled token; AdamW is fused; prototypes are updated by one
scatter. `compiling` applies `torch.compile` to both encoders.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F

from benchmarks.torch_clip import Program
from benchmarks.workload import MOMENTUM, HostBatch


def block(layer: torch.nn.Module, x: torch.Tensor, causal: bool) -> torch.Tensor:
    """Compute a residual block of open_clip, `[B, L, W] -> [B, L, W]`."""
    batch, length, width = x.shape
    heads = layer.attn.num_heads
    qkv = F.linear(layer.ln_1(x), layer.attn.in_proj_weight, layer.attn.in_proj_bias)
    # [B, L, 3W] -> three of [B, H, L, W/H]
    query, key, value = qkv.view(batch, length, 3, heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
    mixed = F.scaled_dot_product_attention(query, key, value, is_causal=causal)
    mixed = mixed.transpose(1, 2).reshape(batch, length, width)
    x = x + layer.attn.out_proj(mixed)
    return x + layer.mlp(layer.ln_2(x))


def pooled_block(
    layer: torch.nn.Module, x: torch.Tensor, positions: torch.Tensor, causal: bool
) -> torch.Tensor:
    """Compute `block` for the token at one position of each sequence, `[B, L, W] -> [B, W]`."""
    batch, length, width = x.shape
    heads, batch_indices = layer.attn.num_heads, torch.arange(batch, device=x.device)
    weight, bias = layer.attn.in_proj_weight, layer.attn.in_proj_bias
    normed = layer.ln_1(x)
    query = F.linear(normed[batch_indices, positions], weight[:width], bias[:width])
    query = query.view(batch, heads, 1, -1)
    pairs = F.linear(normed, weight[width:], bias[width:])
    key, value = pairs.view(batch, length, 2, heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
    mask = None
    if causal:
        mask = (torch.arange(length, device=x.device) <= positions[:, None])[:, None, None]
    mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    x = x[batch_indices, positions] + layer.attn.out_proj(mixed.reshape(batch, width))
    return x + layer.mlp(layer.ln_2(x))


def encode_image(model: torch.nn.Module, crops: torch.Tensor) -> torch.Tensor:
    """Encode crops `[B, 3, H, W]` as unit features `[B, D]`, for a tower with a class token."""
    tower = model.visual
    x = tower.conv1(crops).flatten(2).transpose(1, 2)  # [B, L - 1, W]
    cls = tower.class_embedding.to(x.dtype).expand(len(x), 1, -1)
    x = tower.ln_pre(torch.cat([cls, x], dim=1) + tower.positional_embedding.to(x.dtype))
    *first, last = tower.transformer.resblocks
    for layer in first:
        x = block(layer, x, causal=False)
    x = pooled_block(last, x, torch.zeros(len(x), dtype=torch.long, device=x.device), causal=False)
    return F.normalize((tower.ln_post(x) @ tower.proj).float(), dim=-1)


def encode_text(model: torch.nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """Encode tokens `[M, L]` as unit features `[M, D]`, for a causal tower pooled at the end."""
    x = model.token_embedding(tokens) + model.positional_embedding[: tokens.shape[1]]
    if torch.is_autocast_enabled(tokens.device.type):
        x = x.to(torch.get_autocast_dtype(tokens.device.type))
    *first, last = model.transformer.resblocks
    for layer in first:
        x = block(layer, x, causal=True)
    x = pooled_block(last, x, tokens.argmax(dim=1), causal=True)
    return F.normalize((model.ln_final(x) @ model.text_projection).float(), dim=-1)


@cache
def compiled_encoders() -> tuple[Callable, Callable]:
    """Return `encode_image` and `encode_text` by `torch.compile`, which is slow to import."""
    return torch.compile(encode_image, dynamic=False), torch.compile(encode_text, dynamic=False)


class Best(Program):
    """The program; `compiling` switches `torch.compile` on or off."""

    fused = True
    encode_image = staticmethod(encode_image)
    encode_text = staticmethod(encode_text)

    def compiling(self, enable: bool) -> None:
        """Use compiled encoders; each text length is compiled separately, when first used."""
        plain = encode_image, encode_text
        self.encode_image, self.encode_text = compiled_encoders() if enable else plain

    def load_texts(self, host: HostBatch) -> None:
        """Place a token matrix for each bucket of the plan."""
        tokens = self.work.description_tokens
        self.buckets = [
            self._put(tokens[indices, :length])
            for indices, length in zip(host.text_indices, host.bucket_lengths, strict=True)
        ]
        self.positions = self._put(host.text_positions)
        self.class_tokens = self._put(self.work.cropped_classes())

    def features(self) -> tuple:
        """See `Program`."""
        images = self.encode_image(self.model, self.crops)
        labels = [self.zero_shot, (images.detach() @ self.prototypes.T).argmax(dim=1)]
        classes, count = self.class_tokens, len(self.class_tokens)
        positions = torch.stack(labels)
        if count > positions.numel():  # encode only the classes that the labels name
            named, positions = torch.unique(positions, return_inverse=True)
            # Padded to one size, or every batch would be compiled separately.
            classes = classes[F.pad(named, (0, positions.numel() - len(named)))]
        buckets = [classes, *self.buckets]
        lengths = sorted({tokens.shape[1] for tokens in buckets})
        encoded = {}
        for length in lengths:
            same = [i for i, tokens in enumerate(buckets) if tokens.shape[1] == length]
            features = self.encode_text(self.model, torch.cat([buckets[i] for i in same]))
            parts = features.split([len(buckets[i]) for i in same])
            encoded |= dict(zip(same, parts, strict=True))
        texts = torch.cat([encoded[i] for i in range(1, len(buckets))])[self.positions]
        # [B · K, D] -> [B, K, D]
        descriptions = texts.view(len(images), -1, texts.shape[1])
        return images, list(encoded[0][positions]), descriptions, labels

    def move(self, mixed: torch.Tensor, labels: torch.Tensor) -> None:
        """See `Program`; all classes at once."""
        sums = torch.zeros_like(self.prototypes).index_add_(0, labels, mixed)
        counts = torch.bincount(labels, minlength=len(sums))[:, None]
        moved = (1 - MOMENTUM) * sums / counts.clamp(min=1) + MOMENTUM * self.prototypes
        self.prototypes = torch.where(counts > 0, F.normalize(moved, dim=-1), self.prototypes)
