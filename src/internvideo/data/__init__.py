"""From manifests of videos, annotations and texts to batches."""
