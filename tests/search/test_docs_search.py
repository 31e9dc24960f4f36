"""docs/search.md as it is written, on small files: every command and the program run."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import in_process
import odd_video
import postgres_server
import pytest
import use_world
from PIL import Image

PAGE = (Path(__file__).parents[2] / "docs" / "search.md").read_text("utf-8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("docs")
    shutil.copytree(use_world.clips(6), place / "videos")
    shutil.copytree(use_world.language_folder(), place / "mm.safetensors")  # a folder opens like a file
    for number in range(6):
        name = ("waving", "sitting")[number % 2]
        (place / "classes" / name).mkdir(parents=True, exist_ok=True)
        odd_video.encode(place / "classes" / name / f"{number}.mp4", odd_video.moving_frames(20, seed=number), fps=15)
    Image.new("RGB", (64, 48), "green").save(place / "frame.png")
    action = {"start": 0.5, "end": 2.0, "label": "jumping", "score": 0.7}
    rows = [{"path": f"videos/{number}.mp4", "duration": 3.0, "actions": [action]} for number in range(3)]
    (place / "actions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (place / "captions.jsonl").write_text('{"id": "a", "path": "videos/0.mp4", "captions": ["into the water"]}\n')
    (place / "unfit.txt").write_text("\n".join(f"a thing of kind {number}" for number in range(120)))
    return place


def test_every_command_runs(folder: Path) -> None:
    blocks = re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    assert len(lines) >= 18
    for line in lines:
        name, command, *words = shlex.split(line)
        assert name == "internvideo"
        if command == "serve":  # it would not end: tests/search/test_server.py starts it
            continue
        if "--database" in words:
            if not postgres_server.is_installed():
                continue
            words[words.index("--database") + 1] = postgres_server.new_database()
        done = in_process.command(command, *words, cwd=folder)
        assert done.code == 0, f"{line}\n{done.err}"
        assert done.out, line
    assert (folder / "moments.edl").is_file()
    assert len(list((folder / "clips").glob("*.mp4"))) == 3
    (program,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    (folder / "use.py").write_text(program)
    done = in_process.program(folder / "use.py", cwd=folder)
    assert done.code == 0, done.err
    assert "videos/" in done.out
