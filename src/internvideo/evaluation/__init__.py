"""From weights and a split to a saved table, and figures with their protocol."""

from internvideo.evaluation.settings import EvaluationSettings
from internvideo.evaluation.table import evaluate_task, score_results, score_table, score_tables

__all__ = ["EvaluationSettings", "evaluate_task", "score_results", "score_table", "score_tables"]
