"""Encoders of other papers, behind the same protocol: their published weights are read."""
