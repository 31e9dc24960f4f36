"""Write the tables of RESULTS.md from the figures of scripts/reproduce.py, so that no figure can drift from its run.

python scripts/results.py                                      write the tables again
python scripts/results.py --check                              fail where RESULTS.md is out of date
python scripts/results.py --take runs/reproduce/report.json    take over the figures of a run, then write

The figures are kept in results/*.json, each with the commit that it was measured at: `sample_world` and `real`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGE, KEPT = ROOT / "RESULTS.md", ROOT / "results"
HOLDS = {True: "yes", False: "no", None: ""}


def shown(entry: Mapping[str, Any], key: str) -> str:
    """A figure or a baseline, shares in per cent."""
    value = entry.get(key)
    if value is None:
        return ""
    factor, unit = (100, "") if entry["unit"] == "share" else (1, f" {entry['unit']}" if entry["unit"] else "")
    if isinstance(value, list):
        return f" ({factor * value[0]:.1f} to {factor * value[1]:.1f})"
    return f"{factor * value:.1f}{unit}"


def table(entries: Mapping[str, Mapping[str, Any]]) -> str:
    """One row a figure."""
    lines = ["| figure | what | ours | beside it | above it | commit |", "|---|---|---|---|---|---|"]
    for name, entry in entries.items():
        ours = shown(entry, "figure") + shown(entry, "interval")
        beside = f"{entry['beside']} {shown(entry, 'baseline')}" if entry.get("baseline") is not None else ""
        lines.append(f"| {name} | {entry['about']} | {ours} | {beside} | {HOLDS[entry['holds']]} | {entry['commit']} |")
    return "\n".join(lines) + "\n"


def page(text: str) -> str:
    """RESULTS.md with its tables as the kept figures are."""
    for path in sorted(KEPT.glob("*.json")):
        begin, end = f"<!-- {path.stem}: scripts/results.py -->\n", f"<!-- end of {path.stem} -->"
        if begin not in text:
            raise SystemExit(f"{PAGE}: no line {begin.strip()}")
        before, _, rest = text.partition(begin)
        text = f"{before}{begin}{table(json.loads(path.read_text('utf-8')))}{end}{rest.partition(end)[2]}"
    return text


def take(report: Path) -> None:
    """Keep the figures of a run beside those of others; a figure that was measured again takes the old one's place."""
    found = json.loads(report.read_text("utf-8"))
    real = all(entry.get("real") for entry in found.values())
    target = KEPT / ("real.json" if real else "sample_world.json")
    KEPT.mkdir(exist_ok=True)
    kept = json.loads(target.read_text("utf-8")) if target.is_file() else {}
    target.write_text(json.dumps({**kept, **found}, indent=1) + "\n", "utf-8")


def main() -> None:
    """Write, or check."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--take", type=Path, help="report.json of a run")
    args = parser.parse_args()
    if args.take is not None:
        take(args.take)
    text = PAGE.read_text("utf-8")
    made = page(text)
    if args.check and made != text:
        sys.exit(f"{PAGE.name} is out of date: python scripts/results.py")
    PAGE.write_text(made, "utf-8")


if __name__ == "__main__":
    main()
