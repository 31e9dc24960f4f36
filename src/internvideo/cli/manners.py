"""Help and error messages of the command line: groups, summaries, examples, and all mistakes of a line at once."""

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
"""Title -> commands, as `internvideo --help` shows them; commands that stand nowhere come last."""

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
    "mix": ("internvideo mix base.safetensors tuned.safetensors -o mixed.safetensors",),
    "score": ("internvideo score runs/a/recognition.npz", "internvideo score runs/a/recognition.npz --json"),
    "export": ("internvideo export mm.safetensors --what video -o mm.onnx",),
    "convert": ("internvideo convert InternVideo-MM-L-14.ckpt -o mm.safetensors",),
    "evaluate": (
        "internvideo evaluate recognition runs/actions runs/world/test.jsonl -o runs/actions",
        "internvideo evaluate recognition --help",
    ),
}

EVALUATED = {
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
"""Task -> what it is tested on, for its example."""


class Command(TyperCommand):
    """A command whose help ends with examples, and that tells all missing or unknown arguments of a line at once."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse, and tell every mistake of the line: a second one does not wait until the first is mended."""
        given, mistakes = list(args), []
        while True:
            try:
                rest = super().parse_args(ctx, list(given))
            except typer.TyperException as error:
                self.refuse(getattr(error, "option_name", ""))
                mistakes.append(" ".join(error.format_message().split()).rstrip("."))
                # An unknown option is left out, one of a wrong value together with it, and the line is read again.
                parameter = getattr(error, "param", None)
                names = [getattr(error, "option_name", None)] if parameter is None else parameter.opts
                place = next((n for n, word in enumerate(given) if word.split("=")[0] in names), None)
                if place is None:  # nothing to leave out: the end
                    mistakes += [text for text in self._missing(ctx, given) if text not in mistakes]
                    ctx.fail("; ".join(mistakes))
                else:
                    del given[place : place + (1 if parameter is None or "=" in given[place] else 2)]
            else:
                if mistakes:
                    ctx.fail("; ".join(mistakes))
                return rest

    def refuse(self, option: str) -> None:
        """Raise a more exact error for an option that does not exist, where there is one."""

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
    """The commands in groups, each with its whole first sentence."""

    groups: ClassVar[Mapping[str, tuple[str, ...]]] = GROUPS
    others = "More"

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write them."""
        names = list(self.list_commands(ctx))
        grouped = {name for group in self.groups.values() for name in group}
        for title, wanted in {**self.groups, self.others: tuple(n for n in names if n not in grouped)}.items():
            rows = [(name, summary(self.get_command(ctx, name))) for name in wanted if name in names]
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
            parts = textwrap.wrap(line, width, break_long_words=False, break_on_hyphens=False)
            for number, part in enumerate(parts):
                end = " \\" if number + 1 < len(parts) else ""
                formatter.write(f"{'':{formatter.current_indent + (2 if number else 0)}}{part}{end}\n")
