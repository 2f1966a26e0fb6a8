"""Everything on the host side: data sets, stores, tokens, descriptions, pseudo-labels.

NumPy, Pillow and the standard library only; nothing here imports JAX or PyTorch.
"""
