"""Clips from video files, for a loader: the decoder, its cache of decoded videos, and threads."""
