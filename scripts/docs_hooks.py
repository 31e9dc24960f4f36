"""Hook of mkdocs: links out of docs/ lead to the repository, where one is known, and are plain text where none is.

GITHUB_REPOSITORY (set by GitHub's CI) is ORGANISATION/NAME.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from posixpath import join, normpath
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def on_page_markdown(markdown: str, page: Any, **settings: Any) -> str:
    """Rewrite the links of a page."""
    folder = join("docs", *page.file.src_uri.split("/")[:-1])

    def rewritten(found: re.Match[str]) -> str:
        text, target = found.groups()
        if re.match(r"[a-z]+:|#", target):
            return found[0]
        place = normpath(join(folder, target.partition("#")[0]))
        if place.startswith("docs/") and (ROOT / place).suffix == ".md":
            return found[0]
        if (ROOT / place).suffix in (".jpg", ".png", ".svg") and place.startswith("docs/"):
            return found[0]
        repository = os.environ.get("GITHUB_REPOSITORY")
        kind = "tree" if (ROOT / place).is_dir() else "blob"
        return f"[{text}](https://github.com/{repository}/{kind}/main/{place})" if repository else text

    return re.sub(r"\[([^\]\n]+)\]\(([^)\s]+)\)", rewritten, markdown)
