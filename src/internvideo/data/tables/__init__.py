"""Manifests as large Parquet and Arrow tables, validated once and then read row by row from a memory map."""
