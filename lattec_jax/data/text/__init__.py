"""Texts as tokens: tokenizers, prompts, and the lengths at which texts are encoded."""
