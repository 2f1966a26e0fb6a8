"""The step of the authors' released code, on open_clip's model.

Four texts of 77 tokens per image (the class description of each of its two pseudo-labels, the image
description and the group description), automatic mixed precision, the default AdamW of
`torch.optim`, a loop over the classes for the prototypes. The loss is the paper's, as in ours.
"""

from __future__ import annotations

import numpy as np
import torch

from benchmarks.torch_clip import Program
from benchmarks.workload import KINDS, MOMENTUM, HostBatch


class Release(Program):
    """The program; `checkpointing` switches gradient checkpointing on or off."""

    def checkpointing(self, enable: bool) -> None:
        """Recompute the blocks in the backward pass, as the released scripts do."""
        self.model.set_grad_checkpointing(enable)

    def load_texts(self, host: HostBatch) -> None:
        """Place a text for each image and kind."""
        indices = host.text_images * len(KINDS) + np.arange(len(KINDS))  # [B, K]
        self.descriptions = [self._put(self.work.description_tokens[i]) for i in indices.T]
        self.class_tokens = self._put(self.work.class_tokens)

    def features(self) -> tuple:
        """See `Program`."""
        images = self.model.encode_image(self.crops, normalize=True).float()
        labels = [self.zero_shot, (images.detach() @ self.prototypes.T).argmax(dim=1)]
        encode = self.model.encode_text
        class_texts = [encode(self.class_tokens[n], normalize=True).float() for n in labels]
        texts = [encode(tokens, normalize=True).float() for tokens in self.descriptions]
        return images, class_texts, torch.stack(texts, dim=1), labels

    def move(self, mixed: torch.Tensor, labels: torch.Tensor) -> None:
        """See `Program`; one class after the other."""
        for label in range(len(self.prototypes)):
            chosen = labels == label
            if chosen.any():
                moved = (1 - MOMENTUM) * mixed[chosen].mean(0) + MOMENTUM * self.prototypes[label]
                self.prototypes[label] = moved / moved.norm()
