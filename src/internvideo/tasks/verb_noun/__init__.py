"""Verbs and nouns of first-person clips."""
