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


def fill_templates(templates: Sequence[str], classes: Sequence[str]) -> list[str]:
    """Fill P templates with C class names: P * C texts, all classes of the first template first.

    Raises:
        ValueError: a template without exactly one "{}".
    """
    for template in templates:
        if template.count("{}") != 1:
            raise ValueError(f"the template {template!r} needs exactly one {{}} for the class name")
    return [template.replace("{}", name) for template in templates for name in classes]


def read_templates(manifest: Path, file: Path | None = None) -> tuple[str, ...]:
    """Read the prompt templates of a data set, one per line.

    Args:
        manifest: its folder may contain `NAME.templates.txt` or `templates.txt`; otherwise the published ones are used.
        file: a file that is used instead.

    Raises:
        ManifestError: a file that cannot be read, or a line without exactly one "{}".
    """
    default_files = (manifest.with_name(f"{manifest.stem}.templates.txt"), manifest.with_name("templates.txt"))
    path = file or next(
        (path_option for path_option in default_files if path_option.is_file() and path_option != manifest), None
    )
    if path is None:
        return ACTION_TEMPLATES
    lines = tuple(line.strip() for line in read_text(path).splitlines() if line.strip())
    malformed = next((line for line in lines if line.count("{}") != 1), None)
    if malformed is not None or not lines:
        raise ManifestError(
            path, f"'{malformed}'" if malformed else "no line", 'sentences with one "{}" each, one per line'
        )
    return lines
