"""Release the version that CHANGELOG.md names as unreleased: version and date in the files, a commit and a tag.

python scripts/release.py                  commit and tag; nothing is pushed
python scripts/release.py --check v0.1.0   fail where the files have another version than the tag, or an unreleased one

`git push origin main v0.1.0` then publishes it (.github/workflows/release.yml). The addresses that a package index
shows are those of the remote `origin`; without such a remote the package names the paper alone.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

HEADING = re.compile(r"^## (\d+\.\d+\.\d+) - (\S+)$", re.M)
PLACES = {"pyproject.toml": r'^version = "(.*)"$', "src/internvideo/__init__.py": r'^__version__ = "(.*)"$'}
"""Each file that names the version, and the line that does."""


def git(*arguments: str) -> str:
    """Output of a git command in the current folder."""
    return subprocess.run(["git", *arguments], check=True, capture_output=True, text=True).stdout.strip()


def newest() -> tuple[str, str]:
    """Version and date ("unreleased" before the release) of the first heading of CHANGELOG.md."""
    found = HEADING.search(Path("CHANGELOG.md").read_text(encoding="utf-8"))
    if found is None:
        sys.exit("CHANGELOG.md: no heading '## 1.2.3 - unreleased'")
    return found[1], found[2]


def addresses() -> str:
    """Lines of [project.urls] for the remote `origin`, "" where it is no address of the web."""
    try:
        remote = git("remote", "get-url", "origin")
    except subprocess.CalledProcessError:
        return ""
    web = re.fullmatch(r"(?:https://|ssh://git@|git@)([^/:@]+)[/:](.+?)(?:\.git)?/?", remote)
    if web is None:
        return ""
    home = f"https://{web[1]}/{web[2]}"
    pages = {"": "Homepage", "/blob/main/docs/index.md": "Documentation", "/blob/main/CHANGELOG.md": "Changelog"}
    return "".join(f'{name} = "{home}{page}"\n' for page, name in pages.items()) + f'Source = "{home}"\n'


def check(tag: str) -> None:
    """Exit with one line where CHANGELOG.md or a file of PLACES disagrees with the tag."""
    version, date = newest()
    if date == "unreleased":
        sys.exit(f"CHANGELOG.md: {version} is unreleased; run scripts/release.py first")
    found = {"CHANGELOG.md": version}
    for name, line in PLACES.items():
        match = re.search(line, Path(name).read_text(encoding="utf-8"), re.M)
        found[name] = match[1] if match else "no version"
    wrong = [f"{name} has {version}" for name, version in found.items() if f"v{version}" != tag]
    if wrong:
        sys.exit(f"tag {tag}: {', '.join(wrong)}")


def release() -> str:
    """Write version and date, commit and tag. Returns the tag."""
    version, date = newest()
    tag = f"v{version}"
    if date != "unreleased":
        sys.exit(f"CHANGELOG.md: {version} was released on {date}; add a heading '## 1.2.3 - unreleased' above it")
    if git("status", "--porcelain"):
        sys.exit("uncommitted changes; commit or stash them")
    if git("tag", "--list", tag):
        sys.exit(f"the tag {tag} exists")
    today = datetime.now(UTC).date().isoformat()
    edits = {"CHANGELOG.md": (HEADING.pattern, f"## {version} - {today}")}
    edits |= {name: (line, line.strip("^$").replace("(.*)", version)) for name, line in PLACES.items()}
    for name, (line, now) in edits.items():
        path = Path(name)
        path.write_text(re.sub(line, now, path.read_text(encoding="utf-8"), count=1, flags=re.M), encoding="utf-8")
    project = Path("pyproject.toml")
    text, named = project.read_text(encoding="utf-8"), addresses()
    if named and "\nHomepage = " not in text:
        project.write_text(text.replace("[project.urls]\n", f"[project.urls]\n{named}", 1), encoding="utf-8")
    git("commit", "--all", "--message", f"Release {version}")
    git("tag", "--annotate", tag, "--message", f"internvideo {version}")
    check(tag)
    return tag


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", metavar="TAG", help="compare the files with a tag and change nothing")
    asked = parser.parse_args()
    if asked.check:
        check(asked.check)
    else:
        made = release()
        print(f"tagged {made}; to publish it: git push origin main {made}")
