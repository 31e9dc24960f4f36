"""Pairs in tar shards: the loader's rules hold for them, and whatever is wrong with a shard is told."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
from processes import as_process
from small_world import small_recipe
from torch import Tensor

from internvideo.data.batch import Batch
from internvideo.data.loader import LoaderSettings
from internvideo.data.sampling import Sparse
from internvideo.data.shard_files import list_shards, read_shard
from internvideo.data.shards import ShardLoader, read_shards
from internvideo.errors import ManifestError, RecipeError, VideoError
from internvideo.pipeline import prepare
from internvideo.recipe import build_recipe
from internvideo.video.writer import write_video

SIDE = 8


class Whole:
    """A clip as it is, (3, T, S, S)."""

    def __call__(self, clip: Tensor, rng: np.random.RandomState) -> Tensor:
        return clip[:, :SIDE, :SIDE].permute(3, 0, 1, 2).contiguous()


class Letters:
    """Texts as the codes of their letters."""

    def encode(self, texts: Sequence[str], /) -> Tensor:
        codes = torch.zeros(len(texts), 24, dtype=torch.int64)
        for row, text in zip(codes, texts, strict=True):
            row[: len(text)] = torch.tensor([ord(letter) for letter in text])
        return codes


def picture(grey: int) -> bytes:
    """A PPM of one grey."""
    return b"P6 %d %d 255\n" % (SIDE, SIDE) + bytes([grey]) * (3 * SIDE * SIDE)


def png(grey: int) -> bytes:
    import matplotlib.image

    buffer = io.BytesIO()
    matplotlib.image.imsave(buffer, np.full((SIDE, SIDE, 3), grey, dtype=np.uint8), format="png")
    return buffer.getvalue()


def write_tar(path: Path, files: Mapping[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three shards of 7, 5 and 6 samples; the grey of picture n is n * 10, its caption "number n"."""
    made = tmp_path_factory.mktemp("shards")
    number = 0
    for shard, count in enumerate((7, 5, 6)):
        files: dict[str, bytes] = {}
        for _ in range(count):
            files[f"{number:06d}.png"] = png(number * 10)
            if number % 2:
                files[f"{number:06d}.txt"] = f"number {number}".encode()
            else:
                files[f"{number:06d}.json"] = json.dumps({"caption": f"number {number}", "width": SIDE}).encode()
            number += 1
        write_tar(made / f"{shard:05d}.tar", files)
    return made


def loader(
    pattern: Path | str, *, seed: int = 3, skipped: Path | None = None,
    batch_size: int = 2, workers: int = 0, max_unreadable: float = 0.01,
) -> ShardLoader:  # fmt: skip
    settings = LoaderSettings(
        batch_size=batch_size, seed=seed, single_frame=True, workers=workers, max_unreadable=max_unreadable
    )
    return ShardLoader(read_shards(str(pattern)), Sparse(frames=4, num_clips=1), Whole(), settings, tokenizer=Letters(),
                       skipped=skipped)  # fmt: skip


def numbers(batch: Batch) -> list[int]:
    """Which samples stand in a batch, by their pictures; captions and ids must say the same."""
    assert batch.video.dtype == torch.uint8
    assert batch.video.shape[1:] == (3, 1, SIDE, SIDE)
    assert batch.text_ids is not None
    seen = [round(float(clip.float().mean()) / 10) for clip in batch.video]
    said = ["".join(chr(code) for code in row if code) for row in batch.text_ids]
    assert said == [f"number {number}" for number in seen]
    assert [int(name[-6:]) for name in batch.ids] == seen
    return seen


def epoch(which: ShardLoader, k: int, start: int = 0) -> list[list[int]]:
    return [numbers(batch) for batch in which.epoch(k, start)]


def test_every_sample_comes_once_an_epoch_in_a_new_order(folder: Path) -> None:
    made = loader(folder)
    first, second = epoch(made, 0), epoch(made, 1)
    assert len(made) == len(first) == 9
    for batches in (first, second):
        assert sorted(number for batch in batches for number in batch) == list(range(18))
    assert first != second
    assert epoch(loader(folder), 1) == second
    assert epoch(loader(folder, seed=4), 1) != second
    assert made.data_time > 0


