"""Descriptions of images and groups of images, in JSON-lines files that `lattec_jax` reads.

Never imports JAX.
"""
