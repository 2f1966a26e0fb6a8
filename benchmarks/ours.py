"""Our training step, built like in `lattec_jax.train`, with a device-resident image cache."""

from __future__ import annotations

import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import workload
from benchmarks.workload import Workload
from configs.common import get_config
from convert.names import to_flax
from lattec_jax.data.images.image_cache import ImageCache
from lattec_jax.methods.base import Targets
from lattec_jax.methods.latteclip import LatteCLIP
from lattec_jax.models.clip import bind, define
from lattec_jax.runtime import sharding
from lattec_jax.training.augmentation import Augmentation, apply_augment, sample_augment_params
from lattec_jax.training.input_pipeline import device_batches
from lattec_jax.training.state import init_state, learning_rate_schedule, make_optimizer
from lattec_jax.training.step import DeviceData, StepSettings, make_train_step

STEPS = 1800  # of the schedule


class Ours:
    """A training step of LatteCLIP with the paper's settings."""

    def __init__(self, work: Workload, dtype: str):
        config = get_config()
        section = config.train
        section.learning_rate = workload.LEARNING_RATE
        self.work = work
        self.mesh = sharding.make_mesh(1, jax.devices()[:1])
        self.params = to_flax(work.weights, work.config, "the workload")
        self.definition = define(work.config, dtype=jnp.dtype(dtype), mesh=self.mesh)
        self.settings = StepSettings(
            work.config.vision.image_size,
            workload.MEAN,
            workload.STD,
            Augmentation.from_config(config.augment),
        )
        method = LatteCLIP(workload.ALPHA, workload.MOMENTUM)
        schedule = learning_rate_schedule(section, STEPS)
        optimizer = make_optimizer(section, schedule)
        # Of the frozen model in float32: the programs in PyTorch start from the same ones.
        first = define(work.config)
        encode = jax.jit(lambda params, tokens: bind(first, params).encode_text(tokens))
        self.prototypes = np.asarray(encode(self.params, work.cropped_classes()))
        method_state = method.init(jnp.asarray(self.prototypes), len(work.pixels))
        params = sharding.shard_params(self.params, self.mesh)
        self.state = init_state(params, optimizer, method_state, self.mesh)
        del params
        self.jitted = make_train_step(
            self.definition, method, optimizer, schedule, self.settings, self.mesh
        )
        self.device_data = self._device_data()
        self.compiled = None

    def _device_data(self) -> DeviceData:
        work, count = self.work, len(self.work.pixels)
        sizes = np.full((count, 2), workload.SIDE, np.int32)
        self.cache = ImageCache(tuple(map(str, range(count))), work.pixels, sizes, ())
        device_data = DeviceData(
            class_tokens=work.cropped_classes(),
            description_tokens=work.description_tokens,
            present=np.ones((count, len(workload.KINDS)), bool),
            targets=Targets(work.zero_shot),
            pixels=work.pixels,
            sizes=sizes,
        )
        return jax.device_put(device_data, sharding.replicated(self.mesh))

    def crops(self, step: int) -> np.ndarray:
        """Return the crops `[B, H, W, 3]` that the step makes of a batch, normalized."""
        images = self.work.batches.at(step).images
        key = jax.random.fold_in(jax.random.key(self.state.seed), step)
        size = self.settings.image_size
        sizes, augmentation = self.device_data.sizes[images], self.settings.augmentation
        crop = jax.jit(
            lambda pixels: apply_augment(
                pixels, sample_augment_params(key, sizes, augmentation), size
            )
        )
        crops = crop(self.device_data.pixels[images])
        return np.asarray((crops - jnp.array(workload.MEAN)) / jnp.array(workload.STD), np.float32)

    def load(self, step: int) -> None:
        """Place a batch on the device, of a step that is not logged, as most are."""
        ((self.host, self.batch),) = device_batches(
            *(self.work.batches, self.cache, self.device_data, step, step + 1, self.mesh),
            is_logged=lambda _: False,
        )
        self.state = self.state.replace(step=jnp.asarray(step, jnp.int32))

    def compile(self) -> float:
        """Compile without a compilation cache; return the seconds."""
        start = time.perf_counter()
        lowered = self.jitted.lower(
            self.state, self.device_data, self.batch, self.host.bucket_lengths
        )
        self.compiled = lowered.compile()
        return time.perf_counter() - start

    def step(self) -> float:
        """Train on the loaded batch and return the loss."""
        self.state, metrics = self.compiled(self.state, self.device_data, self.batch)
        jax.block_until_ready(self.state)
        return float(metrics["loss"])

    def first(self) -> dict[str, np.ndarray]:
        """Run one step; return the loss, gradients and prototypes.

        After its first step, AdamW's first moment is the gradient times 1 − β₁. Thus these are the
        gradients of the step that is timed.
        """
        loss = self.step()
        moments = optax.tree.get(self.state.optimizer, "mu")
        found = {
            f"gradient/{name}": np.asarray(value) / (1 - workload.BETA1)
            for name, value in moments.items()
        }
        return found | {
            "loss": np.float32(loss),
            "prototypes": np.asarray(self.state.method.current),
        }

    def timed(self) -> tuple[float, float]:
        """Return the seconds of one step, and its loss."""
        start = time.perf_counter()
        loss = self.step()
        return time.perf_counter() - start, loss
