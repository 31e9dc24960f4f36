"""Look up the licences of published weights by their layout.

A layout does not identify who trained a file: its licence is the one in the model card beside it or "unknown", with a
note of the licence of the published weights of this layout.
"""

from __future__ import annotations

from typing import NamedTuple

UNKNOWN = "unknown"


class Licence(NamedTuple):
    """Name as model hubs spell it, and its source."""

    name: str
    stated: str


_INTERNVIDEO = Licence("apache-2.0", "by the LICENSE of github.com/OpenGVLab/InternVideo, which publishes them")
_VIDEOMAE = "github.com/MCG-NJU/VideoMAE states CC-BY-NC-4.0"
_CLIP = Licence("mit", "by the LICENSE of github.com/openai/CLIP, which publishes them")
_EITHER = Licence(UNKNOWN, f"{_VIDEOMAE}, github.com/OpenGVLab/InternVideo Apache-2.0: the tensors fit both")

LICENCES: dict[str, Licence] = {
    "VideoMAE pretraining": _EITHER,
    "VideoMAE classifier": _EITHER,
    "transformers VideoMAE pretraining": Licence("cc-by-nc-4.0", _VIDEOMAE),
    "transformers VideoMAE classifier": Licence("cc-by-nc-4.0", _VIDEOMAE),
    "InternVideo-MM": _INTERNVIDEO,
    "InternVideo-MM with a caption decoder": _INTERNVIDEO,
    "InternVideo-MM question answering": _INTERNVIDEO,
    "InternVideo-MM multiple choice": _INTERNVIDEO,
    "UniFormerV2": Licence("mit", "by the README of github.com/OpenGVLab/UniFormerV2, which publishes them"),
    "CLIP": _CLIP,
    "transformers CLIP": _CLIP,
    "InternVideo2": _INTERNVIDEO,
    "ViCLIP": Licence(UNKNOWN, "the publisher's repository, github.com/OpenGVLab/InternVideo, states none for them"),
    "caption decoder": Licence(UNKNOWN, ""),
    "transformers V-JEPA 2": Licence(UNKNOWN, ""),
    "transformers SigLIP": Licence(UNKNOWN, ""),
}
"""Name of a layout (`weights.layout_families`) -> what its publisher states."""


def licence_of(layout: str) -> dict[str, str]:
    """Return the metadata of a model read from a layout: "licence", and "licence_stated" where one is known.

    The licence is "unknown", because the keys do not identify the publisher.
    """
    name, stated = LICENCES.get(layout, Licence(UNKNOWN, ""))
    statement = f"{name} {stated}" if name != UNKNOWN else stated
    note = f"of the published weights of this layout: {statement}; the tensors do not determine whether these are they"
    return {"licence": UNKNOWN, **({"licence_stated": note} if stated else {})}
