"""The release script, in a repository of its own: version, date, commit and tag; what it refuses."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from datetime import UTC, datetime
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "scripts" / "release.py"


def run(folder: Path, *command: str | Path) -> subprocess.CompletedProcess[str]:
    who = {f"GIT_{role}_{part}": "x@example.org" for role in ("AUTHOR", "COMMITTER") for part in ("NAME", "EMAIL")}
    environment = {**os.environ, **who, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CEILING_DIRECTORIES": str(folder.parent)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def release(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run(folder, sys.executable, SCRIPT, *arguments)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """The package's own files, as if 7.8.9 were to come."""
    for name in ("pyproject.toml", "src/internvideo/__init__.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "CHANGELOG.md").write_text("# Changelog\n\n## 7.8.9 - unreleased\n\n- New.\n\n## 0.0.1 - 2020-01-01\n")
    for command in (("init", "--initial-branch", "main"), ("add", "."), ("commit", "--message", "All")):
        assert run(tmp_path, "git", *command).returncode == 0
    return tmp_path


def test_a_release_has_one_version_everywhere(repository: Path) -> None:
    before = release(repository, "--check", "v7.8.9")
    assert before.returncode == 1
    assert "7.8.9 is unreleased" in before.stderr
    done = release(repository)
    assert done.stdout == "tagged v7.8.9; to publish it: git push origin main v7.8.9\n", done.stderr
    today = datetime.now(UTC).date()
    assert f"## 7.8.9 - {today}\n\n- New.\n\n## 0.0.1 - 2020-01-01\n" in (repository / "CHANGELOG.md").read_text()
    assert '\nversion = "7.8.9"\n' in (repository / "pyproject.toml").read_text()
    assert '\n__version__ = "7.8.9"\n' in (repository / "src/internvideo/__init__.py").read_text()
    assert run(repository, "git", "status", "--porcelain").stdout == ""
    assert run(repository, "git", "describe").stdout == "v7.8.9\n"
    assert release(repository, "--check", "v7.8.9").returncode == 0
    other = release(repository, "--check", "v7.9.0")
    assert other.returncode == 1
    assert "tag v7.9.0: CHANGELOG.md has 7.8.9, pyproject.toml has 7.8.9" in other.stderr


@pytest.mark.parametrize("remote", ["git@example.org:us/video.git", "https://example.org/us/video"])
def test_the_addresses_are_those_of_the_remote(repository: Path, remote: str) -> None:
    run(repository, "git", "remote", "add", "origin", remote)
    assert release(repository).returncode == 0
    urls = tomllib.loads((repository / "pyproject.toml").read_text())["project"]["urls"]
    assert urls["Homepage"] == urls["Source"] == "https://example.org/us/video"
    assert urls["Changelog"] == "https://example.org/us/video/blob/main/CHANGELOG.md"
    assert {"Documentation", "Paper"} <= urls.keys()


def test_what_is_no_release_is_refused(repository: Path) -> None:
    (repository / "new.txt").write_text("x")
    assert release(repository).stderr == "uncommitted changes; commit or stash them\n"
    (repository / "new.txt").unlink()
    run(repository, "git", "tag", "v7.8.9")
    assert release(repository).stderr == "the tag v7.8.9 exists\n"
    run(repository, "git", "tag", "--delete", "v7.8.9")
    assert release(repository).returncode == 0
    assert "7.8.9 was released on" in release(repository).stderr


def test_the_wheel_has_every_file_of_the_package(tmp_path: Path) -> None:
    """Types, recipes, templates and assets as well as modules; no tests, no hidden files."""
    hatchling = pytest.importorskip("hatchling.builders.wheel")
    (wheel,) = hatchling.WheelBuilder(str(ROOT)).build(directory=str(tmp_path))
    names = set(zipfile.ZipFile(wheel).namelist())
    source = ROOT / "src"
    kept = {path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()}
    wanted = {name for name in kept if "__pycache__" not in name}
    recipes = {f"internvideo/recipes/{path.relative_to(ROOT / 'recipes')}" for path in ROOT.glob("recipes/**/*.yaml")}
    assert wanted | recipes <= names
    assert {"internvideo/py.typed"} <= names
    strange = {name for name in names - wanted - recipes if ".dist-info/" not in name}
    assert strange == set()


def test_the_own_changelog_can_be_released() -> None:
    """Its first heading is a version that `scripts/release.py` reads."""
    told = release(ROOT, "--check", "v0.0.0").stderr
    assert "unreleased" in told or "tag v0.0.0" in told
