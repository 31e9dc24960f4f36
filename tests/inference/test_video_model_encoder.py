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


def test_what_sentence_transformers_6_asks_for() -> None:
    """Names and arguments of its model, and its own evaluator of retrieval if it is installed."""
    encoder, paths = InternVideoEncoder(random_model("multimodal")), small_apps.clips()
    texts = ["a dog runs", "nobody"]
    plain = encoder.encode(texts)
    np.testing.assert_array_equal(encoder.encode_query(texts), plain)
    np.testing.assert_array_equal(encoder.encode_document(texts, batch_size=1), plain)
    np.testing.assert_array_equal(
        encoder.encode(texts, prompt="see "), encoder.encode(["see " + text for text in texts])
    )
    np.testing.assert_array_equal(encoder.encode(texts, truncate_dim=3), plain[:, :3])
    whole = encoder.similarity(plain, list(torch.from_numpy(plain)))
    torch.testing.assert_close(encoder.similarity_pairwise(plain, plain[::-1].copy()), whole.flip(1).diagonal())
    assert (encoder.similarity_fn_name, encoder.get_embedding_dimension()) == ("cosine", plain.shape[1])
    assert encoder.modalities == ["video", "image", "text"]
    assert encoder.supports("video")
    assert not InternVideoEncoder(random_model("masked")).supports("text")
    for wrong in ({"prompt_name": "query"}, {"truncate_dim": 0}, {"truncate_dim": 10**6}):
        with pytest.raises(RecipeError):
            encoder.encode(texts, **wrong)  # type: ignore[arg-type]  # wrong on purpose
    pytest.importorskip("sentence_transformers")
    from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator

    corpus = {str(number): str(path) for number, path in enumerate(paths)}
    queries = {key: str(paths[int(key)]) for key in corpus}
    evaluator = InformationRetrievalEvaluator(
        queries, corpus, {key: {key} for key in corpus}, write_csv=False, accuracy_at_k=[1],
        precision_recall_at_k=[1], mrr_at_k=[1], ndcg_at_k=[1], map_at_k=[1],
        score_functions={encoder.similarity_fn_name: encoder.similarity},
    )  # fmt: skip
    assert evaluator.compute_all_metrics(encoder)["cosine"]["accuracy@k"][1] == 1.0


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
