"""The demo: a tiny CLIP, digits rendered from fonts to pre-train it, handwritten ones to adapt to."""
