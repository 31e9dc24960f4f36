"""Every task's `score` by name, so that a saved table can be scored without knowing its task."""

from __future__ import annotations

from collections.abc import Callable

from internvideo.errors import RunError
from internvideo.tasks import (
    localisation,
    multiple_choice,
    open_set,
    recognition,
    retrieval,
    spatio_temporal,
    zero_shot,
)
from internvideo.tasks.table import Result, Table

SCORES: dict[str, Callable[[Table], Result]] = {
    recognition.NAME: recognition.score,
    open_set.NAME: open_set.score,
    zero_shot.NAME: zero_shot.score,
    retrieval.NAME: retrieval.score,
    localisation.NAME: localisation.score,
    spatio_temporal.NAME: spatio_temporal.score,
    multiple_choice.NAME: multiple_choice.score,
}


def score(table: Table) -> Result:
    """Figures of a saved table. RunError when its task is not known."""
    if table.task not in SCORES:
        raise RunError("table", f"task '{table.task}'", ", ".join(SCORES), "score it with the version that made it")
    return SCORES[table.task](table)
