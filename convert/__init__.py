"""Conversion of OpenCLIP's weights to lattec_jax's checkpoint directory and back.

Conversion itself needs NumPy only; torch and open_clip are imported for pretrained tags and .pt
files.
"""
