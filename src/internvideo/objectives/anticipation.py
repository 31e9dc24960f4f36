"""Loss of short-term anticipation (arXiv 2211.09529). Shapes: R boxes, C verbs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from internvideo.objectives.classification import Divisor, at_least_one


def contact_losses(
    logits: Tensor, seconds: Tensor, verbs: Tensor, truth: Tensor, divisor: Divisor = at_least_one
) -> tuple[Tensor, Tensor]:
    """Compute the cross entropy of the verbs and the smooth-L1 loss of the times to contact.

    Args:
        logits: (R, C + 1). seconds: (R,) predicted.
        verbs: (R,) int64, C for a box without an action. truth: (R,) seconds, NaN without a contact.
        divisor: of the number of boxes, and of those with a contact.

    Returns:
        two scalars: means over the boxes, and over those with a contact; 0 where there are none.
    """
    has_contact = truth.isfinite()
    errors = F.smooth_l1_loss(seconds, torch.where(has_contact, truth, seconds.detach()), reduction="none")
    entropy = F.cross_entropy(logits.float(), verbs, reduction="sum")
    boxes = torch.full((), len(verbs), device=verbs.device)
    return entropy / divisor(boxes), errors.sum() / divisor(has_contact.sum())
