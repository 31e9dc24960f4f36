"""Map the labels of a manifest to the classes of a model."""

from __future__ import annotations

from dataclasses import replace

from internvideo.data.manifest import Manifest, classes_beside
from internvideo.data.sample import did_you_mean
from internvideo.datasets.class_names import only_count
from internvideo.errors import ManifestError


def under_classes(manifest: Manifest, classes: tuple[str, ...]) -> Manifest:
    """Map labels to indices into a model's `classes`: by name, or unchanged where the source has numbers without names.

    Raises:
        ManifestError: a class that is not among `classes`.
    """
    own = manifest.classes
    if own == classes:
        return manifest
    used = sorted({index for row in manifest.rows for index in row.class_indices()})
    beside = classes_beside(manifest.source) if manifest.source.is_file() else None
    if beside is None and only_count(own) and not manifest.source.is_dir():
        if used and used[-1] >= len(classes):
            raise ManifestError(
                manifest.source, f"class {used[-1]}", f"0 to {len(classes) - 1}, the classes that the model knows"
            )
        return replace(manifest, classes=classes)
    place = {name: index for index, name in enumerate(classes)}
    unknown = [own[index] for index in used if own[index] not in place]
    if unknown:
        raise ManifestError(
            manifest.source,
            f"the model was not trained on the class '{unknown[0]}'{did_you_mean(unknown[0], classes)}",
            f"the {len(classes)} classes of the weights",
        )
    moved = {index: place[own[index]] for index in used}
    return replace(manifest, rows=tuple(row.with_class_indices(moved) for row in manifest.rows), classes=classes)
