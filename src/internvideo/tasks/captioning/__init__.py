"""Captioning: a sentence per clip."""
