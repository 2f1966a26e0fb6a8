"""LatteCLIP (arXiv 2410.08211) in JAX: adapt CLIP to a domain from unlabelled images."""

__version__ = "0.1.0"
