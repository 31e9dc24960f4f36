"""Public annotation formats to manifest rows, the catalog of benchmarks, and their preparation.

A reader takes an `AnnotationSource` and returns `Annotations`; `catalog.py` maps each benchmark to its reader.
"""
