"""Everything on the host side: data sets, stores, tokens, descriptions, pseudo-labels.

NumPy, Pillow and the standard library only, and TensorFlow Datasets for the kind "tfds"; nothing
here imports JAX, PyTorch or TensorFlow.
"""
