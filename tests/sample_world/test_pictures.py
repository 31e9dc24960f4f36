"""Pictures of the sample world: what they show, what they are called, and how they are packed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from internvideo.data.manifest import Manifest, read_manifest
from internvideo.sample_world.clips import WorldSettings, held_out, plan
from internvideo.sample_world.language import TEMPLATES, training_captions
from internvideo.sample_world.pictures import draw, generate_pictures
from internvideo.video.reader import Video

SETTINGS = WorldSettings(clips=10, seed=4, size=32, difficulty=0.1, long_videos=0)
PACKED = 250
COUNT = PACKED + 6


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    folder = tmp_path_factory.mktemp("world")
    return read_manifest(generate_pictures(folder, SETTINGS, COUNT, packed=PACKED, progress=False)["pictures"])


def test_the_span_of_a_row_shows_its_picture_alone(pictures: Manifest) -> None:
    assert len(pictures) == COUNT
    for number in (0, 7, PACKED - 1, PACKED, COUNT - 1):
        row = pictures.rows[number]
        assert row.span is not None
        with Video(pictures.video_path(row)) as video:
            inside = video.info.within(*row.span)
            seen = video.frames(inside)
        facts, drawn = draw(SETTINGS, number)
        assert len(seen) == 1
        error = np.abs(seen[0].astype(float) - drawn[0]).mean()
        other = np.abs(seen[0].astype(float) - draw(SETTINGS, number + 1)[1][0]).mean()
        assert error < 8
        assert error < other / 2
        assert row.attributes == {
            name: getattr(facts, name) for name in ("shape", "colour", "texture", "size", "place")
        }


def test_captions_name_what_is_seen_in_words_that_clips_have_too(pictures: Manifest) -> None:
    words = {word for template in TEMPLATES for word in template.split()}
    for number in range(400):
        facts = plan(WorldSettings(clips=1000), "train", number).facts
        words |= {word for text in training_captions(facts, np.random.default_rng(number)) for word in text.split()}
    for row in pictures.rows:
        alone, placed, detailed = row.captions
        shape, colour = row.attributes["shape"], row.attributes["colour"]
        assert alone.split()[1:] == [shape]
        assert f"{colour} {shape}" in placed
        assert row.attributes["place"].split()[-1] in placed
        assert f"{row.attributes['texture']} {colour} {shape}" in detailed
        assert {word for text in row.captions for word in text.split()} <= words


def test_no_combination_of_the_test_clips_is_shown(pictures: Manifest) -> None:
    seen = {tuple(row.attributes[name] for name in ("shape", "colour", "place")) for row in pictures.rows}
    assert not any(held_out(*combination) for combination in seen)
    assert len(seen) > 150


def test_a_second_call_keeps_the_files_and_a_larger_set_begins_with_the_smaller(tmp_path: Path) -> None:
    first = generate_pictures(tmp_path, SETTINGS, PACKED, packed=PACKED, progress=False)["pictures"]
    rows = read_manifest(first).rows
    (file,) = (tmp_path / "pictures").iterdir()
    written = file.stat().st_mtime_ns
    second = read_manifest(generate_pictures(tmp_path, SETTINGS, COUNT, packed=PACKED, progress=False)["pictures"])
    assert second.rows[:PACKED] == rows
    assert file.stat().st_mtime_ns == written
