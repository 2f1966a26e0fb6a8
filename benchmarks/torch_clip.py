"""What the PyTorch programs share: open_clip's model, the loss of the method, one step.

`torch_release` and `torch_best` say how each encodes its texts and moves its prototypes.
"""

from __future__ import annotations

import math
import time

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks import workload
from benchmarks.workload import Workload
from convert.names import to_flax
from tests.torch_fix import define_missing_torchvision_operators

define_missing_torchvision_operators()
from open_clip.model import CLIP  # noqa: E402


class Program:
    """A training step of LatteCLIP.

    Attributes:
        prototypes: `[C, D]`.
    """

    fused = False  # one kernel for the whole optimizer

    def __init__(self, work: Workload, dtype: str, device: str, prototypes: np.ndarray):
        self.work, self.device, self.dtype = work, device, getattr(torch, dtype)
        torch.backends.cudnn.allow_tf32 = False  # in float32 neither program rounds to fewer bits
        self.model = CLIP(**work.model_cfg)
        self.model.load_state_dict({n: torch.from_numpy(a) for n, a in work.weights.items()})
        self.model = self.model.to(device).train()
        self.prototypes = torch.from_numpy(prototypes.copy()).to(device)
        named = list(self.model.named_parameters())
        self.optimizer = torch.optim.AdamW(
            [
                {"params": [p for _, p in named if p.ndim < 2], "weight_decay": 0.0},
                {"params": [p for _, p in named if p.ndim >= 2], "weight_decay": workload.DECAY},
            ],
            lr=workload.LEARNING_RATE,
            betas=(workload.BETA1, workload.BETA2),
            eps=workload.EPSILON,
            fused=self.fused or None,
        )

    def load(self, step: int, crops: np.ndarray) -> None:
        """Place a batch on the device.

        Args:
            step: which batch.
            crops: `[B, H, W, 3]` float32, normalized.
        """
        host = self.work.batches.at(step)
        images = torch.from_numpy(crops.transpose(0, 3, 1, 2).copy())
        self.crops = images.to(self.device)
        self.zero_shot = self._put(self.work.zero_shot[host.images].astype(np.int64))
        self.load_texts(host)

    def load_texts(self, host: workload.HostBatch) -> None:
        """Place the texts of a batch on the device."""
        raise NotImplementedError

    def _put(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.asarray(array, np.int64)).to(self.device)

    def features(self) -> tuple[torch.Tensor, list[torch.Tensor], torch.Tensor, list[torch.Tensor]]:
        """Image features `[B, D]`, the class-description's of each label `[B, D]`, those of the
        descriptions `[B, K, D]`, all unit vectors, and the labels `[B]`."""
        raise NotImplementedError

    def move(self, mixed: torch.Tensor, labels: torch.Tensor) -> None:
        """Move the prototypes by the mixed texts `[B, D]` of one label."""
        raise NotImplementedError

    def margin(self, texts: torch.Tensor) -> torch.Tensor:
        """Eq. (1)."""
        best = (texts.detach() @ self.prototypes.T).topk(2, dim=-1).values
        return best[..., 0] - best[..., 1] + 1e-6

    def loss(self) -> tuple[torch.Tensor, list[torch.Tensor], list[torch.Tensor]]:
        """Eq. (2) and (3): the loss, the mixed texts and the label of each pseudo-label."""
        autocast = torch.autocast(self.device, self.dtype, enabled=self.dtype != torch.float32)
        with autocast:
            images, class_texts, descriptions, labels = self.features()
        scale = self.model.logit_scale.exp()
        target = torch.arange(len(images), device=images.device)
        total, mixed = 0.0, []
        for class_text, label in zip(class_texts, labels, strict=True):
            texts = torch.cat([class_text[:, None], descriptions], dim=1)
            weights = self.margin(texts)
            mean = (weights / weights.sum(1, keepdim=True))[..., None].mul(texts).sum(1)
            t_bar = (1 - workload.ALPHA) * mean + workload.ALPHA * self.prototypes[label]
            logits = scale * images @ t_bar.T
            total = total + F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)
            mixed.append(t_bar.detach())
        return total, mixed, labels

    def step(self) -> float:
        """Train on the loaded batch; returns the loss."""
        self.optimizer.zero_grad(set_to_none=True)
        loss, mixed, labels = self.loss()
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            self.model.logit_scale.clamp_(0, math.log(100))
            for t_bar, label in zip(mixed, labels, strict=True):
                self.move(t_bar, label)
        return loss.item()  # waits for the device

    def first(self) -> dict[str, np.ndarray]:
        """One step: the loss, gradients under our names, prototypes."""
        loss = self.step()
        gradients = {n: p.grad.float().cpu().numpy() for n, p in self.model.named_parameters()}
        gradients = to_flax(gradients, self.work.config, "gradients")
        found = {f"gradient/{name}": array for name, array in gradients.items()}
        return found | {
            "loss": np.float32(loss),
            "prototypes": self.prototypes.cpu().numpy(),
        }

    def timed(self) -> tuple[float, float]:
        """Seconds of one step, and its loss."""
        start = time.perf_counter()
        loss = self.step()
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start, loss
