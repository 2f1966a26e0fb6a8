"""The training loop of the authors' released code, stated once more for comparisons.

Written from a reading of `train_one_epoch_v2` (astra-vision/LatteCLIP, `src/training/train.py`) in
PyTorch, with loops and without anything of `lattec_jax`. Two bugs of that function are options.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

# The `[B]` weights of the class texts multiply the `[B, D]` features along D.
ALONG_FEATURES = "along_features"
# The class texts of the zero-shot labels have the numerators of the current labels' weights.
WEIGHTS_OF_CURRENT = "weights_of_current"


class Batch(NamedTuple):
    """What the data loader of the released code yields."""

    images: Tensor  # [B, 3, H, W]
    image_texts: Tensor  # [B, L] tokens of the image-descriptions
    group_texts: Tensor  # [B, L] tokens of the group-descriptions, already redrawn
    zero_shot: list[int]  # B labels


class Outcome(NamedTuple):
    """What the loop leaves behind."""

    losses: list[float]
    prototypes: np.ndarray  # [C, D]
    params: dict[str, np.ndarray]


def margins(texts: Tensor, prototypes: Tensor) -> Tensor:
    """`[B]` weights, without gradient."""
    found = []
    for text in texts.detach():
        first, second = sorted((text @ p for p in prototypes), reverse=True)[:2]
        found.append(first - second + 1e-6)
    return torch.stack(found)


def contrast(images: Tensor, texts: Tensor, logit_scale: Tensor) -> Tensor:
    """OpenCLIP's loss: the mean of both directions."""
    logits = logit_scale * images @ texts.T
    rows, columns = torch.log_softmax(logits, 1), torch.log_softmax(logits, 0)
    return -(rows.diagonal().mean() + columns.diagonal().mean()) / 2


def mixture(
    own: Tensor, class_weights: Tensor, divisor: Tensor, others: list[Tensor],
    other_weights: list[Tensor], bugs: Sequence[str],
) -> Tensor:  # fmt: skip
    """`[B, D]` weighted means of an image's texts.

    Args:
        own: features of the class text of each image.
        class_weights: in the numerator.
        divisor: the class texts' weights in the denominator.
        others: features of the other texts.
        other_weights: theirs.
        bugs: those to reproduce.
    """
    along_features = ALONG_FEATURES in bugs
    total = own * (class_weights[None, :] if along_features else class_weights[:, None])
    weight = divisor
    for texts, weights in zip(others, other_weights, strict=True):
        total = total + texts * weights[:, None]
        weight = weight + weights
    return total / weight[:, None]


def train(
    model: Any,
    class_tokens: Tensor,
    epochs: Sequence[Sequence[Batch]],
    *,
    learning_rate: float,
    warmup: int,
    weight_decay: float,
    alpha: float = 0.01,  # the script's: the weight of the new texts against the prototypes
    bugs: Sequence[str] = (),
) -> Outcome:
    """Train `model`, an open_clip CLIP, in place."""
    decayed, others = [], []
    for name, parameter in model.named_parameters():
        exempt = parameter.ndim < 2 or any(part in name for part in ("bn", "ln", "bias"))
        (others if exempt or "logit_scale" in name else decayed).append(parameter)
    optimizer = torch.optim.AdamW(
        [
            {"params": others, "weight_decay": 0.0},
            {"params": decayed, "weight_decay": weight_decay},
        ],
        lr=learning_rate,
        betas=(0.9, 0.98),
        eps=1e-6,
    )
    with torch.no_grad():
        bank = list(model.encode_text(class_tokens, normalize=True))
    total_steps = sum(map(len, epochs))
    step, losses = 0, []
    for epoch in epochs:
        at_start = torch.stack(bank)  # the weights compare with these for the whole epoch
        for batch in epoch:
            if step < warmup:
                rate = learning_rate * (step + 1) / warmup
            else:
                passed = (step - warmup) / (total_steps - warmup)
                rate = learning_rate * (1 + math.cos(math.pi * passed)) / 2
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.zero_grad()

            images = model.encode_image(batch.images, normalize=True)
            logit_scale = model.logit_scale.exp()
            current = [int(torch.stack([f @ p for p in bank]).argmax()) for f in images.detach()]
            described = [
                model.encode_text(tokens, normalize=True)
                for tokens in (batch.image_texts, batch.group_texts)
            ]
            description_weights = [margins(texts, at_start) for texts in described]
            mixed, class_weights = {}, {}
            for name, labels in (("current", current), ("zero_shot", batch.zero_shot)):
                own = model.encode_text(class_tokens[labels], normalize=True)
                divisor = class_weights[name] = margins(own, at_start)
                numerator = class_weights["current" if WEIGHTS_OF_CURRENT in bugs else name]
                mean = mixture(own, numerator, divisor, described, description_weights, bugs)
                anchor = torch.stack([bank[label] for label in labels])
                mixed[name] = anchor + alpha * (mean - anchor)
            loss = contrast(images, mixed["current"], logit_scale)
            loss = loss + contrast(images, mixed["zero_shot"], logit_scale)
            loss.backward()
            losses.append(loss.item())

            for label in set(current) | set(batch.zero_shot):
                texts = [t for t, c in zip(mixed["current"], current, strict=True) if c == label]
                zero_shot = zip(mixed["zero_shot"], batch.zero_shot, strict=True)
                texts += [t for t, c in zero_shot if c == label]
                mean = torch.stack(texts).detach().mean(0)
                bank[label] = mean / mean.norm()
            optimizer.step()
            with torch.no_grad():
                model.logit_scale.clamp_(0, math.log(100))
            step += 1
    params = {name: p.detach().numpy().copy() for name, p in model.named_parameters()}
    return Outcome(losses, torch.stack(bank).numpy(), params)
