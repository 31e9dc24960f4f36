"""State-change objects: which object changes its state (Ego4D)."""
