"""The best moments ordered anew by the caption decoder."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import in_process
import pytest
import torch
import use_world

from internvideo.data.preprocessing import Span
from internvideo.errors import RecipeError
from internvideo.objectives.captioning import caption_loss
from internvideo.search.collection import Collection
from internvideo.search.query import Example
from internvideo.search.reranking import caption_likelihood

TEXT = "a red circle falls"


@pytest.fixture
def collection(tmp_path: Path) -> Iterator[Collection]:
    clips = shutil.copytree(use_world.clips(), tmp_path / "clips")
    with Collection.create(tmp_path / "c", use_world.language(), scales=(1.0,)) as opened:
        opened.add([clips])
        opened.store.records.set_fact("encoder", {"source": str(use_world.language_folder())})
        yield opened


def test_the_likelihood_is_that_of_training() -> None:
    model = use_world.language()
    (clips,) = model.read([str(use_world.clips() / f"{number}.mp4") for number in range(3)])
    language, tokenizer = model.caption_generator().model, model.text_tokenizer()
    tokens = tokenizer.encode([TEXT])
    with torch.no_grad():
        losses = [caption_loss(language.caption_logits(language.prepare(clip[None]), tokens), tokens) for clip in clips]
    torch.testing.assert_close(caption_likelihood(model, clips, TEXT), -torch.stack(losses))


def test_moments_are_ordered_by_likelihood(collection: Collection) -> None:
    plain = collection.search(TEXT, top=8)
    assert {moment.likelihood for moment in plain.moments} == {None}
    found = collection.search(TEXT, top=3, rerank=5)
    assert len(found.moments) == 3
    values = [moment.likelihood for moment in found.moments]
    assert values == sorted(values, reverse=True)
    expected = []
    for moment in plain.moments[:5]:
        (clips,) = collection.model.read(Span(moment.path, moment.start, moment.end))
        expected.append(float(caption_likelihood(collection.model, clips, TEXT)[0]))
    assert values == pytest.approx(sorted(expected, reverse=True)[:3])
    Path(plain.moments[0].path).unlink()
    later = collection.search(TEXT, top=5, rerank=5).moments
    assert {moment.path for moment in later if moment.likelihood is None} == {plain.moments[0].path}
    assert later[-1].likelihood is None


def test_mistakes_are_told(collection: Collection, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RecipeError, match="0 to 100"):
        collection.search(TEXT, rerank=101)
    with pytest.raises(RecipeError, match="a query without a text"):
        collection.search("", like=[Example(collection.videos[0].path)], rerank=2)
    monkeypatch.setattr(type(collection.model), "capabilities", frozenset({"video", "text"}))
    with pytest.raises(RecipeError, match="no caption decoder"):
        collection.search(TEXT, rerank=2)


def test_the_command(collection: Collection) -> None:
    done = in_process.command("search", collection.store.folder, TEXT, "--rerank", 3, "--top", 2)
    assert done.code == 0, done.err
    assert len(done.out.splitlines()) == 2
