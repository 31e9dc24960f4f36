"""Short-term anticipation: which object will be touched, how and when (Ego4D)."""
