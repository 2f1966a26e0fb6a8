"""Host-side data: data sets, images, texts, descriptions and pseudo-labels."""
