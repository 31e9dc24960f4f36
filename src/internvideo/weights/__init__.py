"""Weights of others and our own: layouts, key tables, conversion, initialization, licenses."""
