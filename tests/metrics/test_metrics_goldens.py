"""Every stored value of the classification and retrieval goldens, one test each; a value nobody reads is a failure."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
from goldens_folder import GOLDENS

from internvideo.metrics import classification as c
from internvideo.tasks.retrieval import metrics as r

FOLDERS = ("classification", "retrieval")

# Stored values that other test files read, and what they are.
ELSEWHERE = {
    "classification/layer_decay": "layer-wise decay: tests/tasks/test_tasks_goldens.py",
    "retrieval/losses": "contrastive losses: tests/objectives/test_contrastive.py",
}
# Words that describe the case instead of a result.
NOTES = {
    "classification/mean_class_accuracy_note",
    "classification/zero_shot/order",
    "classification/zero_shot/logit_scale",  # given, not computed
}


@cache
def arrays(folder: str) -> dict[str, Any]:
    with np.load(GOLDENS / "tasks" / folder / f"{folder}.npz", allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


@cache
def expected(folder: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((GOLDENS / "tasks" / folder / "expected.json").read_text("utf-8"))
    return loaded


def leaves(node: Any, path: str) -> list[tuple[str, Any]]:
    if not isinstance(node, dict):
        return [(path, node)]
    return [leaf for name, child in node.items() for leaf in leaves(child, f"{path}/{name}")]


def rows(model: int, views: int | None = None) -> tuple[Any, Any]:
    logits = arrays("classification")[f"view_logits_model{model}"][:, :views]
    return logits.reshape(-1, logits.shape[-1]), np.repeat(np.arange(len(logits)), logits.shape[1])


def videos() -> int:
    return len(arrays("classification")["view_labels"])


def models() -> int:
    return sum(name.startswith("view_logits_model") for name in arrays("classification"))


def merged(model: int) -> Any:
    return c.merge_views(*rows(model), videos())


def percent(probabilities: Any, k: int = 1) -> float:
    return 100 * c.top_k_hits(probabilities, arrays("classification")["view_labels"], k).mean()


def mean_class() -> float:
    a = arrays("classification")
    return c.mean_class_accuracy(a["scores"].argmax(axis=1), a["labels"], match_official_evaluator=True)


def zero_shot() -> Any:
    a, stored = arrays("classification"), expected("classification")["zero_shot"]
    text = a["zs_text"].reshape(stored["templates"], stored["classes"], -1)
    return c.zero_shot_probabilities(a["zs_video"], text, stored["logit_scale"])


def choices() -> Any:
    a = arrays("classification")
    return c.choice_scores(a["mc_video"], a["mc_text"], 100.0)


def top(k: int) -> float:
    return float(c.top_k_hits(arrays("classification")["scores"], arrays("classification")["labels"], k).mean())


def vqa(known_only: bool) -> float:
    a = arrays("classification")
    known = a["vqa_labels"] != c.IGNORE_INDEX
    hits = c.top_k_hits(a["vqa_logits"][known], a["vqa_labels"][known], 1)
    return float(hits.sum() / (len(hits) if known_only else len(known)))


def joined(*parts: tuple[Any, Any]) -> Any:
    """Views of several models, merged as those of one."""
    return c.merge_views(*(np.concatenate(column) for column in zip(*parts, strict=True)), videos())


def pooled() -> Any:
    """All views of model 0 and fewer of model 1; the numbers stand in the name of the stored value."""
    name = next(name for name in expected("classification")["views"] if name.startswith("pooled") and "_plus_" in name)
    match = re.search(r"(\d+)_plus_(\d+)", name)
    assert match is not None
    return joined(rows(0, int(match[1])), rows(1, int(match[2])))


COMPUTED: dict[str, Callable[[], Any]] = {
    "classification/top1": lambda: top(1),
    "classification/top5": lambda: top(5),
    "classification/mean_class_accuracy": mean_class,
    "classification/views/per_model_top1": lambda: [percent(merged(i)) for i in range(models())],
    "classification/views/per_model_top5": lambda: [percent(merged(i), 5) for i in range(models())],
    "classification/views/two_model_mean_of_softmax_top1": lambda: percent((merged(0) + merged(1)) / 2),
    "classification/views/three_model_mean_of_softmax_top1": lambda: percent(sum(merged(i) for i in range(3)) / 3),
    "classification/views/logit_mean_top1_model0": lambda: percent(c.merge_rows(*rows(0), videos())),
    "classification/views/first_video_merged_probs_model0": lambda: merged(0)[0],
    "classification/views/first_video_three_model_probs": lambda: joined(*(rows(i) for i in range(3)))[0],
    "classification/views/pooled_unequal_views_first_video": lambda: pooled()[0],
    "classification/zero_shot/templates": lambda: len(arrays("classification")["zs_text"]) / zero_shot().shape[1],
    "classification/zero_shot/classes": lambda: zero_shot().shape[1],
    "classification/zero_shot/mean_of_per_template_softmax": zero_shot,
    "classification/vqa/accuracy_known_answers_only": lambda: vqa(True),
    "classification/vqa/accuracy_over_all_questions": lambda: vqa(False),
    "classification/vqa/cross_entropy_ignoring_minus_100": lambda: c.cross_entropy(
        arrays("classification")["vqa_logits"], arrays("classification")["vqa_labels"]
    ),
    "classification/multiple_choice/scores_row0": lambda: choices()[0],
    "classification/multiple_choice/accuracy": lambda: float(
        c.top_k_hits(choices(), arrays("classification")["mc_answer"], 1).mean()
    ),
}

FIGURE_NAMES = {
    "R1": "r1",
    "R5": "r5",
    "R10": "r10",
    "MedianR": "median_rank",
    "MedianR_lower": "median_rank",
    "MedianR_mean": "median_rank",
    "MeanR": "mean_rank",
}


def retrieval_value(path: str) -> Any:
    """Compute a stored retrieval value from its path, e.g. multi_caption/dsl_t2v/R1."""
    a = arrays("retrieval")
    group, *rest = path.split("/")
    if group.startswith("ties"):
        return ties_value(group, rest)
    prefix = prefix_of(group)
    sim = a[f"{prefix}_sim"]
    if rest[0].endswith("_sum"):
        return r.dual_softmax(sim if "t2v" in rest[0] else sim.T, axis=0).sum(dtype=np.float64)
    if rest[0] == "dsl_t2v_first_row_first_5":
        return r.dual_softmax(sim, axis=0)[0, :5]
    videos = sim.shape[1]
    counts = a.get(f"{prefix}_captions_per_video", len(sim) // videos)
    owner = None if len(sim) == videos else np.repeat(np.arange(videos), counts)
    direction, figure = rest
    dual = "official" if direction.startswith("dsl_") else "off"
    ranks = r.bidirectional_ranks(sim, owner, dual_softmax_mode=dual)[0 if direction.endswith("t2v") else 1]
    lower = figure == "MedianR_lower" or (figure == "MedianR" and owner is not None and direction.endswith("t2v"))
    return in_percent(r.rank_metrics(ranks, median="lower" if lower else "mean"), figure)


def in_percent(figures: dict[str, float], name: str) -> float:
    value = figures[FIGURE_NAMES[name]]
    return 100 * value if name in ("R1", "R5", "R10") else value


def prefix_of(group: str) -> str:
    """`multi` of `multi_caption`, `square` of `square`: what the arrays of a group begin with."""
    return re.sub(r"_captions?(?=_|$)", "", group)


def ties_value(group: str, rest: list[str]) -> float:
    sim = arrays("retrieval")[f"{group}_sim"]
    if rest[0] == "official":
        return in_percent(r.rank_metrics(r.row_ranks(sim, ties="official")), rest[1])
    if rest[0] == "official_number_of_matches":
        return len(r.row_ranks(sim, ties="official"))
    rule, figure = rest[0].rsplit("_", 1)
    assert rule in ("optimistic", "pessimistic")
    return in_percent(r.rank_metrics(r.row_ranks(sim, ties=rule)), figure)  # type: ignore[arg-type]  # from the path


def discovered() -> list[tuple[str, Any]]:
    found = [leaf for folder in FOLDERS for leaf in leaves(expected(folder), folder)]
    return [
        (path, value)
        for path, value in found
        if path not in NOTES and not any(path.startswith(other + "/") for other in ELSEWHERE)
    ]


@pytest.mark.parity
@pytest.mark.parametrize(("path", "value"), [pytest.param(*leaf, id=leaf[0]) for leaf in discovered()])
def test_stored_value(path: str, value: Any) -> None:
    compute = COMPUTED.get(path)
    if compute is not None:
        ours = compute()
    elif re.fullmatch(r"classification/views/pooled_unequal_views_\d+_plus_\d+_top1", path):
        ours = percent(pooled())
    elif path.startswith("retrieval/"):
        ours = retrieval_value(path.removeprefix("retrieval/"))
    else:
        pytest.fail(f"no test computes the stored value {path}")
    np.testing.assert_allclose(ours, value, rtol=1e-6, atol=1e-6)


def test_lists_of_others_are_real() -> None:
    """A name on the lists above that no longer exists would hide nothing and mean nothing."""
    known = [leaf[0] for folder in FOLDERS for leaf in leaves(expected(folder), folder)]
    for other in ELSEWHERE:
        assert any(path.startswith(other + "/") for path in known)
    assert set(known) >= NOTES
    assert set(known) >= set(COMPUTED)


@pytest.mark.parity
def test_every_stored_array_is_read() -> None:
    pooled = {n for n in arrays("retrieval") if n[:5] == "pool_"}  # tests/tasks/test_retrieval_stage.py
    mixed = {n for n in arrays("classification") if n[:4] == "wse_"}  # tests/apps/test_weight_mixing.py
    elsewhere = {"retrieval": {"loss_sim"} | pooled, "classification": mixed}
    ours = {
        "classification": {"scores", "labels", "view_labels", "zs_text", "zs_video", "vqa_logits", "vqa_labels"}
        | {f"view_logits_model{i}" for i in range(models())}
        | {"mc_video", "mc_text", "mc_answer"},
        "retrieval": {
            name
            for group in expected("retrieval")
            if group != "losses"
            for name in (f"{prefix_of(group)}_sim", f"{prefix_of(group)}_captions_per_video")
            if name in arrays("retrieval")
        },
    }
    for folder in FOLDERS:
        assert set(arrays(folder)) == ours[folder] | elsewhere[folder]
