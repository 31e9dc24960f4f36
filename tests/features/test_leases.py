"""Leases: one of several processes takes a video, and what a dead one took is free again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

from internvideo.features.leases import LeaseQueue


def test_one_of_several_gets_a_lease(tmp_path: Path) -> None:
    owners = [LeaseQueue(tmp_path) for _ in range(8)]
    won: list[bool] = []

    def acquire(owner: LeaseQueue) -> None:
        won.append(owner.acquire("x"))

    threads = [threading.Thread(target=acquire, args=(owner,)) for owner in owners]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(won) == [False] * 7 + [True]


def test_a_stale_lease_is_free(tmp_path: Path) -> None:
    leases, other = LeaseQueue(tmp_path), LeaseQueue(tmp_path)
    assert leases.acquire("x")
    assert other.is_leased("x")
    other.release("x")
    assert other.is_leased("x"), "only its owner releases it"
    os.utime(tmp_path / "x.claim", (0, 0))
    assert other.acquire("x")
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    owner = json.loads((tmp_path / "x.claim").read_text())
    (tmp_path / "x.claim").write_text(json.dumps({**owner, "pid": int(gone.stdout), "run": "another"}))
    assert leases.acquire("x"), "its process is gone"
