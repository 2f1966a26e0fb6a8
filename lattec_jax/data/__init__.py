"""Data on the host: data sets, images, texts, descriptions and pseudo-labels."""
