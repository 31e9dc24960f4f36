"""Temporal localization: which action happens when (ActionFormer)."""
