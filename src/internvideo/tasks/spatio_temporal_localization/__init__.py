"""Spatio-temporal localization: what each person at a key frame does (AVA)."""
