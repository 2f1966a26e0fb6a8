"""A whole step of ours against PyTorch autograd on the same converted model."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from convert.names import to_open_clip
from lattec_jax.data.text.bucketing import text_lengths
from lattec_jax.methods.base import Targets
from lattec_jax.methods.flyp import FLYP
from lattec_jax.methods.latteclip import LatteCLIP
from lattec_jax.methods.reclip import Copies, ReCLIP
from lattec_jax.models.clip import define
from lattec_jax.runtime import sharding
from lattec_jax.training.microbatches import StepEncoder
from lattec_jax.training.step import Batch, DeviceData, compute_features_and_labels
from tests.methods.reference import unit
from tests.openclip_models import flat_params, random_open_clip, shrunken

B, C, K = 12, 5, 2
WORDS = 300  # token ids below the start and the end token


def tokens_of(rng: np.random.Generator, count: int, length: int) -> np.ndarray:
    """CLIP token matrices of random words."""
    tokens = np.zeros((count, 77), np.int32)
    for row in tokens:
        used = rng.integers(3, length + 1)
        row[:used] = rng.integers(3, WORDS, used)
        row[0], row[used - 1] = WORDS, WORDS + 1
    return tokens


class Setting:
    """One batch, for both frameworks."""

    def __init__(self, layers: int) -> None:
        self.config = shrunken(
            "ViT-B-32-quickgelu", {"layers": layers}, {"layers": layers, "vocab_size": WORDS + 2}
        )
        self.model = random_open_clip(self.config)
        self.ours, self.params = flat_params(self.model, self.config)
        rng = np.random.default_rng(3)
        self.images = rng.normal(size=(B, 32, 32, 3)).astype(np.float32)
        self.class_tokens = tokens_of(rng, C, 9)
        self.description_tokens = tokens_of(rng, B * K, 20)
        self.zero_shot = rng.integers(0, C, B).astype(np.int32)
        prototypes = rng.normal(size=(C, self.ours.embed_dim)).astype(np.float32)
        self.prototypes = prototypes / np.linalg.norm(prototypes, axis=1, keepdims=True)

    def gradient(
        self, method, state, frozen: np.ndarray | None = None
    ) -> tuple[float, dict[str, np.ndarray], np.ndarray]:
        """Loss, gradients by flat name, labels; `frozen` are features of another model."""
        mesh = sharding.make_mesh()
        definition = define(self.ours, mesh=mesh)
        lengths = text_lengths(self.class_tokens, self.ours.text)
        kinds = len(method.description_kinds)
        device_data = DeviceData(
            class_tokens=jnp.asarray(self.class_tokens[:, : lengths.max()]),
            description_tokens=jnp.asarray(self.description_tokens),
            present=jnp.ones((B, kinds), bool),
            targets=Targets(jnp.asarray(self.zero_shot), jnp.asarray(self.zero_shot)),
            pixels=None,
            sizes=None,
            pretrained_features=None if frozen is None else jnp.asarray(frozen),
        )
        images = jnp.arange(B)
        batch = Batch(
            images=images,
            text_indices=(jnp.arange(B * kinds),) if kinds else (),
            text_positions=jnp.arange(B * kinds),
            text_images=jnp.repeat(images[:, None], kinds, axis=1),
            ends_epoch=jnp.asarray(False),
            is_logged=jnp.asarray(True),
        )

        def loss(params):
            encoder = StepEncoder(definition, params, mesh)
            image_features = encoder.encode_images(jnp.asarray(self.images), lambda images: images)
            lengths = (32,) if kinds else ()
            features, labels = compute_features_and_labels(
                encoder, method, state, image_features, device_data, batch, lengths
            )
            return method.loss(features, labels, state)[0], labels

        (value, labels), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(self.params)
        return float(value), jax.device_get(gradient), np.asarray(labels)

    def torch_features(self):
        """Image, class and description features with PyTorch's graph behind them."""
        torch = pytest.importorskip("torch")
        images = torch.from_numpy(self.images.transpose(0, 3, 1, 2).copy())
        encode = lambda t: self.model.encode_text(torch.from_numpy(t).long(), normalize=True)  # noqa: E731
        return (
            self.model.encode_image(images, normalize=True),
            encode(self.class_tokens),
            encode(self.description_tokens).reshape(B, K, -1),
        )

    def assert_gradients_equal(
        self, gradient: dict[str, np.ndarray], only: set[str] | None = None
    ) -> None:
        """Our gradients under OpenCLIP's names against `.grad`, tensor by tensor, all or `only`."""
        theirs = {name: p.grad.numpy() for name, p in self.model.named_parameters()}
        converted = to_open_clip({k: np.asarray(v) for k, v in gradient.items()}, self.ours)
        assert converted.keys() == theirs.keys()
        for name in theirs.keys() if only is None else only:
            expected = theirs[name]
            size = np.linalg.norm(expected)
            assert size > 0, name
            assert np.linalg.norm(converted[name] - expected) <= 1e-4 * size, name


