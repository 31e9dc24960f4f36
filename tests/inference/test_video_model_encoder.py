"""The encoder with the calls of the sentence-transformers library."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import small_apps
import torch
from small_apps import random_model

from internvideo import InternVideoEncoder, Span
from internvideo.data.lists import VIDEO_EXTENSIONS
from internvideo.errors import RecipeError, VideoError
from internvideo.inference.encoder import is_video
from internvideo.video.reader import read_frames


def test_videos_and_texts_in_the_order_given() -> None:
    model = random_model("multimodal")
    encoder, paths = InternVideoEncoder(model), small_apps.clips()
    items = ["a dog runs", str(paths[0]), paths[1], "nobody", Span(paths[2], 0.0, 0.2), read_frames(paths[0], [0, 1])]
    found = encoder.encode(items, batch_size=2)
    assert isinstance(found, np.ndarray)
    assert found.shape == (6, encoder.get_sentence_embedding_dimension())
    assert found.dtype == np.float32
    texts, videos = model.encode_text([items[0], items[3]], normalize=False), model.encode_video(paths, normalize=False)  # type: ignore[list-item]  # both are texts
    np.testing.assert_allclose(found[[0, 3]], texts, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found[[1, 2]], videos[:2], rtol=1e-4, atol=1e-5)
    unit = encoder.encode(items, normalize_embeddings=True)
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1, rtol=1e-5)
    torch.testing.assert_close(
        encoder.similarity(found, found[0]), torch.from_numpy(unit @ unit[:1].T), atol=1e-5, rtol=0
    )


def test_one_item_gives_one_vector_and_the_form_asked_for() -> None:
    encoder, path = InternVideoEncoder(random_model("multimodal")), small_apps.clips()[0]
    width = encoder.get_sentence_embedding_dimension()
    for item in ("a dog", str(path), path, Span(path, 0, 1), read_frames(path, [0, 3])):
        assert encoder.encode(item).shape == (width,)
    assert torch.equal(encoder.encode(["a"], convert_to_tensor=True), encoder.encode("a", convert_to_tensor=True)[None])
    rows = encoder.encode(["a", "b"], convert_to_numpy=False)
    assert isinstance(rows, list)
    assert all(isinstance(row, torch.Tensor) for row in rows)
    assert encoder.encode([]).shape == (0, width)
    assert encoder.device.type == "cpu"


def test_a_bar_is_shown_on_request(capsys: pytest.CaptureFixture[str]) -> None:
    encoder = InternVideoEncoder(random_model("multimodal"))
    encoder.encode(["a", "b"])
    assert capsys.readouterr().err == ""
    encoder.encode(["a", "b"], show_progress_bar=True)
    assert "2/2" in capsys.readouterr().err


def test_what_is_a_video(tmp_path: Path) -> None:
    (tmp_path / "no_ending").write_bytes(b"")
    assert is_video(str(tmp_path / "no_ending"))
    assert is_video("missing.MP4")
    assert not is_video("a man opens a file")
    assert not is_video("two\nlines.mp4")
    assert not is_video("word " * 1000)
    assert not is_video("w" * 300)


def test_mistakes() -> None:
    with pytest.raises(VideoError, match=r"missing\.mp4"):
        InternVideoEncoder(random_model("multimodal")).encode(["missing.mp4"])
    with pytest.raises(RecipeError, match="cannot read texts"):
        InternVideoEncoder(random_model("masked")).encode("a text")


def test_it_opens_what_the_door_opens() -> None:
    encoder = InternVideoEncoder(small_apps.trained("multimodal"), device="cpu")
    assert encoder.encode("a dog").shape == (encoder.get_sentence_embedding_dimension(),)
    with pytest.raises(Exception, match="no weights given"):
        InternVideoEncoder("internvideo-mm-l14")


def test_one_list_of_video_endings() -> None:
    for ending in VIDEO_EXTENSIONS:
        assert is_video(f"missing{ending}")
