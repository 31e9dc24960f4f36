"""Open-set recognition: which class, how uncertain, known or unknown."""
