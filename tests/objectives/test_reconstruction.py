"""The target of masked pretraining and its loss."""

from __future__ import annotations

import pytest
import torch
from small_videomae import TINY, clip, mask
from torch import Tensor

from internvideo.models.videomae import VideoMAEConfig
from internvideo.objectives.reconstruction import pixel_targets, reconstruction_loss


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def slow_targets(video: Tensor, hidden: Tensor, config: VideoMAEConfig, normalize: bool) -> Tensor:
    """Token by token, as the definition reads."""
    p, (_, rows, columns) = config.patch_size, config.grid
    found = []
    for pixels, row in zip(video, hidden, strict=True):
        for token in row.nonzero()[:, 0].tolist():
            time, place = divmod(token, rows * columns)
            y, x = divmod(place, columns)
            cube = pixels[:, 2 * time : 2 * time + 2, y * p : y * p + p, x * p : x * p + p]
            cube = cube.permute(1, 2, 3, 0).reshape(-1, 3)
            if normalize:
                cube = (cube - cube.mean(0)) / (cube.var(0, unbiased=True).sqrt() + 1e-6)
            found.append(cube.reshape(-1))
    return torch.stack(found).view(len(video), -1, config.values_per_token)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("ratio", [0.75, 0.0])
def test_targets_in_closed_form(normalize: bool, ratio: float) -> None:
    hidden = mask(ratio=ratio) if ratio else torch.ones(2, TINY.num_tokens, dtype=torch.bool)
    video = torch.rand_like(clip()).double()
    target = pixel_targets(video, hidden, 2, 4, normalize)
    torch.testing.assert_close(target, slow_targets(video, hidden, TINY, normalize), rtol=0, atol=1e-10)
    known = pixel_targets(video, hidden, 2, 4, normalize, num_masked=int(hidden[0].sum()))
    assert torch.equal(known, target)


@pytest.mark.parametrize("normalize", [True, False])
def test_targets_of_bytes_are_those_of_shares(normalize: bool) -> None:
    video = torch.randint(0, 256, clip().shape, dtype=torch.uint8)
    video[:, :, :2] = 77  # without contrast
    target = pixel_targets(video, mask(), 2, 4, normalize)
    expected = slow_targets(video.double() / 255, mask(), TINY, normalize)
    torch.testing.assert_close(target, expected.float(), rtol=1e-5, atol=1e-5)


def test_targets_are_float32_constants_also_under_autocast() -> None:
    video = torch.rand_like(clip()).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        target = pixel_targets(video, mask(), 2, 4)
    assert (target.dtype, target.requires_grad) == (torch.float32, False)
    assert pixel_targets(video.bfloat16(), mask(), 2, 4).dtype == torch.float32
    flat = pixel_targets(torch.full_like(video, 0.5), mask(), 2, 4)
    assert bool(flat.isfinite().all())


def test_the_loss_is_the_mean_square() -> None:
    prediction, target = torch.zeros(1, 2, 4), torch.tensor([[[1.0, 2, 3, 4], [0, 0, 0, 2]]])
    assert reconstruction_loss(prediction, target).item() == pytest.approx((1 + 4 + 9 + 16 + 4) / 8)
    assert reconstruction_loss(prediction.bfloat16(), target).dtype == torch.float32
    with pytest.raises(ValueError, match="prediction"):
        reconstruction_loss(prediction[:, :1], target)
