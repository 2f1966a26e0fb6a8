"""Texts as tokens: cleaning, tokenizers, class prompts and length buckets."""
