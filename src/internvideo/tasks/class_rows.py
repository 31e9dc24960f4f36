"""Map the labels of a manifest to the classes of a model."""

from __future__ import annotations

from dataclasses import replace

from internvideo.data.manifest import Manifest, classes_beside
from internvideo.data.sample import did_you_mean
from internvideo.datasets.class_names import are_indices
from internvideo.errors import ManifestError


def map_labels_to_classes(manifest: Manifest, classes: tuple[str, ...]) -> Manifest:
    """Convert labels to indices into a model's `classes`: by class name, or unchanged if the manifest has no names.

    Raises:
        ManifestError: the model lacks a class.
    """
    names = manifest.classes
    if names == classes:
        return manifest
    used = sorted({index for row in manifest.rows for index in row.class_indices()})
    names_file = classes_beside(manifest.source) if manifest.source.is_file() else None
    if names_file is None and are_indices(names) and not manifest.source.is_dir():
        if used and used[-1] >= len(classes):
            expected = f"0 to {len(classes) - 1}, the classes of the model"
            raise ManifestError(manifest.source, f"class {used[-1]}", expected)
        return replace(manifest, classes=classes)
    index_of = {name: index for index, name in enumerate(classes)}
    unknown = next((names[index] for index in used if names[index] not in index_of), None)
    if unknown is not None:
        found = f"the model was not trained on the class '{unknown}'{did_you_mean(unknown, classes)}"
        raise ManifestError(manifest.source, found, f"the {len(classes)} classes of the weights")
    new_index = {index: index_of[names[index]] for index in used}
    return replace(manifest, rows=tuple(row.with_class_indices(new_index) for row in manifest.rows), classes=classes)
