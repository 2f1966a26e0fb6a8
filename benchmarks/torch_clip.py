"""Base of the PyTorch programs: open_clip's model, the loss of LatteCLIP, one step.

`torch_release` and `torch_best` implement the encoding of texts and the update of prototypes.
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

    fused = False  # one kernel for the full optimizer update

    def __init__(self, work: Workload, dtype: str, device: str, prototypes: np.ndarray):
        self.work, self.device, self.dtype = work, device, getattr(torch, dtype)
        torch.backends.cudnn.allow_tf32 = False  # float32 without reduced precision
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
            step: selects the batch.
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
        """Return unit features and labels.

        Returns:
            Images `[B, D]`; for each kind of label the class descriptions `[B, D]`; descriptions
            `[B, K, D]`; and for each kind of label `[B]`.
        """
        raise NotImplementedError

    def move(self, mixed: torch.Tensor, labels: torch.Tensor) -> None:
        """Update the prototypes with the mixed texts `[B, D]` of one kind of label `[B]`."""
        raise NotImplementedError

    def margin(self, texts: torch.Tensor) -> torch.Tensor:
        """Compute the mixer weights, Eq. (1)."""
        best = (texts.detach() @ self.prototypes.T).topk(2, dim=-1).values
        return best[..., 0] - best[..., 1] + 1e-6

    def loss(self) -> tuple[torch.Tensor, list[torch.Tensor], list[torch.Tensor]]:
        """Return the loss, Eq. (2) and (3), and mixed texts and labels of each kind of label."""
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
        """Train on the loaded batch and return the loss."""
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
        """Run one step; return the loss, the gradients under our names, and the prototypes."""
        loss = self.step()
        gradients = {n: p.grad.float().cpu().numpy() for n, p in self.model.named_parameters()}
        gradients = to_flax(gradients, self.work.config, "gradients")
        found = {f"gradient/{name}": array for name, array in gradients.items()}
        return found | {
            "loss": np.float32(loss),
            "prototypes": self.prototypes.cpu().numpy(),
        }

    def timed(self) -> tuple[float, float]:
        """Return the seconds of one step, and its loss."""
        start = time.perf_counter()
        loss = self.step()
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start, loss
