"""Future hands: where both hands will be (Ego4D)."""
