"""The Flax CLIP, its configuration and its checkpoint directory."""
