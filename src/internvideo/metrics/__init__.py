"""Figures from saved tables: NumPy only, no model and no video."""
