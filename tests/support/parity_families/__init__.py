"""Which code computes the stored quantities of which kind of model.

A family is one function `compute(case, dtype) -> {name: value}`, called once in float64 and once in float32:

* name: of the stored quantity, exactly as the case's JSON spells it: a tensor of `io` ("logits64"), a number
  ("ce_loss64", nested ones joined by dots: "loss.norm_pix.loss32") or a table of norms ("grad_norms64_ce").
* value: tensor, float, or {published parameter name: gradient norm} (`grad_norms` makes it).

Both "x" and "x64" may be given the same value: the harness compares each with the tolerance of its precision. A stored
quantity that no call gives is a failure.
"""

from __future__ import annotations

from parity_families import caption_decoder, uniformerv2, viclip, video_language, videomae
from parity_families.case import Case, Family

FAMILIES: dict[str, Family] = {
    "VideoMAE pretrain": videomae.PRETRAIN,
    "VideoMAE finetune": videomae.CLASSIFIER,
    "UniFormerV2": uniformerv2.UNIFORMERV2,
    "InternVideo-MM": video_language.VIDEO_LANGUAGE,
    "multimodal downstream model": video_language.DOWNSTREAM,
    "caption decoder": caption_decoder.CAPTION_DECODER,
    "ViCLIP": viclip.VICLIP,
}
"""Start of the JSON's "model" text -> family; the longest start that fits is taken."""


def family_of(case: Case) -> Family | None:
    """The family of a case, None for an unknown kind."""
    starts = [start for start in FAMILIES if case.info["model"].startswith(start)]
    return FAMILIES[max(starts, key=len)] if starts else None
