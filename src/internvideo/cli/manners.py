"""Format help and error messages of the command line: groups, summaries, examples, all errors of a line at once."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping
from typing import Any, ClassVar

import typer
from typer.core import TyperCommand, TyperGroup

GROUPS: dict[str, tuple[str, ...]] = {
    "Start": ("demo", "sample-world", "list", "doctor"),
    "Use a model": (
        "embed",
        "index",
        "search",
        "serve",
        "classify",
        "caption",
        "ask",
        "compare",
        "localize",
        "stream",
        "persons",
    ),
    "Your own classes": ("fit",),
    "Train": ("train", "prepare", "pack", "extract", "navigation-world", "mix"),
    "Test": ("evaluate", "score", "ensemble"),
    "Weights": ("convert", "export"),
}
"""Title -> commands in `internvideo --help`; commands that are in no group come last."""

EXAMPLES: dict[str, tuple[str, ...]] = {
    "demo": ("internvideo demo", "internvideo demo --data my_videos --output runs/mine"),
    "sample-world": ("internvideo sample-world runs/world --clips 200 --seed 0",),
    "list": ("internvideo list models", "internvideo list benchmarks --json"),
    "doctor": ("internvideo doctor", "internvideo doctor --json"),
    "embed": (
        "internvideo embed videos -r -o vectors.npy -e mm.safetensors",
        "internvideo embed videos -r -o vectors.npy -e mm.safetensors --window-seconds 2",
        "find videos -name '*.mp4' | internvideo embed - -o vectors.npy -e mm.safetensors",
    ),
    "index": ("internvideo index videos -r -o collection -e mm.safetensors",),
    "search": (
        'internvideo search collection "somebody opens a door"',
        "internvideo search collection --like clip.mp4@3.5 --json",
    ),
    "serve": ("internvideo serve collection", "internvideo serve collection --mcp"),
    "classify": (
        'internvideo classify clip.mp4 -e mm.safetensors --labels "waving, sitting down"',
        "internvideo classify clip.mp4 -e mm.safetensors --model runs/fit/classifier.safetensors --json",
        "cat labels.txt | internvideo classify clip.mp4 -e mm.safetensors --labels-file -",
    ),
    "caption": ("internvideo caption clip.mp4 -e runs/demo/multimodal_pretrained --num-beams 3",),
    "ask": ('internvideo ask clip.mp4 "what is the man doing?" -m answering.safetensors',),
    "compare": (
        "internvideo compare one.mp4 two.mp4 -e mm.safetensors",
        'internvideo compare one.mp4 "a dog runs" --text -e mm.safetensors --json',
    ),
    "stream": ('internvideo stream camera:0 -e mm.safetensors --labels "waving, sitting down"',),
    "fit": ("internvideo fit videos -e mm.safetensors -o mine",),
    "train": (
        "internvideo train sample/masked data.train=runs/world/train.jsonl --dry-run",
        "internvideo train sample/masked data.train=runs/world/train.jsonl -o runs/masked",
    ),
    "prepare": ("internvideo prepare kinetics400 --annotations annotations --videos videos -o data/k400",),
    "pack": ("internvideo pack data/k400.csv -o data/k400_packed --split train --short-side 256 --key-frames 32",),
    "extract": ("internvideo extract long.jsonl -e mm.safetensors -o features",),
    "localize": ("internvideo localize long.mp4 --detector runs/localization -e mm.safetensors -o timelines",),
    "persons": ("internvideo persons frames.jsonl -d hf://ORGANISATION/REPOSITORY -o persons.csv",),
    "navigation-world": ("internvideo navigation-world runs/houses --scenes 8 --episodes 100",),
    "ensemble": ("internvideo ensemble runs/a/recognition.npz runs/b/recognition.npz -o runs/both",),
    "mix": ("internvideo mix tuned.safetensors --base base.safetensors -o mixed.safetensors",),
    "score": ("internvideo score runs/a/recognition.npz", "internvideo score runs/a/recognition.npz --json"),
    "export": ("internvideo export mm.safetensors --what video -o mm.onnx",),
    "convert": ("internvideo convert InternVideo-MM-L-14.ckpt -o mm.safetensors",),
    "evaluate": (
        "internvideo evaluate recognition runs/actions runs/world/test.jsonl -o runs/actions",
        "internvideo evaluate recognition --help",
    ),
}

EVALUATE_ARGUMENTS = {
    "anticipation": "world/ego/contact.jsonl --split test --boxes world/ego/contact.detections.json",
    "captioning": "runs/world/test.jsonl --num-beams 4",
    "future_hands": "world/ego/hands.jsonl --split test",
    "grounding": "world/queries.jsonl --split test",
    "multiple_choice": "data/msrvtt_mc/test.jsonl",
    "navigation": "runs/houses --split val_unseen",
    "open_set": "runs/world/open_set.jsonl",
    "question_answering": "runs/world/test.jsonl",
    "recognition": "runs/world/test.jsonl --num-clips 4 --num-crops 3 --json",
    "refinement": "features --split test --proposals runs/detector/detections.json",
    "retrieval": "data/msrvtt/test.jsonl --querybank data/msrvtt/train.jsonl",
    "spatio_temporal_localization": "data/ava/val.jsonl --persons persons.csv",
    "state_change": "world/ego/change.jsonl --split test --boxes world/ego/change.detections.json",
    "temporal_localization": "features --split test",
    "verb_noun": "world/ego/actions.jsonl --split test",
    "zero_shot": "runs/world/zero_shot.jsonl",
}
"""Task -> arguments after the weights, for the example in its help."""


class Command(TyperCommand):
    """A command whose help ends with examples, and that reports all missing or unknown arguments of a line at once."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse a line; report all its errors in one message."""
        remaining, messages = list(args), []
        while True:
            try:
                unparsed = super().parse_args(ctx, list(remaining))
            except typer.TyperException as error:
                option = getattr(error, "option_name", "")
                self.refuse(option)
                message = " ".join(error.format_message().split()).rstrip(".")
                if any(option in parameter.opts for parameter in ctx.find_root().command.params):
                    message += f" (it stands before the command: internvideo {option} {ctx.info_name})"
                messages.append(message)
                # Remove the unknown option, or the option with an invalid value, and parse the line again.
                parameter = getattr(error, "param", None)
                names = [getattr(error, "option_name", None)] if parameter is None else parameter.opts
                position = next((n for n, word in enumerate(remaining) if word.split("=")[0] in names), None)
                if position is None:  # nothing can be removed
                    messages += [text for text in self._missing(ctx, remaining) if text not in messages]
                    ctx.fail("; ".join(messages))
                else:
                    del remaining[position : position + (1 if parameter is None or "=" in remaining[position] else 2)]
            else:
                if messages:
                    ctx.fail("; ".join(messages))
                return unparsed

    def refuse(self, option: str) -> None:
        """Raise a more specific error for an unknown option; subclasses override this."""

    def examples(self) -> tuple[str, ...]:
        """Return the example lines at the end of the help."""
        return EXAMPLES.get(self.name or "", ())

    def _missing(self, ctx: Any, args: list[str]) -> list[str]:
        try:
            values, _, _ = self.make_parser(ctx).parse_args(args=list(args))
        except typer.TyperException:
            return []
        found = []
        for parameter in self.get_params(ctx):
            if parameter.required and parameter.consume_value(ctx, values)[0] in (None, (), []):
                kind = "option" if parameter.opts[0].startswith("-") else "argument"
                names = " / ".join(f"'{name}'" for name in parameter.opts)
                found.append(f"Missing {kind} {names}")
        return found

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the examples, one per line; long ones are wrapped."""
        write_examples(formatter, self.examples())


class Group(TyperGroup):
    """A help page with the commands in groups, each with its first sentence."""

    groups: ClassVar[Mapping[str, tuple[str, ...]]] = GROUPS
    other_title = "More"

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the groups of commands."""
        names = list(self.list_commands(ctx))
        grouped = {name for group in self.groups.values() for name in group}
        for title, group_commands in {
            **self.groups,
            self.other_title: tuple(n for n in names if n not in grouped),
        }.items():
            rows = [(name, summary(self.get_command(ctx, name))) for name in group_commands if name in names]
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)


def summary(command: Any) -> str:
    """Return the first sentence of a command's help."""
    first = " ".join(str(command.help or "").split("\n\n")[0].split())
    return re.split(r"(?<=[.!?]) (?=[A-Z])", first)[0].rstrip(".")


def write_examples(formatter: Any, lines: tuple[str, ...]) -> None:
    """Write example commands as a section of a help page."""
    if not lines:
        return
    with formatter.section("Examples"):
        width = max(formatter.width - formatter.current_indent - 2, 40)
        for line in lines:
            wrapped = textwrap.wrap(line, width, break_long_words=False, break_on_hyphens=False)
            for index, text_line in enumerate(wrapped):
                end = " \\" if index + 1 < len(wrapped) else ""
                formatter.write(f"{'':{formatter.current_indent + (2 if index else 0)}}{text_line}{end}\n")
