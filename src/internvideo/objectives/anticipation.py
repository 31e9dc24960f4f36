"""Loss of short-term anticipation (spec tasks.md 11). Shapes: R boxes, C verbs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def contact_losses(logits: Tensor, seconds: Tensor, verbs: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Cross entropy of the verbs, and smooth-L1 error of the times to contact.

    Args:
        logits: (R, C + 1). seconds: (R,) predicted.
        verbs: (R,) int64, C where nothing is done to a box. truth: (R,) seconds, NaN where there is no contact.

    Returns:
        two scalars: means over the boxes, and over those with a contact; 0 where there are none.
    """
    known = truth.isfinite()
    errors = F.smooth_l1_loss(seconds, torch.where(known, truth, seconds.detach()), reduction="none")
    entropy = F.cross_entropy(logits.float(), verbs, reduction="sum") / max(len(verbs), 1)
    return entropy, errors.sum() / known.sum().clamp(min=1)
