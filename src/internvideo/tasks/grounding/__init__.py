"""Language queries: when in a long video the answer to a sentence is shown (Ego4D)."""
