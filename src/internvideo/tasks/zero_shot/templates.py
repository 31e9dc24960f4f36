"""Sentences that turn a class name into a text (multi-modalities-downstream)."""

from __future__ import annotations

from collections.abc import Sequence

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
    """All texts in template-major order: every class of the first template comes first, P * C texts.

    Raises:
        ValueError: a template without exactly one "{}".
    """
    for template in templates:
        if template.count("{}") != 1:
            raise ValueError(f"the template {template!r} needs exactly one {{}}, the place of the class name")
    return [template.replace("{}", name) for template in templates for name in classes]
