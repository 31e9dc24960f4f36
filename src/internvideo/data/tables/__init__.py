"""Manifests as Parquet and Arrow tables of many rows, checked once and then read row by row from a memory map."""
