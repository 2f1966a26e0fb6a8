"""Images: preprocessing, caches of decoded pixels, content hashes."""
