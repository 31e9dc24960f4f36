"""Settings of the whole test session."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("MPLBACKEND", "Agg")
if "PYTEST_XDIST_WORKER" in os.environ:  # several files at once: one thread each
    os.environ.setdefault("OMP_NUM_THREADS", "1")
