"""Download weights from Hugging Face repositories and https URLs.

Downloads are atomic: a file is complete or absent. This module opens no downloaded file.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import urllib.request
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import IO, Any
from urllib.error import HTTPError, URLError
from urllib.parse import unquote, urlsplit

from internvideo.errors import WeightsError
from internvideo.storage import atomic_path

SCHEMES = ("https",)
MAX_DOWNLOAD_BYTES = 64 * 2**30
"""Maximum size of a download; the largest published file has 7 GB."""
TIMEOUT_S = 30.0
"""Maximum seconds of a download without new data."""
CHUNK_BYTES = 1 << 20
SUFFIX = ".safetensors"
METADATA_FILES = (
    "config.json",
    "open_clip_config.json",
    "README.md",
    "preprocessor_config.json",
    "processor_config.json",
)
"""Files that are downloaded with weights, for `weights.foreign_folder`."""
HUB_FILES = ("model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors", "adapter_*")
"""Further files of a repository that are downloaded: weights, indices of shards, adapters."""


def is_remote(source: str) -> bool:
    """Return whether a source is a URL rather than a path."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", source) is not None


def fetch(source: str) -> Path:
    """Download a file or repository; return the local file, or the folder of the repository.

    Args:
        source: "hf://ORGANISATION/REPOSITORY[/FILE][@REVISION]" or "https://...safetensors[#sha256=HEX]".

    Raises:
        WeightsError: unsupported scheme, not found, not reachable, too large, or a SHA-256 that does not match.
        RunError: the cache folder cannot be written.
    """
    if source.startswith("hf://"):
        return _fetch_from_hub(HubLocation.parse(source))
    return _fetch_url(source)


# ------------------------------------------------------------------------------------------------------- model hub


@dataclass(frozen=True)
class HubLocation:
    """A file of a hub repository; "" for all files."""

    repository: str
    file: str
    revision: str | None

    @classmethod
    def parse(cls, text: str) -> HubLocation:
        """Parse hf://ORGANISATION/REPOSITORY[/FILE][@REVISION]. Raises WeightsError for anything else."""
        path, at, revision = text.removeprefix("hf://").partition("@")
        parts = path.strip("/").split("/")
        if len(parts) < 2 or not all(parts) or ".." in parts or (at and not revision):
            raise WeightsError(text, "is no address of a model hub", "hf://ORGANISATION/REPOSITORY[/FILE][@REVISION]")
        return cls("/".join(parts[:2]), "/".join(parts[2:]), revision or None)

    def __str__(self) -> str:
        file = f"/{self.file}" if self.file else ""
        return f"hf://{self.repository}{file}" + (f"@{self.revision}" if self.revision else "")


def _fetch_from_hub(url: HubLocation) -> Path:
    if url.file:
        require_safetensors(url.file, str(url))
    # Imported here, because it takes half a second and local files do not need it.
    import huggingface_hub
    from huggingface_hub import errors

    try:
        if url.file:
            file = Path(huggingface_hub.hf_hub_download(url.repository, url.file, revision=url.revision))
            folder = url.file.rpartition("/")[0]
            metadata_files = [f"{folder}/{name}" if folder else name for name in METADATA_FILES]
            huggingface_hub.snapshot_download(url.repository, revision=url.revision, allow_patterns=metadata_files)
            return file
        return Path(
            huggingface_hub.snapshot_download(
                url.repository, revision=url.revision, allow_patterns=[*HUB_FILES, *METADATA_FILES]
            )
        )
    except errors.GatedRepoError as error:
        hint = f"accept its conditions at https://huggingface.co/{url.repository}, then `hf auth login`"
        raise WeightsError(url, "the repository asks for consent", "", hint) from error
    except errors.RepositoryNotFoundError as error:
        raise WeightsError(url, "no such repository, or a private one", "", "check the name or log in") from error
    except errors.RevisionNotFoundError as error:
        raise WeightsError(url, f"no revision '{url.revision}'", "a branch, tag or commit") from error
    except errors.LocalEntryNotFoundError as error:
        hint = "download it where there is a network, with the same HF_HOME"
        raise WeightsError(url, "not in the local cache, and the hub cannot be reached", "", hint) from error
    except errors.EntryNotFoundError as error:
        raise WeightsError(url, f"no file '{url.file}' in the repository", "", "check its name") from error
    except (OSError, ValueError, RuntimeError) as error:  # of the network, the disk, a name that the hub refuses
        raise WeightsError(url, f"cannot be downloaded: {_first_line(error)}") from error


def push(
    folder: Path, repository: str, private: bool | None, token: str | None, revision: str | None, message: str
) -> str:
    """Upload a folder to a hub repository, created if absent; return the commit's address. Raises WeightsError."""
    import huggingface_hub
    from huggingface_hub import errors

    api = huggingface_hub.HfApi(token=token, library_name="internvideo")
    try:
        name = api.create_repo(repository, private=private, exist_ok=True).repo_id
        if revision is not None:
            api.create_branch(name, branch=revision, exist_ok=True)
        found = api.upload_folder(repo_id=name, folder_path=folder, revision=revision, commit_message=message)
    except (errors.HfHubHTTPError, OSError, ValueError, RuntimeError) as error:
        reason = f"cannot be uploaded: {_first_line(error)}"
        raise WeightsError(f"hf://{repository}", reason, "", "`hf auth login` with a write token") from error
    return str(found.commit_url)


