"""The annotation files of public benchmarks as rows of manifests: one reader a family.

A reader takes an `AnnotationSource` and gives `Annotations`; `data/catalog.py` says which benchmark is read by which.
"""
