"""Training: preparation, input pipeline, train state, jitted step, checkpoints and log."""
