"""Inference: feature extraction, the image classifier and prediction files."""
