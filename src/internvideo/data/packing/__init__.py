"""Tar shards of a manifest's videos: written by `internvideo pack`, read by the loaders."""
