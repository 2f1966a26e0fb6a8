"""The train state, the jitted step, and what feeds and records it."""
