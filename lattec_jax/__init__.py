"""LatteCLIP (arXiv 2410.08211) in JAX: adapt CLIP to a domain from unlabeled images.

from lattec_jax import Classifier

classifier = Classifier.load("runs/mine-latteclip-s0")
print(classifier.predict("image.jpg"))
"""

from typing import TYPE_CHECKING, Any

from lattec_jax.runtime.version import __version__

if TYPE_CHECKING:
    from lattec_jax.inference.classifier import Classifier, Prediction

__all__ = ["Classifier", "Prediction", "__version__"]


def __getattr__(name: str) -> Any:
    """Import `Classifier` and `Prediction` at first use, because they import JAX."""
    if name in ("Classifier", "Prediction"):
        from lattec_jax.inference import classifier

        return getattr(classifier, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
