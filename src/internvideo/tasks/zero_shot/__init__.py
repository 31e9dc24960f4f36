"""Zero-shot recognition from class names."""
