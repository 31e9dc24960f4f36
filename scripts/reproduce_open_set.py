"""The task of scripts/reproduce.py that holds whole families of actions out."""

from __future__ import annotations

from reproduce_tasks import D, Figure, Task, W, evaluate, train

_FOLDER = "{R}/families"
_FIGURES = f"{_FOLDER}/test/open_set.json"

OPEN_SET: dict[str, Task] = {
    "open_set_families": Task(
        "known or unknown: bouncing, shaking and blinking held out of the training with labels",
        (
            (f"{_FOLDER}/open_set.jsonl", f"python scripts/open_set_families.py {W} {_FOLDER}"),
            train(
                "supervised_masked",
                "families/classifier",
                f"{_FOLDER}/train.jsonl",
                f"init.weights={D}/masked/model.safetensors",
            ),
            train(
                "open_set",
                "families/evidence",
                f"{_FOLDER}/train.jsonl",
                f"init.weights={_FOLDER}/classifier/model.safetensors",
            ),
            evaluate("open_set", f"{_FOLDER}/evidence", f"{_FOLDER}/open_set.jsonl", "families/test"),
        ),
        {
            "open_set_families": Figure(
                f"{_FIGURES}:model.auroc", "AUC of evidence, whole families held out", f"{_FIGURES}:softmax.auroc",
                "SoftMax",
            )
        },
        ("recognition",),
    ),
}  # fmt: skip
"""Its task by name."""
