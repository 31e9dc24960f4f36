"""Prompt templates: sentences with a class name (multi-modalities-downstream)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from internvideo.data.lists import read_text
from internvideo.errors import ManifestError

ACTION_TEMPLATES = (
    "a photo of action {}",
    "a picture of action {}",
    "Human action of {}",
    "{}, an action",
    "{} this is an action",
    "{}, a video of action",
    "Playing action of {}",
    "{}",
    "Playing a kind of action, {}",
    "Doing a kind of action, {}",
    "Look, the human is {}",
    "Can you recognize the action of {}?",
    "Video classification of {}",
    "A video of {}",
    "The man is {}",
    "The woman is {}",
)
"""The 16 published action templates, in their order."""


def fill(templates: Sequence[str], classes: Sequence[str]) -> list[str]:
    """Fill P templates with C class names: P * C texts, all classes of the first template first.

    Raises:
        ValueError: a template without exactly one "{}".
    """
    for template in templates:
        if template.count("{}") != 1:
            raise ValueError(f"the template {template!r} needs exactly one {{}}, the place of the class name")
    return [template.replace("{}", name) for template in templates for name in classes]


def templates_of(manifest: Path, given: Path | None = None) -> tuple[str, ...]:
    """Read the templates of a data set, one per line: from `given`, else from `NAME.templates.txt` or `templates.txt`
    next to the manifest, else the published ones.

    Raises:
        ManifestError: a file that cannot be read, or a line without exactly one "{}".
    """
    beside = (manifest.with_name(f"{manifest.stem}.templates.txt"), manifest.with_name("templates.txt"))
    path = given or next((one for one in beside if one.is_file() and one != manifest), None)
    if path is None:
        return ACTION_TEMPLATES
    lines = tuple(line.strip() for line in read_text(path).splitlines() if line.strip())
    wrong = next((line for line in lines if line.count("{}") != 1), None)
    if wrong is not None or not lines:
        raise ManifestError(path, f"'{wrong}'" if wrong else "no line", 'sentences with one "{}" each, one a line')
    return lines
