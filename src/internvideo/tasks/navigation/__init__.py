"""Vision-language navigation in continuous environments (VLN-CE)."""
