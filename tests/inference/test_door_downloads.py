"""Weights from elsewhere: hub repositories from a cache in the hub's format, addresses from a local server."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import small_apps

from internvideo import load
from internvideo.errors import WeightsError
from internvideo.weights import fetch

ROOT = Path(__file__).parents[2]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def weights() -> bytes:
    return small_apps.trained("supervised").read_bytes()


# ------------------------------------------------------------------------------------------------------- addresses


class Server:
    """Answers by path, and counts."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.asked: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked.append(self.path)
                path, _, query = self.path.partition("?")
                if path == "/elsewhere.safetensors":
                    self.send_response(302)
                    self.send_header("Location", query)
                    self.end_headers()
                    return
                content = outer.files.get(path)
                if content is None:
                    self.send_error(404)
                    return
                self.send_response(200)
                if query != "unsaid":
                    self.send_header("Content-Length", str(len(content) + (100 if query == "broken" else 0)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()
        self.address = f"http://127.0.0.1:{self.http.server_port}"

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    """A server of this machine, which only these tests may talk to without https."""
    monkeypatch.setattr(fetch, "SCHEMES", ("https", "http"))
    monkeypatch.setenv("INTERNVIDEO_CACHE", str(tmp_path / "cache"))
    found = Server()
    yield found
    found.close()


def kept(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "cache").glob("*"))


def test_an_address_is_downloaded_once(server: Server, weights: bytes, tmp_path: Path) -> None:
    server.files["/model.safetensors"] = weights
    address = f"{server.address}/model.safetensors"
    digest = hashlib.sha256(weights).hexdigest()
    model = load("videomae-s-classifier", weights=f"{address}#sha256={digest}", device="cpu")
    assert model.metadata["source"] == address
    assert load(address, device="cpu").metadata["weights_sha256"] == model.metadata["weights_sha256"]
    assert load(f"{address}?unsaid", device="cpu").metadata["source"] == address
    assert server.asked == ["/model.safetensors", "/model.safetensors?unsaid"]
    assert len(kept(tmp_path)) == 2


def test_another_hash_is_refused_and_not_kept(server: Server, weights: bytes, tmp_path: Path) -> None:
    server.files["/model.safetensors"] = weights
    address = f"{server.address}/model.safetensors"
    with pytest.raises(WeightsError, match=f"SHA-256 .*expected: {'0' * 64}"):
        load(f"{address}#sha256={'0' * 64}", device="cpu")
    assert kept(tmp_path) == []
    load(address, device="cpu")
    with pytest.raises(WeightsError, match=r"delete .* to download it again"):
        load(f"{address}#sha256={'0' * 64}", device="cpu")


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("missing.safetensors", "the server says 404"),
        ("model.safetensors?broken", r"ended after|cannot be downloaded"),
        ("elsewhere.safetensors?ftp://127.0.0.1/x", "(?i)redirect"),
        ("elsewhere.safetensors?file:///etc/passwd", "(?i)redirect"),
        ("model.bin", "internvideo convert the downloaded model.bin"),
        ("model.txt", "no weights file"),
        ("model.safetensors#md5=1", "is no hash"),
        ("model.safetensors#sha256=12", "is no hash"),
    ],
)
def test_downloads_that_fail_leave_nothing(
    path: str, found: str, server: Server, weights: bytes, tmp_path: Path
) -> None:
    server.files["/model.safetensors"] = weights
    with pytest.raises(WeightsError, match=found) as error:
        load(f"{server.address}/{path}", device="cpu")
    assert "\n" not in str(error.value)
    assert kept(tmp_path) == []