def torch_info_nce(torch, images, texts, logit_scale):
    """The sum of the two directions, by PyTorch's cross-entropy."""
    logits = logit_scale * images @ texts.T
    target = torch.arange(len(images))
    cross_entropy = torch.nn.functional.cross_entropy
    return cross_entropy(logits, target) + cross_entropy(logits.T, target)


def test_latteclip_step_equals_pytorch():
    torch = pytest.importorskip("torch")
    setting, alpha = Setting(layers=2), 0.6
    method = LatteCLIP(alpha, 0.9)
    state = method.init(jnp.asarray(setting.prototypes), B)
    value, gradient, labels = setting.gradient(method, state)

    images, class_texts, descriptions = setting.torch_features()
    prototypes = torch.from_numpy(setting.prototypes)
    current = (images @ prototypes.T).argmax(1)
    np.testing.assert_array_equal(labels[1], current.numpy())
    logit_scale, loss = setting.model.logit_scale.exp(), 0.0
    for label in (torch.from_numpy(setting.zero_shot).long(), current):
        texts = torch.cat([class_texts[label][:, None], descriptions], dim=1)
        best = (texts @ prototypes.T).detach().topk(2, dim=-1).values
        weights = best[..., 0] - best[..., 1] + 1e-6
        mean = (weights[..., None] * texts).sum(1) / weights.sum(1, keepdim=True)
        t_bar = (1 - alpha) * mean + alpha * prototypes[label]
        loss = loss + torch_info_nce(torch, images, t_bar, logit_scale)
    loss.backward()
    assert value == pytest.approx(loss.item(), rel=2e-6)
    setting.assert_gradients_equal(gradient)


@pytest.mark.parametrize("oracle", [False, pytest.param(True, marks=pytest.mark.full)])
def test_flyp_step_equals_pytorch(oracle: bool):
    torch = pytest.importorskip("torch")
    setting = Setting(layers=1)
    value, gradient, labels = setting.gradient(FLYP(oracle=oracle), ())
    images, class_texts, _ = setting.torch_features()
    label = torch.from_numpy(setting.zero_shot).long()
    if not oracle:
        label = (images @ class_texts.T).argmax(1)
    np.testing.assert_array_equal(labels[0], label.numpy())
    logit_scale = setting.model.logit_scale.exp()
    loss = torch_info_nce(torch, images, class_texts[label], logit_scale)
    loss.backward()
    assert value == pytest.approx(loss.item(), rel=2e-6)
    setting.assert_gradients_equal(gradient)


def test_reclip_step_equals_pytorch():
    """The repository's two losses, V's without its second division; layer norms only."""
    torch = pytest.importorskip("torch")
    setting, method = Setting(layers=1), ReCLIP()
    rng = np.random.default_rng(8)
    frozen = unit(rng.normal(size=(B, setting.ours.embed_dim))).astype(np.float32)
    labels = rng.integers(0, C, (2, B)).astype(np.int32)
    labels[1, :7] = labels[0, :7]
    agree = labels[0] == labels[1]
    assert 0 < agree.sum() < B
    state = Copies(*(jnp.asarray(setting.prototypes),) * 2, jnp.asarray(labels))
    value, gradient, found = setting.gradient(method, state, frozen)
    np.testing.assert_array_equal(found, labels)
    assert bool(method.should_update(jnp.asarray(found)))

    images, class_texts, _ = setting.torch_features()
    logit_scale = setting.model.logit_scale.exp().detach()
    cross_entropy = torch.nn.CrossEntropyLoss(reduction="none")
    loss, confident = 0.0, torch.from_numpy(agree)
    for logits, label in (
        (logit_scale * torch.from_numpy(frozen) @ class_texts.T, labels[0]),
        (logit_scale * images @ torch.from_numpy(setting.prototypes).T, labels[1]),
    ):
        each = cross_entropy(logits, torch.from_numpy(label).long())
        loss = loss + torch.sum(each * confident) / torch.sum(confident)
    # Every layer norm of both towers is trained, nothing else.
    modules = setting.model.named_modules()
    norms = {n for n, m in modules if isinstance(m, torch.nn.LayerNorm)}
    names = {n for n, _ in setting.model.named_parameters() if n.rpartition(".")[0] in norms}
    chosen = {k: v if method.trainable(k) else np.zeros_like(v) for k, v in setting.params.items()}
    chosen = to_open_clip({k: np.asarray(v) for k, v in chosen.items()}, setting.ours)
    assert {n for n, v in chosen.items() if v.any()} == names
    assert len(names) > 10
    setting.model.logit_scale.grad = torch.zeros(())  # not reached
    loss.backward()
    assert value == pytest.approx(loss.item(), rel=2e-6)
    setting.assert_gradients_equal(gradient, names)
