"""Training: the train state, the jitted step, the input pipeline, checkpoints and the log."""
