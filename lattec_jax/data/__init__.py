"""Everything on the host side: data sets, images, texts, descriptions and pseudo-labels."""
