"""macOS and Windows, simulated: modules and functions that only Linux or only POSIX has are taken away."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from internvideo import system
from internvideo.errors import RunError
from internvideo.storage import folder_lock, write_text
from internvideo.weights import unpickle

WINDOWS = """
import os, pkgutil, sys
import torch, torch.utils.data, tqdm, av, huggingface_hub  # these know their own system
from importlib import import_module
for name in ("fcntl", "resource", "pwd", "grp", "termios"):
    sys.modules[name] = None
for name in ("sched_getaffinity", "register_at_fork", "fork", "getuid"):
    if hasattr(os, name):
        delattr(os, name)
import internvideo
for module in pkgutil.walk_packages(internvideo.__path__, "internvideo."):
    if not module.name.endswith(("__main__", "search.mcp")):  # mcp itself asks for its own system's modules
        import_module(module.name)
from internvideo.system import cores
assert cores() >= 1
print("imported")
"""


def test_every_module_is_imported_without_what_only_posix_has() -> None:
    told = subprocess.run([sys.executable, "-c", WINDOWS], capture_output=True, text=True, check=False, timeout=300)
    assert told.stdout == "imported\n", told.stderr[-2000:]


def test_cores_without_an_affinity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    assert system.cores() == 1


class Locks:
    """msvcrt of Windows: one owner a file, by its name."""

    LK_NBLCK = 2

    def __init__(self) -> None:
        self.held: set[int] = set()

    def locking(self, handle: int, mode: int, count: int) -> None:
        assert (mode, count) == (self.LK_NBLCK, 1)
        assert os.lseek(handle, 0, os.SEEK_CUR) == system.LOCKED_BYTE
        number = os.fstat(handle).st_ino
        if number in self.held:
            raise PermissionError(errno.EACCES, "Permission denied")
        self.held.add(number)


def test_a_folder_is_locked_on_windows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    locks: Any = Locks()
    monkeypatch.setitem(sys.modules, "fcntl", None)
    monkeypatch.setitem(sys.modules, "msvcrt", locks)
    with folder_lock(tmp_path / "run"):
        write_text(tmp_path / "run" / "a.txt", "a")
        held = tmp_path / "run"
        text = next(path for path in held.iterdir() if path.name != "a.txt").read_text()
        assert text == f"process {os.getpid()} of {__import__('socket').gethostname()}\n"
    monkeypatch.setattr(locks, "locking", lambda *given: (_ for _ in ()).throw(PermissionError(errno.EACCES, "no")))
    with pytest.raises(RunError, match=r"w(rites|rote) there"), folder_lock(tmp_path / "run"):
        pass


def test_a_file_is_synced_and_a_folder_is_left_on_windows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    opened: list[int] = []
    real = os.open

    def watched(path: Any, flags: int, *rest: int) -> int:
        opened.append(flags)
        return real(path, flags, *rest)

    (tmp_path / "a").write_text("a")
    monkeypatch.setattr(os, "open", watched)
    monkeypatch.setattr(system, "os", SimpleNamespace(**{**vars(os), "name": "nt", "open": watched}))
    system.sync(tmp_path)
    assert opened == []
    system.sync(tmp_path / "a")
    assert opened == [os.O_RDWR]


@pytest.mark.parametrize("platform", ["linux", "darwin", "win32"])
def test_the_peak_of_memory_is_in_mebibytes(platform: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kib = 300 * 2**10
    used = SimpleNamespace(ru_maxrss=kib * (2**10 if platform == "darwin" else 1))
    own = SimpleNamespace(RUSAGE_SELF=0, RUSAGE_CHILDREN=-1, getrusage=lambda who: used)
    monkeypatch.setitem(sys.modules, "resource", None if platform == "win32" else own)  # type: ignore[arg-type]
    monkeypatch.setattr(sys, "platform", platform)
    wset = SimpleNamespace(memory_info=lambda: SimpleNamespace(peak_wset=300 * 2**20))
    monkeypatch.setattr(psutil, "Process", lambda: wset)
    assert system.peak_memory_mb() == 300.0


def test_a_checkpoint_is_converted_where_processes_have_no_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpickle, "resource", None)
    assert unpickle.limit_process(10**9, 5, 1000) is False
    assert os.open(os.devnull, os.O_RDONLY) > 2  # nothing was given up
