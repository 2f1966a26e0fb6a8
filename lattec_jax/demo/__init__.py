"""The demo: a tiny CLIP, rendered digits to pre-train it and handwritten ones to adapt it to."""