def test_a_resumed_epoch_gives_the_batches_of_the_whole_one(folder: Path) -> None:
    whole = epoch(loader(folder), 2)
    for start in (0, 1, 5, 9):
        assert epoch(loader(folder), 2, start) == whole[start:]


def test_ranks_cut_the_global_batch(folder: Path) -> None:
    whole = epoch(loader(folder, batch_size=4), 0)
    parts = []
    for rank in range(2):
        with as_process(rank, 2):
            parts.append(epoch(loader(folder, batch_size=2), 0))
    assert [a + b for a, b in zip(*parts, strict=True)] == whole


@pytest.mark.slow
def test_workers_change_nothing(folder: Path) -> None:
    assert epoch(loader(folder, workers=2), 0) == epoch(loader(folder), 0)


def test_samples_of_different_shards_meet_in_a_batch(folder: Path) -> None:
    shards = [{0 if number < 7 else 1 if number < 12 else 2 for number in batch} for batch in epoch(loader(folder), 0)]
    assert max(len(met) for met in shards) > 1


def test_videos_in_shards_are_clips(tmp_path: Path) -> None:
    frames = [np.full((16, 16, 3), 20 * number, dtype=np.uint8) for number in range(8)]
    write_video(tmp_path / "clip.mp4", frames, 8)
    write_tar(tmp_path / "v/0.tar", {"a.mp4": (tmp_path / "clip.mp4").read_bytes(), "a.txt": b"it gets lighter"})
    settings = LoaderSettings(batch_size=1, shuffle=False)
    made = ShardLoader(read_shards(str(tmp_path / "v")), Sparse(frames=4, num_clips=1), Whole(), settings)
    (batch,) = made.epoch(0)
    assert batch.video.shape == (1, 3, 4, SIDE, SIDE)
    means = batch.video.float().mean(dim=(0, 1, 3, 4))
    assert bool((means.diff() > 10).all())
    assert batch.text_ids is None


def test_a_picture_that_cannot_be_read_is_replaced_and_named(folder: Path, tmp_path: Path) -> None:
    files = {f"{n:06d}.png": png(n * 10) for n in range(6)} | {f"{n:06d}.txt": f"number {n}".encode() for n in range(6)}
    files["000002.png"] = b"no picture"
    files["000004.txt"] = b" \n "
    write_tar(tmp_path / "bad/0.tar", files)
    made = loader(tmp_path / "bad", max_unreadable=0.5, skipped=tmp_path / "skipped.jsonl")
    seen = [number for batch in epoch(made, 0) for number in batch]
    assert len(seen) == 6
    assert set(seen) == {0, 1, 3, 5}
    told = [json.loads(line) for line in (tmp_path / "skipped.jsonl").read_text().splitlines()]
    assert {entry["id"] for entry in told} == {"0/000002", "0/000004"}
    assert any("blank caption" in entry["reason"] for entry in told)
    assert not any("/tmp" in entry["reason"] and "tmp/tmp" in entry["reason"] for entry in told)
    with pytest.raises(VideoError, match="max_unreadable"):
        epoch(loader(tmp_path / "bad"), 0)


def test_what_is_kept_of_a_shard_is_used_until_the_shard_changes(folder: Path, tmp_path: Path) -> None:
    shard = tmp_path / "00000.tar"
    shutil.copy(folder / "00000.tar", shard)
    first = read_shard(str(shard), tmp_path / "index")
    (kept,) = (tmp_path / "index").iterdir()
    assert read_shard(str(shard), tmp_path / "index") == first == read_shard(str(shard))
    told = json.loads(kept.read_text())
    kept.write_text(json.dumps(told | {"entries": told["entries"][:2]}))
    assert len(read_shard(str(shard), tmp_path / "index").entries) == 2  # it is used
    shutil.copy(folder / "00001.tar", shard)
    with shard.open("ab") as file:
        file.write(bytes(10240))
    assert len(read_shard(str(shard), tmp_path / "index").entries) == 5  # the size differs
    kept.write_text("{")
    assert len(read_shard(str(shard), tmp_path / "index").entries) == 5


