"""CLIP in Flax: architecture, configuration and checkpoints."""
