"""Videos of a manifest in tar shards: written by `internvideo pack`, read back by the loaders."""
