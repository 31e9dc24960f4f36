"""Decode clips for a loader: the decoder, a shared cache of decoded videos, and threads."""
