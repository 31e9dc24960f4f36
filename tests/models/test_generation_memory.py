"""Words written one at a time, with what earlier words left behind, against the plain form that reads all again."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from goldens_folder import GOLDENS
from parity_families.caption_decoder import build
from parity_families.case import Case
from torch import Tensor

from internvideo.models.attention import Attention, KVCache, LayerKVCache
from internvideo.models.caption_decoder import CaptionDecoderConfig
from internvideo.models.clip import TextConfig
from internvideo.models.generation import generate
from internvideo.models.uniformerv2 import UniFormerV2Config
from internvideo.models.video_language import VideoLanguage, VideoLanguageConfig

START, END, WORDS = 38, 39, 40
CONFIG = VideoLanguageConfig(
    UniFormerV2Config(
        image_size=32, patch_size=16, frames=2, width=24, depth=2, heads=2, global_layers=(1,), num_classes=0
    ),
    TextConfig(width=32, heads=4, layers=3, vocab_size=WORDS, context_length=16),
    joint_width=12,
    caption=CaptionDecoderConfig(width=32, heads=4, vision_width=24, layers=3, vocab_size=WORDS, num_queries=5),
)


def model(seed: int = 0) -> VideoLanguage:
    """Weights so large that the next word depends on all the words before it."""
    torch.manual_seed(seed)
    made = VideoLanguage(CONFIG).double().eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.25)
    return made


def clips(count: int = 4) -> Tensor:
    return torch.randn(count, 3, 2, 32, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@torch.no_grad()
def test_the_stored_decoder_writes_word_by_word_what_it_says_at_once() -> None:
    case = Case(GOLDENS / "models" / "caption_decoder.json")
    decoder = build(case).double()
    visual = case.input("image_feats", torch.float64).permute(1, 0, 2, 3).flatten(1, 2)
    words, pooled, kv_cache = case.input("text_embeds", torch.float64), decoder.pool(visual), KVCache()
    steps = [decoder.decode(words[:, i : i + 1], pooled, kv_cache) for i in range(words.shape[1])]
    torch.testing.assert_close(torch.cat(steps, dim=1), decoder.decode(words, pooled), atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(torch.cat(steps, dim=1), case.io["logits64"], atol=1e-6, rtol=1e-6)


@torch.no_grad()
def test_the_text_tower_reads_on_where_it_stopped() -> None:
    tower, kv_cache = model().text, KVCache()
    ids = torch.randint(0, WORDS, (3, 10), generator=torch.Generator().manual_seed(2))
    parts = [tower.tokens(ids[:, :4], kv_cache=kv_cache)]
    parts += [tower.tokens(ids[:, i : i + 1], kv_cache=kv_cache) for i in range(4, 10)]
    torch.testing.assert_close(torch.cat(parts, dim=1), tower.tokens(ids), atol=1e-12, rtol=1e-12)
    kv_cache.reorder(torch.tensor([2, 0]))
    word = torch.tensor([[7], [9]])
    whole = tower.tokens(torch.cat([ids[[2, 0]], word], dim=1))[:, -1:]
    torch.testing.assert_close(tower.tokens(word, kv_cache=kv_cache), whole, atol=1e-12, rtol=1e-12)
    for _ in range(CONFIG.text.context_length - 11):
        tower.tokens(word, kv_cache=kv_cache)
    with pytest.raises(ValueError, match="17 tokens, the text tower takes at most 16"):
        tower.tokens(word, kv_cache=kv_cache)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("beams", [1, 2, 5])
def test_captions_are_those_of_the_plain_form(beams: int, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    of, video = model(seed), clips()
    moved: list[Tensor] = []
    original = KVCache.reorder

    def reorder(kv_cache: KVCache, rows: Tensor) -> None:
        moved.append(rows)
        original(kv_cache, rows)

    monkeypatch.setattr(KVCache, "reorder", reorder)
    fast = of.generate(video, start=START, end=END, num_beams=beams)
    decoder = of.caption_decoder
    assert decoder is not None
    with torch.no_grad():
        pooled = decoder.pool(of.forward_features(video).tokens)

        def plain(ids: Tensor, rows: Tensor) -> Tensor:
            return decoder.decode(of.text.tokens(ids), pooled[rows])[:, -1].float().log_softmax(dim=-1)

        slow = generate(plain, len(video), START, END, CONFIG.text.context_length, device=video.device, num_beams=beams)
    assert torch.equal(fast, slow)
    assert len({tuple(row) for row in fast.tolist()}) > 1, "every clip has the same caption"
    assert bool(moved) is (beams > 1)
    assert beams == 1 or any(not torch.equal(rows, torch.arange(len(rows))) for rows in moved), "no beam overtook"


@torch.no_grad()
def test_half_precision_writes_too() -> None:
    of = VideoLanguage(replace(CONFIG, joint_width=8)).bfloat16().eval()
    assert of.generate(clips(2).bfloat16(), start=START, end=END, num_beams=2).shape == (2, CONFIG.text.context_length)


def test_after_the_first_words_come_single_ones() -> None:
    attention, kv_cache = Attention(8, 2), LayerKVCache()
    attention(torch.zeros(1, 3, 8), causal=True, kv_cache=kv_cache)
    assert kv_cache.length == 3
    with pytest.raises(ValueError, match="2 new tokens"):
        attention(torch.zeros(1, 2, 8), causal=True, kv_cache=kv_cache)
