"""Descriptions of images and groups of images, written for `lattec_jax` to read.

Imports no JAX; what passes between the two is a file of JSON lines.
"""
