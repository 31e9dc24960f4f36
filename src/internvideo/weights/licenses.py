"""Look up the licenses of published weights by their layout.

A layout does not identify who trained a file, so the license of a file is the one in the model card beside it or
"unknown", with a note of the license of the published weights of this layout.
"""

from __future__ import annotations

from typing import NamedTuple

UNKNOWN = "unknown"


class License(NamedTuple):
    """Identifier as on model hubs, and who states it where."""

    name: str
    stated: str


_INTERNVIDEO = License("apache-2.0", "by the LICENSE of github.com/OpenGVLab/InternVideo, which publishes them")
_VIDEOMAE = "github.com/MCG-NJU/VideoMAE states CC-BY-NC-4.0"
_CLIP = License("mit", "by the LICENSE of github.com/openai/CLIP, which publishes them")
_VIDEOMAE_OR_INTERNVIDEO = License(
    UNKNOWN, f"{_VIDEOMAE}, github.com/OpenGVLab/InternVideo Apache-2.0: the tensors fit both"
)

LICENSES: dict[str, License] = {
    "VideoMAE pretraining": _VIDEOMAE_OR_INTERNVIDEO,
    "VideoMAE classifier": _VIDEOMAE_OR_INTERNVIDEO,
    "transformers VideoMAE pretraining": License("cc-by-nc-4.0", _VIDEOMAE),
    "transformers VideoMAE classifier": License("cc-by-nc-4.0", _VIDEOMAE),
    "InternVideo-MM": _INTERNVIDEO,
    "InternVideo-MM with a caption decoder": _INTERNVIDEO,
    "InternVideo-MM question answering": _INTERNVIDEO,
    "InternVideo-MM multiple choice": _INTERNVIDEO,
    "UniFormerV2": License("mit", "by the README of github.com/OpenGVLab/UniFormerV2, which publishes them"),
    "CLIP": _CLIP,
    "transformers CLIP": _CLIP,
    "InternVideo2": _INTERNVIDEO,
    "ViCLIP": License(UNKNOWN, "the publisher's repository, github.com/OpenGVLab/InternVideo, states none for them"),
    "caption decoder": License(UNKNOWN, ""),
    "transformers V-JEPA 2": License(UNKNOWN, ""),
    "transformers SigLIP": License(UNKNOWN, ""),
}
"""Name of a layout (`weights.layout_families`) -> what its publisher states."""


def license_metadata(layout: str) -> dict[str, str]:
    """Return the metadata of a model read from a layout: "licence" (unknown) and a note "licence_stated", if any.

    The license is "unknown", because the layout does not identify the publisher.
    """
    name, stated = LICENSES.get(layout, License(UNKNOWN, ""))
    statement = f"{name} {stated}" if name != UNKNOWN else stated
    note = f"of the published weights of this layout: {statement}; the tensors do not determine whether these are they"
    return {"licence": UNKNOWN, **({"licence_stated": note} if stated else {})}
