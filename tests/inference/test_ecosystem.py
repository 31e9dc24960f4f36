"""Other libraries with our models: sentence-transformers, mteb, the Hugging Face hub, torch.hub, and the other way."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from small_apps import random_model

from internvideo import load
from internvideo.errors import RecipeError, WeightsError
from internvideo.inference.sentence_module import VideoModule, video_source
from internvideo.video.writer import write_video

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    frames = np.random.default_rng(0).integers(0, 255, (12, 48, 48, 3), dtype=np.uint8)
    write_video(path, frames, 6)
    return path


def frames_of(path: Path) -> np.ndarray[Any, Any]:
    from internvideo import Video

    with Video(path) as video:
        return np.asarray(video.frames(range(12)))


# ---------------------------------------------------------------------------------------------- sentence-transformers


def test_sentence_transformers_loads_a_folder(tmp_path: Path, clip: Path) -> None:
    library = pytest.importorskip("sentence_transformers")
    ours = random_model("multimodal")
    folder = ours.save_pretrained(tmp_path / "saved")
    theirs = library.SentenceTransformer(str(folder), trust_remote_code=True, device="cpu")
    assert theirs.modalities == ["text", "video"]
    assert theirs.get_embedding_dimension() == ours.embed_dim
    texts = ["a dog runs", "somebody opens a door"]
    queries = theirs.encode_query(texts, normalize_embeddings=True)
    assert np.allclose(queries, ours.encode_text(texts).numpy(), atol=1e-6)
    documents = theirs.encode_document([str(clip), str(clip)], normalize_embeddings=True)
    assert np.allclose(documents, ours.encode_video([clip, clip]).numpy(), atol=1e-6)
    found = theirs.similarity(queries, documents)
    assert np.allclose(found, ours.similarity([clip, clip], texts).T, atol=1e-6)


def test_it_saves_and_loads_again_through_sentence_transformers(tmp_path: Path, clip: Path) -> None:
    library = pytest.importorskip("sentence_transformers")
    ours = random_model("multimodal")
    theirs = library.SentenceTransformer(modules=[VideoModule(ours)], device="cpu")
    theirs.save(str(tmp_path / "again"))
    again = load(tmp_path / "again", device="cpu")
    assert torch.equal(again.encode_video(clip), ours.encode_video(clip))
    assert library.SentenceTransformer(str(tmp_path / "again"), trust_remote_code=True).modalities == ["text", "video"]


def test_without_consent_sentence_transformers_refuses(tmp_path: Path) -> None:
    library = pytest.importorskip("sentence_transformers")
    folder = random_model("multimodal").save_pretrained(tmp_path / "saved")
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        library.SentenceTransformer(str(folder))


def test_every_form_of_a_video_is_the_same_video(clip: Path) -> None:
    model = random_model("multimodal")
    module, frames = VideoModule(model), frames_of(clip)
    wanted = module.preprocess([frames])["clips"]
    forms: list[Any] = [
        torch.from_numpy(frames),
        torch.from_numpy(frames).permute(0, 3, 1, 2),
        list(frames),
        {"array": frames, "video_metadata": None},
        {"video": frames},
        {"video": {"array": frames, "video_metadata": None}},
    ]
    for form in forms:
        assert torch.equal(module.preprocess([form])["clips"], wanted)
    assert video_source(str(clip)) == str(clip)
    with pytest.raises(RecipeError, match=r"frames of shape \(12, 48, 48\), uint8"):
        video_source(frames[..., 0])


def test_a_model_without_texts_says_so() -> None:
    module = VideoModule(random_model("masked"))
    assert module.modalities == ["video"]
    with pytest.raises(RecipeError, match="cannot read texts"):
        module.preprocess(["a dog"])


# --------------------------------------------------------------------------------------------------------------- mteb


@pytest.mark.filterwarnings("ignore")  # mteb's own, of its metrics
@pytest.mark.parametrize("every", [False, pytest.param(True, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])])
def test_mteb_runs_its_mock_tasks(monkeypatch: pytest.MonkeyPatch, every: bool) -> None:
    """Each kind of task on videos once, or all there are."""
    pytest.importorskip("mteb")
    from mteb.mocks import mock_run as mocks
    from mteb.mocks.mock_run import mock_run

    kinds = {task.metadata.type: task for task in mocks.ALL_MOCK_TASK_TEST_GRID if "video" in task.metadata.modalities}
    if not every:
        monkeypatch.setattr(mocks, "ALL_MOCK_TASK_TEST_GRID", [*kinds.values()])
    from internvideo.inference.mteb_encoder import MTEBEncoder

    encoder = MTEBEncoder(random_model("multimodal"), "example/model")
    result = mock_run(encoder)
    failed = {name: found.exception for name, found in result.items() if hasattr(found, "exception")}
    assert failed == {}
    ran = {name for name, found in result.items() if found is not None}
    if every:
        assert "MockVideoRetrievalT2V" in ran
        assert len(ran) > 20
    else:
        assert len(ran) > 4


# -------------------------------------------------------------------------------------------------- Hugging Face's hub


class Hub:
    """A hub of one folder: keeps what is uploaded."""

    def __init__(self, folder: Path, refuse: Exception | None = None) -> None:
        self.folder, self.refuse, self.calls = folder, refuse, []

    def __call__(self, token: str | None = None, library_name: str = "") -> Hub:
        self.calls.append(("token", token))
        return self

    def create_repo(self, repository: str, *, private: bool | None, exist_ok: bool) -> SimpleNamespace:
        if self.refuse is not None:
            raise self.refuse
        self.calls.append(("repo", repository, private, exist_ok))
        return SimpleNamespace(repo_id=repository)

    def create_branch(self, repository: str, *, branch: str, exist_ok: bool) -> None:
        self.calls.append(("branch", branch))

    def upload_folder(self, *, repo_id: str, folder_path: Path, revision: str | None, commit_message: str) -> Any:
        shutil.copytree(folder_path, self.folder / repo_id)
        return SimpleNamespace(commit_url=f"https://huggingface.co/{repo_id}/commit/1")


def test_push_to_hub_uploads_the_folder_and_its_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub(tmp_path)
    monkeypatch.setattr("huggingface_hub.HfApi", hub)
    ours = random_model("multimodal")
    ours.metadata["licence"] = "Apache-2.0"
    assert ours.push_to_hub("example/model", private=True, token="t") == (
        "https://huggingface.co/example/model/commit/1"
    )
    assert hub.calls == [("token", "t"), ("repo", "example/model", True, True)]
    again = load(tmp_path / "example" / "model", device="cpu")
    assert torch.equal(again.encode_text(["a dog"]), ours.encode_text(["a dog"]))
    card = (tmp_path / "example" / "model" / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front == {
        "library_name": "internvideo",
        "license": "apache-2.0",
        "pipeline_tag": "video-text-to-text",
        "tags": ["video", "internvideo", "sentence-transformers", "video-text-retrieval"],
    }
    digest = json.loads((tmp_path / "example" / "model" / "config.json").read_text())["files"]["model.safetensors"]
    assert digest["sha256"] in card
    assert "## Protocol\n\n- frames: " in card


def test_a_hub_that_refuses_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.HfApi", Hub(tmp_path, OSError("401 Unauthorized\nmore")))
    with pytest.raises(WeightsError, match=r"^hf://example/model: cannot be uploaded: 401 Unauthorized; `hf auth"):
        random_model("masked").push_to_hub("example/model")


# ---------------------------------------------------------------------------------------------------------- torch.hub


def test_torch_hub_loads_from_the_repository(tmp_path: Path, clip: Path) -> None:
    folder = random_model("multimodal").save_pretrained(tmp_path / "saved")
    model = torch.hub.load(str(ROOT), "load", str(folder), source="local", device="cpu")
    assert torch.equal(model.encode_video(clip), load(folder, device="cpu").encode_video(clip))
    made = torch.hub.load(str(ROOT), "create_model", "videomae-s-classifier", source="local", num_classes=5, depth=1)
    assert made.head.out_features == 5


def test_create_model_as_timm_has_it(tmp_path: Path) -> None:
    import internvideo

    small = {"width": 32, "depth": 1, "heads": 2, "image_size": 32, "frames": 4}
    model = internvideo.create_model("videomae-s-classifier", num_classes=5, **small)
    assert isinstance(model, torch.nn.Module)
    assert model(torch.zeros(1, 3, 4, 32, 32)).shape == (1, 5)
    load("videomae-s-classifier", weights="random", overrides=small, device="cpu").save_pretrained(tmp_path)
    again = internvideo.create_model("videomae-s-classifier", pretrained=tmp_path, num_classes=2)
    assert again(torch.zeros(1, 3, 4, 32, 32)).shape == (1, 2)
    with pytest.raises(RecipeError, match="pretrained: True; expected: a file, a folder or hf://"):
        internvideo.create_model("videomae-s-classifier", pretrained=True)
    with pytest.raises(RecipeError, match="did you mean 'videomae-s-classifier'"):
        internvideo.create_model("videomae-s-clasifier", num_classes=2)
