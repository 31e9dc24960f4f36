"""Evaluation tasks: each predicts a saved table and scores it without model or video."""
