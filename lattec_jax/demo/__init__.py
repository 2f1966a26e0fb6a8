"""The demo: a tiny CLIP, pre-trained on rendered digits and adapted to handwritten ones."""
