"""The server: API, Range requests, roots, limits, tokens, hostile requests; MCP tools with their own client."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import in_process
import pytest
import use_world
from PIL import Image

pytest.importorskip("fastapi")
pytest.importorskip("mcp")
from mcp import Client, StdioServerParameters
from mcp.client.stdio import stdio_client
from running_server import Running

from internvideo.search.collection import Collection
from internvideo.search.guard import HEADERS, is_loopback
from internvideo.search.mcp import create_mcp_server
from internvideo.video.reader import Video, read_video_info

ROOT = Path(__file__).parents[2]
SECRET = "NOBODY MAY READ THIS"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("server")
    shutil.copytree(use_world.clips(5), place / "clips")
    (place / "secret.mp4").write_text(SECRET)
    (place / "clips" / "secret.txt").write_text(SECRET)
    with Collection.create(place / "c", use_world.language(), scales=(1.0, 2.0)) as collection:
        collection.add([place / "clips"])
        collection.store.records.set_fact("encoder", {"source": str(use_world.language_folder())})
    return place


@pytest.fixture(scope="module")
def running(folder: Path) -> Iterator[Running]:
    collection = Collection.open(folder / "c", use_world.language())
    server = Running(collection)
    yield server
    server.stop()
    collection.close()


@pytest.fixture(scope="module")
def client(running: Running) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=running.address, timeout=30) as opened:
        yield opened


def test_search_over_http_is_that_of_python(client: httpx.Client, folder: Path) -> None:
    answer = client.get("/api/search", params={"q": "a red circle falls", "top": 3, "where": "duration > 1"}).json()
    with Collection.open(folder / "c", use_world.language()) as collection:
        assert answer == collection.search("a red circle falls", top=3, where="duration > 1").to_json()
        facts = client.get("/api/collection").json()
        assert facts == json.loads(json.dumps(collection.facts()))
    first = answer["moments"][0]
    like = client.get("/api/search", params={"like": first["video"], "t": 1.5, "top": 1}).json()
    assert like["moments"][0]["video"] == first["video"]
    nothing = client.get("/api/search", params={"q": "a dog", "threshold": "0.2%"}).json()
    assert nothing["nothing_fits"] == (not nothing["moments"])
    assert bool(nothing["nearest"]) == nothing["nothing_fits"]


def test_a_picture_is_searched_for_and_not_kept(client: httpx.Client, folder: Path, tmp_path: Path) -> None:
    with Video(folder / "clips" / "2.mp4") as video:
        Image.fromarray(video.frames([20])[0]).save(tmp_path / "frame.png")
    before = set(Path("/tmp").glob("internvideo-*/upload"))
    for path in (tmp_path / "frame.png", folder / "clips" / "2.mp4"):
        with path.open("rb") as stream:
            answer = client.post("/api/search", files={"file": stream}, data={"top": "2"})
        assert answer.status_code == 200, answer.text
        assert len(answer.json()["moments"]) == 2
    assert answer.json()["moments"][0]["path"].endswith("2.mp4")
    broken = client.post("/api/search", files={"file": b"no picture"})
    assert broken.status_code == 400
    assert broken.json()["detail"].startswith("the file: not a readable video")
    assert client.post("/api/search", files={}).status_code == 422
    assert set(Path("/tmp").glob("internvideo-*/upload")) == before


def test_range_requests(client: httpx.Client, folder: Path) -> None:
    content = (folder / "clips" / "0.mp4").read_bytes()
    moments = client.get("/api/search", params={"q": "x", "top": 50}).json()["moments"]
    video = next(moment for moment in moments if "0.mp4" in moment["path"])
    url = f"/api/videos/{video['video']}/file"
    whole = client.get(url)
    assert (whole.status_code, whole.content) == (200, content)
    assert (whole.headers["content-type"], whole.headers["accept-ranges"]) == ("video/mp4", "bytes")
    part = client.get(url, headers={"range": "bytes=100-199"})
    assert (part.status_code, part.content) == (206, content[100:200])
    assert part.headers["content-range"] == f"bytes 100-199/{len(content)}"
    assert client.get(url, headers={"range": "bytes=-50"}).content == content[-50:]
    assert client.get(url, headers={"range": f"bytes={len(content)}-"}).status_code == 416
    assert client.head(url).status_code in (200, 405)


def test_pictures_previews_clips_lists(client: httpx.Client, tmp_path: Path) -> None:
    video = client.get("/api/search", params={"q": "x", "top": 1}).json()["moments"][0]["video"]
    picture = client.get(f"/api/videos/{video}/frame", params={"t": 1.2})
    assert (picture.headers["content-type"], picture.content[:2]) == ("image/jpeg", b"\xff\xd8")
    for name, codec, frames in (("preview", "vp9", 15), ("clip", "h264", 15)):
        got = client.get(f"/api/videos/{video}/{name}", params={"start": 1, "end": 2})
        assert got.status_code == 200, got.text
        path = tmp_path / f"a.{'webm' if name == 'preview' else 'mp4'}"
        path.write_bytes(got.content)
        info = read_video_info(path)
        assert (info.codec, info.frames) == (codec, frames)
    assert client.get(f"/api/videos/{video}/clip", params={"start": 0, "end": 1e6}).status_code == 400
    assert client.get(f"/api/videos/{video}/preview", params={"start": 50, "end": 51}).status_code == 400
    details = client.get(f"/api/videos/{video}").json()
    assert (details["id"], details["playable"], details["labels"]) == (video, True, [])
    for kind in ("csv", "json", "edl"):
        got = client.get("/api/export", params={"q": "x", "format": kind})
        assert got.status_code == 200
        assert f'filename="moments.{kind}"' in got.headers["content-disposition"]
    assert client.get("/api/export", params={"q": "x", "format": "exe"}).status_code == 422


def test_openapi_and_the_page(client: httpx.Client) -> None:
    described = client.get("/openapi.json").json()
    assert set(described["paths"]) == {
        "/api/collection", "/api/events", "/api/search", "/api/export", "/api/videos/{id_}",
        *(f"/api/videos/{{id_}}/{name}" for name in ("file", "frame", "preview", "clip")),
    }  # fmt: skip
    assert all(method["description"] for path in described["paths"].values() for method in path.values())
    for path in ("/", "/static/app.js", "/static/style.css", "/api/collection", "/absent"):
        got = client.get(path)
        assert {name: got.headers.get(name) for name in HEADERS} == HEADERS
    page = client.get("/").text
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "https://" not in page
    assert "<script>" not in page
    assert "style=" not in page


def test_events_tell_the_progress(client: httpx.Client) -> None:
    with client.stream("GET", "/api/events") as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        line = next(line for line in stream.iter_lines() if line.startswith("data: "))
    assert json.loads(line[6:])["progress"] == {"done": 5, "total": 5}


def test_other_sites_cannot_ask(client: httpx.Client) -> None:
    assert client.get("/api/collection", headers={"host": "evil.example"}).status_code == 421
    assert client.get("/api/collection", headers={"host": "localhost:99"}).status_code == 200
    for odd in ("[]", "[", "a]b", "[::1", "[x]", "127.0.0.1@evil.example", "evil.example#localhost", "", ":80"):
        assert client.get("/api/collection", headers={"host": odd}).status_code in (400, 421), odd
    for origin in ("http://evil.example", "null", "http://localhost:1", "http://["):
        got = client.post("/api/search", files={"file": b"x"}, headers={"origin": origin})
        assert got.status_code == 403
    assert [is_loopback(host) for host in ("127.0.0.1", "::1", "LOCALHOST", "0.0.0.0", "192.168.0.4", "a.b")] == [
        True, True, True, False, False, False,
    ]  # fmt: skip


def test_a_token_is_asked_for(folder: Path) -> None:
    with Collection.open(folder / "c", use_world.language()) as collection:
        server = Running(collection, token="secret-123", local=False)
        try:
            with httpx.Client(base_url=server.address) as client:
                for path in ("/", "/static/app.js", "/api/collection", "/api/videos/1/file", "/openapi.json"):
                    assert client.get(path).status_code == 401, path
                    assert client.get(path, headers={"authorization": "Bearer wrong"}).status_code == 401
                assert client.get("/api/collection?token=secret-123").status_code == 401, "only the page takes it"
                assert client.get("/", params={"token": "secret-12"}).status_code == 401
                bearer = {"authorization": "Bearer secret-123"}
                assert client.get("/api/collection", headers=bearer).status_code == 200
                entered = client.get("/", params={"token": "secret-123"})
                assert (entered.status_code, entered.headers["location"]) == (303, "/")
                assert "HttpOnly; SameSite=Strict" in entered.headers["set-cookie"]
                assert client.get("/api/collection").status_code == 200, "the cookie"
        finally:
            server.stop()


def test_only_files_in_the_roots_are_sent(folder: Path, tmp_path: Path) -> None:
    """A video that became a link to elsewhere, and rows of a database that somebody changed."""
    shutil.copytree(folder / "clips", tmp_path / "clips")
    with Collection.create(tmp_path / "c", use_world.language(), scales=(1.0,)) as collection:
        collection.add([tmp_path / "clips"])
        first, second, third, *_ = collection.videos
        (tmp_path / "clips" / "0.mp4").unlink()
        (tmp_path / "clips" / "0.mp4").symlink_to(folder / "secret.mp4")
        (tmp_path / "clips" / "1.mp4").unlink()
        collection.store.records._rows("UPDATE videos SET path = ? WHERE id = ?", [b"/etc/passwd", third.id])
        server = Running(collection)
        try:
            with httpx.Client(base_url=server.address) as client:
                for video in (first, second, third):
                    for name in ("", "/file", "/preview", "/clip?start=0&end=1"):
                        got = client.get(f"/api/videos/{video.id}{name}")
                        assert got.status_code == 404, (video.path, name)
                        assert SECRET not in got.text
        finally:
            server.stop()


def test_bodies_are_limited(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("internvideo.search.server.MAX_UPLOAD", -(2**20) + 10_000)
    with Collection.open(folder / "c", use_world.language()) as collection:
        server = Running(collection)
        try:
            with httpx.Client(base_url=server.address) as client:
                assert client.post("/api/search", files={"file": b"x" * 20_000}).status_code == 413

                def chunks() -> Iterator[bytes]:
                    yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n'
                    for _ in range(30):
                        yield b"x" * 1000

                kind = {"content-type": "multipart/form-data; boundary=b"}
                assert client.post("/api/search", content=chunks(), headers=kind).status_code == 413
                assert client.get("/api/search", params={"q": "x" * 17_000}).status_code == 414
        finally:
            server.stop()


def test_many_users_at_once(running: Running) -> None:
    """Correct answers under load; how fast is measured in benchmarks/search.py."""
    wheres = ["", "duration > 1", "nonsense >"]

    async def run() -> list[httpx.Response]:
        limits = httpx.Limits(max_connections=100)
        async with httpx.AsyncClient(base_url=running.address, timeout=60, limits=limits) as client:
            paths = (f"/api/search?top=2&q=thing+{n % 20}&where={quote(wheres[n % 3])}" for n in range(90))
            return await asyncio.gather(*map(client.get, paths))

    answers = asyncio.run(run())
    assert [answer.status_code for answer in answers] == [200, 200, 400] * 30
    one, other = (answers[number].json()["moments"] for number in (0, 60))  # the same text
    assert [moment["path"] for moment in one] == [moment["path"] for moment in other]
    assert [moment["score"] for moment in one] == pytest.approx([moment["score"] for moment in other], abs=1e-5)
    assert "nonsense" in answers[2].json()["detail"]


def test_more_users_than_can_wait_are_told_to_come_back(client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("internvideo.search.batching.MAX_WAITING", 0)
    refused = client.get("/api/search", params={"q": "a dog"})
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")


def test_unknown_parameters_are_told(client: httpx.Client) -> None:
    for path in ("search", "export"):
        told = client.get(f"/api/{path}", params={"q": "a dog", "limit": 3})
        assert told.status_code == 422
        assert "limit" in told.text


# ---------------------------------------------------------------------------------------------------------------- MCP


def test_mcp_tools_in_process(folder: Path) -> None:
    async def run(collection: Collection) -> None:
        async with Client(create_mcp_server(collection)) as client:
            listed = {tool.name: tool for tool in (await client.list_tools()).tools}
            assert set(listed) == {"search_moments", "search_like", "list_videos", "describe_collection"}
            assert all(tool.description for tool in listed.values())
            found = await client.call_tool("search_moments", {"query": "a red circle falls", "top": 2})
            assert not found.is_error
            assert found.structured_content == collection.search("a red circle falls", top=2).to_json()
            videos = (await client.call_tool("list_videos", {"limit": 2})).structured_content
            assert videos is not None
            assert (videos["total"], len(videos["videos"])) == (5, 2)
            path = videos["videos"][1]["path"]
            like = (await client.call_tool("search_like", {"video": path, "time": 1.0, "top": 1})).structured_content
            assert like is not None
            assert like["moments"][0]["path"] == path
            for wrong in (
                ("search_like", {"video": "/etc/passwd", "time": 0}),
                ("search_moments", {"query": ""}),
                ("search_moments", {"query": "x", "where": "huh"}),
                ("search_moments", {"query": "x", "top": 0}),
            ):
                assert (await client.call_tool(*wrong)).is_error, wrong

    with Collection.open(folder / "c", use_world.language()) as collection:
        asyncio.run(run(collection))


def test_the_commands_serve(folder: Path) -> None:
    """`internvideo serve --mcp` with the client's own transport, and `internvideo serve` with a browser's request."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    words = ["-m", "internvideo", "serve", str(folder / "c")]

    async def ask() -> Any:
        parameters = StdioServerParameters(command=sys.executable, args=[*words, "--mcp"], env=environment)
        async with Client(stdio_client(parameters), read_timeout_seconds=60) as client:
            return (await client.call_tool("describe_collection", {})).structured_content

    assert asyncio.run(ask())["videos"] == 5
    process = subprocess.Popen(
        [sys.executable, *words, "--port", "0"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("open http://127.0.0.1:"), line
        address = line.split()[1]
        assert httpx.get(f"{address}api/search", params={"q": "a dog"}, timeout=60).status_code == 200
        port = address.rstrip("/").rpartition(":")[2]
        again = in_process.command("serve", folder / "c", "--port", port)
        assert "cannot be listened on" in again.mistake()
    finally:
        process.terminate()
        process.communicate(timeout=30)