# ------------------------------------------------------------------------------------------------------------ URLs


class _RedirectWithinSchemes(urllib.request.HTTPRedirectHandler):
    """Follow redirects within the allowed schemes only."""

    def redirect_request(self, req: Any, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str) -> Any:
        if urlsplit(newurl).scheme not in SCHEMES:
            fp.close()
            raise URLError(f"redirected to {urlsplit(newurl).scheme}://, which is not allowed")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def cache_folder() -> Path:
    """Return the folder of downloads: INTERNVIDEO_CACHE, or internvideo/ in the user's cache folder."""
    given = os.environ.get("INTERNVIDEO_CACHE")
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "internvideo"


def _fetch_url(source: str) -> Path:
    url, _, fragment = source.partition("#")
    try:
        parts = urlsplit(url)
    except ValueError as error:  # such as half a bracket around a host
        raise WeightsError(source, f"is no address: {_first_line(error)}", "https://HOST/FILE") from error
    if parts.scheme not in SCHEMES:
        raise WeightsError(source, f"scheme '{parts.scheme}'", "https://, hf:// or a path")
    if not parts.hostname or parts.username or parts.password:
        raise WeightsError(parts.hostname or source, "no host, or a password in the address", "https://HOST/FILE")
    expected_sha256 = fragment.removeprefix("sha256=").lower() if fragment else ""
    if fragment and not (fragment.startswith("sha256=") and re.fullmatch("[0-9a-f]{64}", expected_sha256)):
        raise WeightsError(f"#{fragment}", "is no hash", "#sha256= and 64 hex digits")
    name = unquote(parts.path.rpartition("/")[2])
    require_safetensors(name, url)
    stem = re.sub(r"[^\w.-]", "_", name)[-80:]
    target = cache_folder() / f"{hashlib.sha256(url.encode()).hexdigest()[:16]}-{stem}"
    if target.is_file():
        _check_hash(url, sha256_of(target), expected_sha256, hint=f"delete {target} to download it again")
        return target
    with atomic_path(target) as temporary:
        digest = _download(url, temporary)
        _check_hash(url, digest, expected_sha256, hint="the file on the server has changed: do not use it")
    return target


def _download(url: str, target: Path) -> str:
    """Stream a URL to a file and return its SHA-256. Raises WeightsError."""
    request = urllib.request.Request(url, headers={"User-Agent": "internvideo"})
    opener = urllib.request.build_opener(_RedirectWithinSchemes)
    digest, received = hashlib.sha256(), 0
    try:
        with opener.open(request, timeout=TIMEOUT_S) as answer:
            length = answer.headers.get("Content-Length", "")
            expected = int(length) if length.isdecimal() else None
            _check_size(url, expected or 0)
            with target.open("wb") as file:
                while chunk := answer.read(CHUNK_BYTES):
                    received += len(chunk)
                    _check_size(url, received)
                    digest.update(chunk)
                    file.write(chunk)
    except HTTPError as error:
        error.close()
        raise WeightsError(url, f"the server says {error.code} {error.reason}", "", "check the address") from error
    except (URLError, TimeoutError, ConnectionError, HTTPException) as error:
        raise WeightsError(url, f"cannot be downloaded: {_first_line(error)}", "", "check the network") from error
    if expected is not None and received != expected:
        raise WeightsError(url, f"ended after {received} of {expected} bytes", "", "try again")
    return digest.hexdigest()


def _check_size(url: str, size: int) -> None:
    if size > MAX_DOWNLOAD_BYTES:
        raise WeightsError(url, f"{size / 2**30:.1f} GB", f"at most {MAX_DOWNLOAD_BYTES / 2**30:.0f} GB")


def _check_hash(url: str, sha256: str, expected: str, *, hint: str) -> None:
    if expected and sha256 != expected:
        raise WeightsError(url, f"SHA-256 {sha256}", f"{expected}, as in the URL", hint)


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, 64 hex digits."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def require_safetensors(name: str, where: str) -> None:
    """Raise WeightsError for a name that does not end in .safetensors; the hint for a pickle converts it."""
    if name.endswith(SUFFIX):
        return
    if re.search(r"\.(pth|pt|bin|ckpt|pkl|pickle|tar)$", name, re.IGNORECASE):
        file = f"the downloaded {name}" if is_remote(where) else shlex.quote(where)
        hint = f"convert it first: internvideo convert {file}"
        raise WeightsError(where, "a pickle can run any program, it is not opened", "a .safetensors file", hint)
    raise WeightsError(where, f"'{name}' is no weights file", "a .safetensors file")


def _first_line(error: BaseException) -> str:
    reason = getattr(error, "reason", None) or error
    return (str(reason).splitlines() or [type(error).__name__])[0][:200]
