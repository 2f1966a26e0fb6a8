"""Images on disk: preprocessing, and the caches of decoded pixels."""