@pytest.mark.parametrize("query", ["", "?unsaid"])
def test_a_file_that_is_too_large_is_refused(
    query: str, server: Server, weights: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.files["/model.safetensors"] = weights
    monkeypatch.setattr(fetch, "MAX_DOWNLOAD_BYTES", len(weights) - 1)
    with pytest.raises(WeightsError, match="at most"):
        load(f"{server.address}/model.safetensors{query}", device="cpu")
    assert kept(tmp_path) == []


def test_nobody_answering_is_told(server: Server) -> None:
    address = server.address
    server.http.server_close()
    with pytest.raises(WeightsError, match="cannot be downloaded"):
        load(f"{address}/model.safetensors", device="cpu")


@pytest.mark.parametrize(
    ("address", "found"),
    [
        ("http://127.0.0.1/model.safetensors", "scheme 'http'; expected: https"),
        ("ftp://127.0.0.1/model.safetensors", "scheme 'ftp'"),
        ("file:///etc/model.safetensors", "scheme 'file'"),
        ("https:///model.safetensors", "no host"),
    ],
)
def test_only_https_is_spoken(address: str, found: str) -> None:
    with pytest.raises(WeightsError, match=found):
        load(address, device="cpu")


def test_a_password_in_an_address_is_refused_and_not_repeated() -> None:
    with pytest.raises(WeightsError, match="a password in the address") as error:
        load("https://me:secret@example.org/model.safetensors", device="cpu")
    assert "secret" not in str(error.value)


# --------------------------------------------------------------------------------------------------------- the hub


@pytest.mark.parametrize(
    "address", ["hf://", "hf://one", "hf://one/", "hf://one/two/../three.safetensors", "hf://one/two@", "hf://a//b"]
)
def test_what_is_no_hub_address_is_told(address: str) -> None:
    with pytest.raises(WeightsError, match=r"expected: hf://ORGANISATION/REPOSITORY"):
        load(address, device="cpu")


def test_hub_addresses_have_file_and_revision() -> None:
    parse = fetch.HubLocation.parse
    assert parse("hf://a/b") == fetch.HubLocation("a/b", "", None)
    assert parse("hf://a/b@v1") == fetch.HubLocation("a/b", "", "v1")
    assert parse("hf://a/b/c/d.safetensors@refs/pr/1") == fetch.HubLocation("a/b", "c/d.safetensors", "refs/pr/1")
    assert str(parse("hf://a/b/c.safetensors@v1")) == "hf://a/b/c.safetensors@v1"
    with pytest.raises(WeightsError, match="internvideo convert"):
        load("hf://a/b/pytorch_model.bin", device="cpu")


def cached(home: Path, repository: str, files: dict[str, Path]) -> None:
    """A repository as huggingface_hub keeps it: blobs, a snapshot of links, a reference."""
    folder = home / "hub" / f"models--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(COMMIT)
    (folder / "blobs").mkdir()
    for name, source in files.items():
        blob = folder / "blobs" / hashlib.sha256(name.encode()).hexdigest()
        shutil.copy(source, blob)
        link = folder / "snapshots" / COMMIT / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))


PROGRAM = """
import json, sys, warnings
warnings.simplefilter("error")
import internvideo
found = []
for address in json.loads(sys.argv[1]):
    try:
        model = internvideo.load(address, device="cpu")
        found.append([model.name, model.metadata["source"], model.metadata["weights_sha256"]])
    except internvideo.InternVideoError as error:
        found.append([type(error).__name__, str(error)])
print(json.dumps(found))
"""


def test_the_hub_without_a_network(tmp_path: Path) -> None:
    run, saved = small_apps.trained("supervised"), tmp_path / "saved"
    model = load(run, device="cpu")
    model.save_pretrained(saved)
    cached(tmp_path, "org/ours", {path.name: path for path in saved.iterdir()})
    cached(tmp_path, "org/files", {"sub/one.safetensors": run, "two.bin": run})
    addresses = [
        "hf://org/ours",
        "hf://org/ours@main",
        f"hf://org/ours@{COMMIT}",
        "hf://org/ours/model.safetensors",
        "hf://org/files/sub/one.safetensors",
        "hf://org/files/sub/one.safetensors@main",
        "hf://org/files/three.safetensors",
        "hf://org/nothing/one.safetensors",
        "hf://org/nothing",
        "hf://org/files@v2",
        "hf://org/bad name/one.safetensors",
    ]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(addresses)],
        env={
            **os.environ,
            "HF_HOME": str(tmp_path),
            "HF_HUB_OFFLINE": "1",
            "PYTHONPATH": str(ROOT / "src"),
            "HF_HUB_DISABLE_TELEMETRY": "1",
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    for address, answer in zip(addresses[:6], found, strict=False):
        assert answer == [model.name, address, model.metadata["weights_sha256"]]
    for address, (kind, message) in zip(addresses[6:], found[6:], strict=True):
        assert kind == "WeightsError"
        assert message.startswith(address)
        assert "\n" not in message
        assert re.search("not in the local cache|cannot be downloaded|no revision|is no address", message), message
