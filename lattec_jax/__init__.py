"""LatteCLIP (arXiv 2410.08211) in JAX: adapt CLIP to a domain from unlabeled images.

import lattec_jax as lj

classifier = lj.adapt("photos/", ["cat", "dog"], weights="ViT-B-32:laion2b_s34b_b79k")
classifier.predict("new/*.jpg")
lj.Classifier.load("runs/photos-latteclip-s0").predict("image.jpg").name
"""

from typing import TYPE_CHECKING, Any

from lattec_jax.runtime.version import __version__

if TYPE_CHECKING:
    from lattec_jax.adaptation import adapt
    from lattec_jax.inference.classifier import Classifier, Prediction

__all__ = ["Classifier", "Prediction", "__version__", "adapt"]


def __getattr__(name: str) -> Any:
    """Import at first use what imports JAX, or takes long."""
    if name in ("Classifier", "Prediction"):
        from lattec_jax.inference import classifier

        return getattr(classifier, name)
    if name == "adapt":
        from lattec_jax.adaptation import adapt

        return adapt
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
