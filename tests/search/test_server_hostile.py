"""Hostile requests to the server: odd paths, numbers, ranges, headers, bodies. No file outside the roots, no 500."""

from __future__ import annotations

import asyncio
import random
import shutil
from typing import Any
from urllib.parse import unquote

import httpx
import pytest
import use_world

pytest.importorskip("fastapi")

from internvideo.search.collection import Collection
from internvideo.search.server import create_app

SECRET = "NOBODY MAY READ THIS"
ODD = [
    *("", "0", "-1", "1", "2", "999", "9" * 30, "1e9", "NaN", "inf", "-inf", "../../etc/passwd"),
    *("..%2f..%2fetc%2fpasswd", "%00", "a\0b", "\U0001f4a5", "\xff\xfe", "x" * 3000, "x" * 20000, "'", '"', "{}", "[]"),
    *("' OR 1=1 --", "<script>alert(1)</script>", "null", "1%", "100%", "%", "5 %", "file:///etc/passwd"),
    *(
        "http://127.0.0.1:1/",
        "\r\nX-Evil: 1",
        "name = 'x'",
        "duration > 1",
        "duration > 9e999",
        "(" * 300,
        "start < 1 or",
    ),
]
PATHS = [
    *("/", "/api/collection", "/api/search", "/api/export", "/openapi.json", "/{}", "/api/{}", "//etc/passwd"),
    *("/api/videos/{}", "/api/videos/{}/file", "/api/videos/{}/frame", "/api/videos/{}/preview", "/api/videos/{}/clip"),
    *("/static/{}", "/static/../{}", "/static/..%2f..%2fserver.py", "/static/%2e%2e/guard.py"),
]
NAMES = ["q", "like", "t", "top", "where", "threshold", "start", "end", "format", "file", "token", "x"]
RANGES = [
    *(
        "bytes=0-",
        "bytes=-1",
        "bytes=5-2",
        "bytes=0-0,5-9,1-1",
        "bytes=" + ",".join("0-1" for _ in range(500)),
        "bytes=",
    ),
    *(
        "bytes=a-b",
        "bytes=99999999999999999999-",
        "items=0-1",
        "",
        "bytes=-0",
        "bytes=--1",
        "bytes=0-18446744073709551616",
    ),
]
HEADER_NAMES = ["range", "host", "origin", "content-length", "authorization", "cookie", "if-range", "if-none-match"]
TYPES = ["multipart/form-data; boundary=b", "multipart/form-data", "application/json", "a" * 500, ""]
PART = b'--b\r\nContent-Disposition: form-data; name="file"; filename="../x"\r\n\r\nz\r\n--b--\r\n'


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Collection:
    place = tmp_path_factory.mktemp("hostile")
    shutil.copytree(use_world.clips(2), place / "clips")
    (place / "secret.mp4").write_text(SECRET)
    (place / "clips" / "secret.txt").write_text(SECRET)
    collection = Collection.create(place / "c", use_world.language(), scales=(1.0, 2.0))
    collection.add([place / "clips"])
    return collection


def hostile(draw: random.Random) -> tuple[str, str, dict[str, str], bytes]:
    """A method, a raw target, headers and a body."""
    path = draw.choice(PATHS).replace("{}", draw.choice(ODD))
    names = draw.sample(NAMES, draw.randint(0, 5))
    query = str(httpx.QueryParams([(name, draw.choice(ODD)) for name in names]))
    headers = {"range": draw.choice(RANGES)} if draw.random() < 0.5 else {}
    if draw.random() < 0.2:
        headers[draw.choice(HEADER_NAMES)] = draw.choice([*ODD, *RANGES])[:3000]
    method = draw.choices(["GET", "POST", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH"], [10, 3, 1, 1, 1, 1, 1])[0]
    body = b""
    if method == "POST":
        body = draw.choice([b"", b"x" * 5000, PART, draw.randbytes(2000)])
        headers["content-type"] = draw.choice(TYPES)
    target = path + (f"?{query}" if query else "")
    raw = "".join(c if " " < c < "\x7f" else f"%{ord(c) & 255:02X}" for c in target)
    # What a server's parser lets through: no line ends and no NUL.
    sent = {name: "".join(c for c in value if c not in "\r\n\0") for name, value in headers.items()}
    return method, raw, sent, body


async def _send(app: Any, method: str, target: str, headers: dict[str, str], body: bytes) -> tuple[int, bytes]:
    """One request, as a server that checks nothing would hand it on."""
    raw, _, query = target.partition("?")
    pairs = [(name.encode("latin-1"), value.encode("latin-1", "replace")) for name, value in headers.items()]
    if "host" not in headers:
        pairs.append((b"host", b"127.0.0.1:8808"))
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http",
        "headers": pairs, "path": unquote(raw), "raw_path": raw.encode(), "query_string": query.encode(),
        "root_path": "", "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 8808),
    }  # fmt: skip
    sent = [{"type": "http.request", "body": body, "more_body": False}]
    status, content = 0, bytearray()

    async def receive() -> dict[str, Any]:
        return sent.pop() if sent else {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]
        content.extend(message.get("body", b""))

    await asyncio.wait_for(app(scope, receive, send), 30)
    return status, bytes(content)


def attack(collection: Collection, count: int, seed: int) -> dict[int, int]:
    """Send hostile requests; returns how often each status came."""
    app, draw, counts = create_app(collection), random.Random(seed), dict[int, int]()

    async def run() -> None:
        for _ in range(count):
            request = hostile(draw)
            status, content = await _send(app, *request)
            counts[status] = counts.get(status, 0) + 1
            assert 200 <= status < 500 or status == 503, (status, request)
            assert SECRET.encode() not in content, request
            assert b"root:" not in content, request
            assert b"import annotations" not in content, request

    asyncio.run(run())
    return counts


def test_hostile_requests(collection: Collection) -> None:
    """400 here; `test_ten_thousand_hostile_requests` sends more."""
    counts = attack(collection, 400, 1)
    assert sum(counts.values()) == 400
    assert {200, 404, 422} <= set(counts)


@pytest.mark.slow
def test_ten_thousand_hostile_requests(collection: Collection) -> None:
    counts = attack(collection, 10_000, 2)
    assert sum(counts.values()) == 10_000
