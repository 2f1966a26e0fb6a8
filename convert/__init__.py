"""OpenCLIP's weights to lattec_jax's checkpoint directory and back.

Names and shapes are NumPy's business; torch and open_clip are imported only where a pretrained tag
or a .pt file asks for them.
"""
