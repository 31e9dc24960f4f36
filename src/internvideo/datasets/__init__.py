"""Public annotation formats to manifest rows, the catalog of benchmarks, and their preparation.

A reader takes an `AnnotationSource` and gives `Annotations`; `catalog.py` says which benchmark is read by which.
"""
