"""Write manifests of small real sets: words and sentences of GRID, folds of surv_fight, signers of wlasl100.

python scripts/real_sets.py DATA OUTPUT

DATA holds folders `grid`, `surv_fight` and `wlasl100` (those that are absent are left out), each with an index.csv:
path, label, split, group; GRID also mouth_path, verb, color, preposition, letter, digit and segments,
[[start, end, word], ...] in seconds; wlasl100 also split_signer. Written are

- grid_words.jsonl: one row per spoken word (its span, class = the word), split by utterance;
- grid_small.jsonl: six of the digits, 20 clips of each, 84 to learn from: a set as people bring it first;
- grid_sentences.jsonl: one row per utterance with caption, questions and the words' segments;
- surv_fight_0.jsonl ... _4.jsonl: five folds, no scene divided;
- wlasl100.jsonl: signer-disjoint.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from internvideo.data.manifest import write_manifest
from internvideo.data.sample import QA, Sample, Segment

FOLDS = 5
QUESTIONS = {
    "verb": "What is the first word?",
    "color": "Which colour is said?",
    "preposition": "Which preposition is said?",
    "letter": "Which letter is said?",
    "digit": "Which digit is said?",
}
SILENCE = {"sil", "sp"}
SMALL, CLIPS, LEARNED = ("one", "two", "three", "four", "five", "six"), 20, 14
"""Classes of the small set, clips of each, and how many of these are for training."""


def main() -> None:
    """Write the manifests of the sets that are there."""
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    data, output = Path(sys.argv[1]).resolve(), Path(sys.argv[2])
    output.mkdir(parents=True, exist_ok=True)
    for name, write in (("grid", grid), ("surv_fight", surv_fight), ("wlasl100", wlasl100)):
        if (data / name / "index.csv").is_file():
            write(data / name, output)
        else:
            print(f"{data / name}/index.csv is not there: left out")


def logit_indices(folder: Path) -> Iterator[dict[str, str]]:
    """Rows of a set's index."""
    with (folder / "index.csv").open(encoding="utf-8", newline="") as stream:
        yield from csv.DictReader(stream)


def grid(folder: Path, output: Path) -> None:
    """Mouth views of the speaker who said most: words, and sentences."""
    rows = [row for row in logit_indices(folder) if row["mouth_path"]]
    speakers = [row["group"] for row in rows]
    most = max(set(speakers), key=speakers.count)
    rows = [row for row in rows if row["group"] == most]
    said = {row["mouth_path"]: [part for part in json.loads(row["segments"]) if part[2] not in SILENCE] for row in rows}
    words = sorted({word for parts in said.values() for _, _, word in parts})
    spoken, sentences = [], []
    for row in rows:
        path, name, parts = str(folder / row["mouth_path"]), Path(row["mouth_path"]).stem, said[row["mouth_path"]]
        facts = {"path": path, "split": row["split"], "group": name}
        spoken += [
            Sample(id=f"{name}-{place}", span=(start, end), label=words.index(word), **facts)
            for place, (start, end, word) in enumerate(parts)
        ]
        questions = tuple(QA(question=text, answer=row[kind], type=kind) for kind, text in QUESTIONS.items())
        segments = tuple(Segment(start=start, end=end, label=words.index(word)) for start, end, word in parts)
        sentences.append(Sample(id=name, captions=(row["caption"],), qa=questions, segments=segments, **facts))
    write_manifest(output / "grid_words.jsonl", spoken, words)
    write_manifest(output / "grid_sentences.jsonl", sentences, words)
    write_manifest(output / "grid_small.jsonl", small(spoken, words), SMALL)
    print(f"grid: {len(spoken)} words of {len(words)} kinds in {len(sentences)} sentences")


def small(spoken: list[Sample], words: list[str]) -> list[Sample]:
    """The first clips of each small class; no utterance says two digits."""
    rows = []
    for label, word in enumerate(SMALL):
        chosen = [row for row in spoken if row.label == words.index(word)][:CLIPS]
        for place, row in enumerate(chosen):
            rows.append(row.model_copy(update={"label": label, "split": "train" if place < LEARNED else "test"}))
    return rows


def surv_fight(folder: Path, output: Path) -> None:
    """Five folds; every scene is tested once."""
    from sklearn.model_selection import StratifiedGroupKFold

    rows = list(logit_indices(folder))
    classes = sorted({row["label"] for row in rows})
    labels, groups = [classes.index(row["label"]) for row in rows], [row["group"] for row in rows]
    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0).split(rows, labels, groups)
    for fold, (_, test) in enumerate(folds):
        held = set(np.asarray(test).tolist())
        samples = [
            Sample(
                id=row["path"], path=str(folder / row["path"]), label=label, group=row["group"],
                captions=(row["caption"],), split="test" if place in held else "train",
            )
            for place, (row, label) in enumerate(zip(rows, labels, strict=True))
        ]  # fmt: skip
        write_manifest(output / f"surv_fight_{fold}.jsonl", samples, classes)
    print(f"surv_fight: {len(rows)} clips of {len(set(groups))} scenes in {FOLDS} folds")


def wlasl100(folder: Path, output: Path) -> None:
    """No signer of the test is trained on."""
    rows = list(logit_indices(folder))
    classes = sorted({row["label"] for row in rows})
    samples = [
        Sample(
            id=row["path"], path=str(folder / row["path"]), label=classes.index(row["label"]), group=row["group"],
            captions=(row["caption"],), split=row["split_signer"],
        )
        for row in rows
    ]  # fmt: skip
    write_manifest(output / "wlasl100.jsonl", samples, classes)
    print(f"wlasl100: {len(rows)} clips of {len(classes)} words")


if __name__ == "__main__":
    main()
