"""The sample world: generated videos with exactly known answers."""
