"""Measure every table of RESULTS.md on the sample world from nothing, task by task; resumable at any moment.

python scripts/reproduce.py                         all tasks, into runs/reproduce
python scripts/reproduce.py --only zero_shot        one task and what it needs
python scripts/reproduce.py --list                  the tasks, with what each needs

Every step is a command that a reader can type; one whose result is there is not run again. Writes report.json, an entry
per figure ({"figure", "interval", "baseline", "holds", ...}), and report.html beside it.
"""

from __future__ import annotations

import argparse
import html
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from reproduce_navigation import NAVIGATION
from reproduce_open_set import OPEN_SET
from reproduce_real import REAL
from reproduce_tasks import WORLD, Figure, Task

ROOT = Path(__file__).parents[1]
FACTS = ("commit", "cpu", "torch")


def main() -> None:
    """Run what is missing, then write the report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("runs/reproduce"))
    parser.add_argument("--only", action="append", default=[], metavar="TASK", help="this task and what it needs")
    parser.add_argument("--data", type=Path, help="folder of real sets: their tasks instead of the sample world's")
    parser.add_argument("--list", action="store_true", help="print the tasks and end")
    args = parser.parse_args()
    tasks = {**WORLD, **OPEN_SET, **NAVIGATION} if args.data is None else REAL
    if args.list:
        print("\n".join(f"{name:22} {task.about}" for name, task in tasks.items()))
        return
    unknown = sorted({*args.only} - {*tasks})
    if unknown:
        sys.exit(f"--only: found '{unknown[0]}'; expected {', '.join(tasks)}")
    args.output.mkdir(parents=True, exist_ok=True)
    places = {"R": str(args.output), "DATA": str(args.data), "PY": sys.executable}
    failed: list[str] = []
    for name in wanted(tasks, args.only):
        if not {*tasks[name].needs} & {*failed} and run(name, tasks[name], args.output, places):
            write_report(args.output, tasks, places)
        else:
            failed.append(name)
    if failed:
        sys.exit(f"{', '.join(failed)} failed; see {args.output}/logs, mend and run the same command again")


def wanted(tasks: Mapping[str, Task], only: list[str]) -> Iterator[str]:
    """The tasks asked for and, before each, what it needs."""
    done: set[str] = set()

    def visit(name: str) -> Iterator[str]:
        for need in tasks[name].needs:
            yield from visit(need)
        if name not in done:
            done.add(name)
            yield name

    for name in only or list(tasks):
        yield from visit(name)


def run(name: str, task: Task, output: Path, places: Mapping[str, str]) -> bool:
    """Run the commands of a task whose results are missing; whether all are there now."""
    clock = output / "seconds.json"
    seconds: dict[str, float] = json.loads(clock.read_text("utf-8")) if clock.is_file() else {}
    (output / "logs").mkdir(exist_ok=True)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])}
    for result, command in task.commands:
        target = Path(result.format(**places))
        if target.exists():
            continue
        line = command.format(**places)
        print(f"[{name}] {line}", flush=True)
        words = shlex.split(line)
        if words[0] == "internvideo":
            words = [sys.executable, "-m", *words]
        elif words[0] == "python":
            words[0] = sys.executable
        began = time.monotonic()
        with (output / "logs" / f"{name}.log").open("ab") as log:
            status = subprocess.run(
                words, cwd=Path.cwd(), env=environment, stdout=log, stderr=log, check=False
            ).returncode
        seconds[name] = seconds.get(name, 0.0) + time.monotonic() - began
        clock.write_text(json.dumps(seconds, indent=1), "utf-8")
        if status or not target.exists():
            print(f"[{name}] status {status}, {target} {'is' if target.exists() else 'is not'} there", flush=True)
            return False
    return True


def value_at(path: str, places: Mapping[str, str]) -> tuple[Any, Any]:
    """FILE:KEY -> the figure and its interval; KEY may lead through dictionaries with dots or slashes."""
    file, _, key = path.format(**places).partition(":")
    content = json.loads(Path(file).read_text("utf-8"))
    if key in content.get("figures", {}):
        return content["figures"][key], content.get("intervals", {}).get(key)
    for part in key.split("/"):
        if isinstance(content, list):  # name=VALUE: the first one with it
            field, _, wanted_value = part.partition("=")
            content = next(one for one in content if str(one[field]) == wanted_value)
        else:
            content = content[part]
    return content, None


def measured(figure: Figure, places: Mapping[str, str]) -> dict[str, Any] | None:
    """The entry of a figure, None where it is not measured yet."""
    try:
        value, interval = value_at(figure.value, places)
        if figure.interval:
            interval = value_at(figure.interval, places)[0]
        base = figure.baseline if not isinstance(figure.baseline, str) else value_at(figure.baseline, places)[0]
    except (OSError, KeyError, ValueError, StopIteration):
        return None
    sign = -1 if figure.lower_is_better else 1
    edge = value if interval is None else interval[0 if sign > 0 else 1]
    holds = None if base is None else bool(sign * edge > sign * base)
    entry = {"figure": value, "interval": interval, "baseline": base, "holds": holds, "about": figure.about}
    return {**entry, "unit": figure.unit, "beside": figure.beside}


def write_report(output: Path, tasks: Mapping[str, Task], places: Mapping[str, str]) -> None:
    """report.json and report.html of what is measured so far."""
    clock = output / "seconds.json"
    seconds = json.loads(clock.read_text("utf-8")) if clock.is_file() else {}
    report: dict[str, Any] = {}
    for name, task in tasks.items():
        for key, figure in task.figures.items():
            entry = measured(figure, places)
            if entry is not None:
                commands = [command for _, command in task.commands]
                report[key] = {**entry, "task": name, "commands": commands, "seconds": seconds.get(name), **facts()}
                report[key]["real"] = places["DATA"] != "None"
    (output / "report.json").write_text(json.dumps(report, indent=1), "utf-8")
    rows = "".join(
        f"<tr><td>{html.escape(key)}</td><td>{html.escape(entry['about'])}</td><td>{shown(entry, 'figure')}</td>"
        f"<td>{shown(entry, 'interval')}</td><td>{html.escape(entry['beside'])} {shown(entry, 'baseline')}</td>"
        f"<td>{ {True: 'yes', False: 'no', None: '-'}[entry['holds']] }</td>"
        f"<td><details><summary>{round(entry['seconds'] or 0)} s</summary><pre>"
        f"{html.escape(chr(10).join(entry['commands']))}</pre></details></td></tr>"
        for key, entry in report.items()
    )
    page = (
        "<!doctype html><meta charset=utf-8><title>InternVideo: every task</title><style>body{font:14px sans-serif;"
        "margin:2em}td,th{padding:.3em .7em;border-bottom:1px solid #ccc;text-align:left}pre{white-space:pre-wrap}"
        "</style><h1>Every task, measured here</h1><p>Held-out clips; 95 % intervals. "
        f"Commit {facts()['commit']}.</p><table><tr><th>figure<th>what<th>ours<th>interval<th>baseline<th>holds<th>time"
        f"</tr>{rows}</table>"
    )
    (output / "report.html").write_text(page, "utf-8")


def shown(entry: Mapping[str, Any], key: str) -> str:
    """A value or an interval of an entry as text, shares in per cent."""
    value, unit = entry[key], entry["unit"]
    if value is None:
        return ""
    factor, after = (100, " %") if unit == "share" else (1, f" {unit}" if unit else "")
    if isinstance(value, list):
        return " to ".join(f"{factor * one:.1f}" for one in value)
    return f"{factor * value:.1f}{after}"


def facts() -> dict[str, str]:
    """Commit of this tree."""
    asked = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return {"commit": asked.stdout.strip() or "unknown"}


if __name__ == "__main__":
    main()
