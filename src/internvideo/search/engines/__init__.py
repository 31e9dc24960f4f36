"""Databases that keep the vectors of a collection and compare them."""