def test_the_fingerprint_changes_with_the_shards(folder: Path, tmp_path: Path) -> None:
    assert read_shards(str(folder)).fingerprint == read_shards(str(folder / "*.tar")).fingerprint
    shutil.copytree(folder, tmp_path / "fewer")
    (tmp_path / "fewer/00002.tar").unlink()
    assert read_shards(str(tmp_path / "fewer")).fingerprint != read_shards(str(folder)).fingerprint


def test_shards_are_named_by_folder_glob_or_range(folder: Path) -> None:
    names = tuple(str(folder / f"{number:05d}.tar") for number in range(3))
    assert list_shards(str(folder)) == names
    assert list_shards(f"{folder}/*.tar") == names
    assert list_shards(f"{folder}/{{00000..00002}}.tar") == names
    assert list_shards("s3://mine/{008..011}.tar")[2] == "s3://mine/010.tar"


def test_through_fsspec_the_same_batches_come(folder: Path) -> None:
    """A file system that only fsspec knows; the paths differ, the batches do not."""
    memory = fsspec.filesystem("memory")
    for path in sorted(folder.glob("*.tar")):
        memory.pipe(f"/shards/{path.name}", path.read_bytes())
    assert epoch(loader("memory://shards/{00000..00002}.tar"), 0) == epoch(loader(folder), 0)
    with pytest.raises(ManifestError, match="cannot be read"):
        read_shards("memory://shards/none.tar")


def test_samples_without_picture_or_caption_are_left_out_and_counted(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", {"a.png": png(10), "b.txt": b"alone", "c.png": png(20), "c.txt": b"number 2",
                                   "d.png": png(30), "d.txt": b"",
                                   "folder/e.png": png(40), "folder/e.json": b"{}"})  # fmt: skip
    made = read_shards(str(tmp_path))
    assert made.notes == ("3 samples lack an image, a video or a caption",)
    assert [entry.key for entry in made.rows.shards[0].entries] == ["c", "folder/e"]
    assert made.rows[0].captions == ("number 2",)
    assert made.rows[1].attributes["fault"] == "has a blank caption"


@pytest.mark.parametrize(
    ("content", "told"),
    [(b"", "no readable tar"), (b"x" * 2000, "no readable tar"), ("cut", "ends inside"), ("twice", "duplicate"),
     ("empty", "no sample")],
)  # fmt: skip
def test_a_shard_that_is_wrong_is_told(tmp_path: Path, content: bytes | str, told: str) -> None:
    path = tmp_path / "0.tar"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content == "cut":
        write_tar(path, {"a.txt": b"number 1", "a.png": png(10) + bytes(4000)})
        path.write_bytes(path.read_bytes()[:3000])
    elif content == "twice":
        write_tar(path, {"a.png": png(10), "a.PNG": png(10), "a.txt": b"a"})
    else:
        write_tar(path, {"a.txt": b"a"})
    with pytest.raises(ManifestError, match=told):
        read_shards(str(tmp_path))


@pytest.mark.parametrize("name", ["none", "none/*.tar", "{00003..00001}.tar", "{0..1}.tar.gz", "{5..6}.tar"])
def test_names_that_mean_no_shard_are_told(folder: Path, name: str) -> None:
    with pytest.raises(ManifestError):
        read_shards(str(folder / name))


def test_a_batch_larger_than_the_shards_is_told(folder: Path) -> None:
    with pytest.raises(RecipeError, match="18 clips"):
        loader(folder, batch_size=19)


def test_a_recipe_learns_every_second_batch_from_shards(folder: Path, tmp_path: Path) -> None:
    data = {"image_shards": str(folder), "shard_index": str(tmp_path), "image_batch_size": 3}
    source = prepare(build_recipe(small_recipe("multimodal", data=data))).loader
    batches = source.epoch(0)
    video, pictures = next(batches), next(batches)
    assert (len(pictures), pictures.video.shape[2]) == (3, 1)
    assert video.video.shape[2] > 1
    assert pictures.text_ids is not None
    assert len(list(tmp_path.iterdir())) == 3
    with pytest.raises(RecipeError, match="image_shards"):
        prepare(build_recipe(small_recipe("multimodal", data=data | {"image_manifest": "x.jsonl"})))
