"""Refinement of another detector's segments (TCANet)."""
