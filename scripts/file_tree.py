"""Write the file tree of docs/architecture.md from the first lines of the modules.

python scripts/file_tree.py            write it
python scripts/file_tree.py --check    fail where the page is out of date
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "internvideo"
PAGE = ROOT / "docs" / "architecture.md"
BEGIN, END = "<!-- file tree: scripts/file_tree.py -->\n", "<!-- end of the file tree -->"


def summary(path: Path) -> str:
    """First line of a module's docstring."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return text.partition("\n")[0].rstrip(".")


def lines(folder: Path, depth: int = 1) -> list[str]:
    """One line per module below `folder`, folders after files."""
    indent = "  " * depth
    files = [path for path in sorted(folder.glob("*.py")) if path.name != "__init__.py" or folder == PACKAGE]
    found = [f"{indent}{path.name:<24} {summary(path)}" for path in files]
    for inner in sorted(path.parent for path in folder.glob("*/__init__.py")):
        found += [f"{indent}{inner.name + '/':<24} {summary(inner / '__init__.py')}", *lines(inner, depth + 1)]
    return found


def page(text: str) -> str:
    """The page with its tree as it is now."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    tree = "\n".join(["```", "src/internvideo/", *lines(PACKAGE), "```"])
    return f"{before}{BEGIN}{tree}\n{END}{after}"


if __name__ == "__main__":
    old = PAGE.read_text(encoding="utf-8")
    new = page(old)
    if "--check" in sys.argv:
        sys.exit(0 if new == old else f"{PAGE}: the file tree is out of date: python scripts/file_tree.py")
    PAGE.write_text(new, encoding="utf-8")
