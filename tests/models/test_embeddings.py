"""Embeddings: tubelets, tables of positions, normalization."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from small_videomae import clip

from internvideo.models.embeddings import (
    Normalize,
    TubeletEmbedding,
    resize_table,
    resized_table,
    sin_cos_table,
)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def test_tubelets_equal_a_strided_convolution() -> None:
    embedding = TubeletEmbedding(10, 4, 2).double()
    video = clip().double()
    kernel = embedding.proj.weight.view(10, 3, 2, 4, 4)
    expected = F.conv3d(video, kernel, embedding.proj.bias, stride=(2, 4, 4)).flatten(2).transpose(1, 2)
    torch.testing.assert_close(embedding(video), expected, rtol=0, atol=1e-12)
    index = torch.tensor([[3, 0, 31], [7, 7, 16]])
    picked = torch.stack([row[places] for row, places in zip(expected, index, strict=True)])
    torch.testing.assert_close(embedding(video, index), picked, rtol=0, atol=1e-12)


def test_tubelets_take_any_memory_layout() -> None:
    embedding = TubeletEmbedding(10, 4, 2)
    video = clip()
    strided = video.to(memory_format=torch.channels_last_3d)
    torch.testing.assert_close(embedding(strided), embedding(video))


def test_sin_cos_table_in_closed_form() -> None:
    table = sin_cos_table(7, 6)
    assert table.dtype == torch.float32
    for position in range(7):
        for channel in range(6):
            angle = position / 10000 ** (2 * (channel // 2) / 6)
            expected = math.sin(angle) if channel % 2 == 0 else math.cos(angle)
            assert float(table[position, channel]) == pytest.approx(expected, abs=1e-7)


def test_resizing_to_the_same_grid_changes_nothing() -> None:
    table = sin_cos_table(2 * 3 * 3, 8)
    assert torch.equal(resize_table(table, (2, 3, 3), (2, 3, 3)), table)
    assert torch.equal(resized_table((8, 14, 14), 8, 16, 2), sin_cos_table(8 * 14 * 14, 8))


def test_a_patch_that_does_not_divide_224_pixels_has_the_table_of_the_whole_patches() -> None:
    """OpenGVLab/InternVideo, InternVideo1/Pretrain/VideoMAE/modeling_finetune.py: `org_img_size[1] // patch_size`."""
    native = sin_cos_table(8 * 9 * 9, 8)  # 224 // 24 = 9
    assert torch.equal(resized_table((8, 10, 10), 8, 24, 2), resize_table(native, (8, 9, 9), (8, 10, 10)))
    assert torch.equal(resized_table((5, 9, 9), 8, 24, 3), sin_cos_table(5 * 9 * 9, 8)), "16 // 3 slots"
    with pytest.raises(ValueError, match="224 px and 16 frames has no patch of 256 px"):
        resized_table((8, 1, 1), 8, 256, 2)


def test_resizing_keeps_a_constant_and_interpolates_time() -> None:
    constant = torch.ones(2 * 3 * 3, 4)
    torch.testing.assert_close(resize_table(constant, (2, 3, 3), (5, 2, 6)), torch.ones(60, 4))
    slots = torch.tensor([0.0, 1.0, 2.0, 3.0])[:, None].repeat(1, 2)
    halved = resize_table(slots, (4, 1, 1), (2, 1, 1))
    torch.testing.assert_close(halved, torch.tensor([[0.5, 0.5], [2.5, 2.5]]))


def test_normalise_bytes_and_floats() -> None:
    normalize = Normalize((0.5, 0.25, 0.0), (0.5, 0.25, 1.0))
    pixels = torch.randint(0, 256, (2, 3, 2, 4, 4), dtype=torch.uint8)
    shares = pixels.double() / 255
    expected = torch.stack([(shares[:, 0] - 0.5) / 0.5, (shares[:, 1] - 0.25) / 0.25, shares[:, 2]], 1)
    torch.testing.assert_close(normalize(pixels), expected.float(), rtol=0, atol=2e-6)
    kept = pixels.float()
    torch.testing.assert_close(normalize(kept), expected.float(), rtol=0, atol=2e-6)
    assert torch.equal(kept, pixels.float()), "the input was changed"
    torch.testing.assert_close(normalize(pixels) * normalize.std + normalize.mean, shares.float(), rtol=0, atol=1e-6)
    assert not normalize.state_dict()
