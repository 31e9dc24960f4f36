"""Download weights from model hub repositories and https addresses.

Downloads are atomic: a file is complete or absent. Nothing is opened here.
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
"""Maximum size (bytes) of a download; the largest published file has 7 GB."""
TIMEOUT_S = 30.0
"""Timeout of a download without data."""
PIECE = 1 << 20
ENDING = ".safetensors"
BESIDE = ("config.json", "open_clip_config.json", "README.md", "preprocessor_config.json", "processor_config.json")
"""Files that are fetched with weights, for `weights.foreign_folder`."""
HUB_FILES = ("model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors", "adapter_*")
"""Files of a repository that are fetched: weights, configs, and indices of shards."""


def is_remote(source: str) -> bool:
    """Tell whether a source is an address rather than a path."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", source) is not None


def fetch(source: str) -> Path:
    """Download an address; return the local file, or the folder of a whole hub repository.

    Args:
        source: "hf://ORGANISATION/REPOSITORY[/FILE][@REVISION]" or "https://...safetensors[#sha256=HEX]".

    Raises:
        WeightsError: unsupported scheme, not found, not reachable, too large, or another hash.
        RunError: the cache folder cannot be written.
    """
    if source.startswith("hf://"):
        return _from_hub(HubAddress.parse(source))
    return _from_url(source)


# ------------------------------------------------------------------------------------------------------- model hub


@dataclass(frozen=True)
class HubAddress:
    """A file of a repository, or the whole repository if `file` is ""."""

    repository: str
    file: str
    revision: str | None

    @classmethod
    def parse(cls, text: str) -> HubAddress:
        """Parse hf://ORGANISATION/REPOSITORY[/FILE][@REVISION]. Raises WeightsError for anything else."""
        place, at, revision = text.removeprefix("hf://").partition("@")
        parts = place.strip("/").split("/")
        if len(parts) < 2 or not all(parts) or ".." in parts or (at and not revision):
            raise WeightsError(text, "is no address of a model hub", "hf://ORGANISATION/REPOSITORY[/FILE][@REVISION]")
        return cls("/".join(parts[:2]), "/".join(parts[2:]), revision or None)

    def __str__(self) -> str:
        file = f"/{self.file}" if self.file else ""
        return f"hf://{self.repository}{file}" + (f"@{self.revision}" if self.revision else "")


def _from_hub(address: HubAddress) -> Path:
    if address.file:
        check_ending(address.file, str(address))
    # Imported here: it costs half a second, and local files need none of it.
    import huggingface_hub
    from huggingface_hub import errors

    try:
        if address.file:
            file = Path(huggingface_hub.hf_hub_download(address.repository, address.file, revision=address.revision))
            folder = address.file.rpartition("/")[0]
            beside = [f"{folder}/{name}" if folder else name for name in BESIDE]
            huggingface_hub.snapshot_download(address.repository, revision=address.revision, allow_patterns=beside)
            return file
        return Path(
            huggingface_hub.snapshot_download(
                address.repository, revision=address.revision, allow_patterns=[*HUB_FILES, *BESIDE]
            )
        )
    except errors.GatedRepoError as error:
        hint = f"accept its conditions at https://huggingface.co/{address.repository}, then `hf auth login`"
        raise WeightsError(address, "the repository asks for consent", "", hint) from error
    except errors.RepositoryNotFoundError as error:
        raise WeightsError(address, "no such repository, or a private one", "", "check the name or log in") from error
    except errors.RevisionNotFoundError as error:
        raise WeightsError(address, f"no revision '{address.revision}'", "a branch, tag or commit") from error
    except errors.LocalEntryNotFoundError as error:
        hint = "download it where there is a network, with the same HF_HOME"
        raise WeightsError(address, "not in the local cache, and the hub cannot be reached", "", hint) from error
    except errors.EntryNotFoundError as error:
        raise WeightsError(address, f"no file '{address.file}' in the repository", "", "check its name") from error
    except (OSError, ValueError, RuntimeError) as error:  # of the network, the disk, a name that the hub refuses
        raise WeightsError(address, f"cannot be downloaded: {_first_line(error)}") from error


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


# ------------------------------------------------------------------------------------------------------- addresses


class _SameSchemes(urllib.request.HTTPRedirectHandler):
    """Follow redirects within the allowed schemes only."""

    def redirect_request(self, req: Any, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str) -> Any:
        if urlsplit(newurl).scheme not in SCHEMES:
            fp.close()
            raise URLError(f"redirected to {urlsplit(newurl).scheme}://, which is not allowed")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def cache_folder() -> Path:
    """Return the download cache: INTERNVIDEO_CACHE, or internvideo/ in the user's cache folder."""
    given = os.environ.get("INTERNVIDEO_CACHE")
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "internvideo"


def _from_url(source: str) -> Path:
    address, _, fragment = source.partition("#")
    try:
        parts = urlsplit(address)
    except ValueError as error:  # such as half a bracket around a host
        raise WeightsError(source, f"is no address: {_first_line(error)}", "https://HOST/FILE") from error
    if parts.scheme not in SCHEMES:
        raise WeightsError(source, f"scheme '{parts.scheme}'", "https://, hf:// or a path")
    if not parts.hostname or parts.username or parts.password:
        raise WeightsError(parts.hostname or source, "no host, or a password in the address", "https://HOST/FILE")
    wanted = fragment.removeprefix("sha256=").lower() if fragment else ""
    if fragment and not (fragment.startswith("sha256=") and re.fullmatch("[0-9a-f]{64}", wanted)):
        raise WeightsError(f"#{fragment}", "is no hash", "#sha256= and 64 hex digits")
    name = unquote(parts.path.rpartition("/")[2])
    check_ending(name, address)
    stem = re.sub(r"[^\w.-]", "_", name)[-80:]
    target = cache_folder() / f"{hashlib.sha256(address.encode()).hexdigest()[:16]}-{stem}"
    if target.is_file():
        _check_hash(address, sha256_of(target), wanted, hint=f"delete {target} to download it again")
        return target
    with atomic_path(target) as temporary:
        digest = _download(address, temporary)
        _check_hash(address, digest, wanted, hint="the file on the server has changed: do not use it")
    return target


def _download(address: str, target: Path) -> str:
    """Stream an address to a file and return its SHA-256. Raises WeightsError."""
    request = urllib.request.Request(address, headers={"User-Agent": "internvideo"})
    opener = urllib.request.build_opener(_SameSchemes)
    digest, received = hashlib.sha256(), 0
    try:
        with opener.open(request, timeout=TIMEOUT_S) as answer:
            length = answer.headers.get("Content-Length", "")
            expected = int(length) if length.isdecimal() else None
            _check_size(address, expected or 0)
            with target.open("wb") as file:
                while piece := answer.read(PIECE):
                    received += len(piece)
                    _check_size(address, received)
                    digest.update(piece)
                    file.write(piece)
    except HTTPError as error:
        error.close()
        raise WeightsError(address, f"the server says {error.code} {error.reason}", "", "check the address") from error
    except (URLError, TimeoutError, ConnectionError, HTTPException) as error:
        raise WeightsError(address, f"cannot be downloaded: {_first_line(error)}", "", "check the network") from error
    if expected is not None and received != expected:
        raise WeightsError(address, f"ended after {received} of {expected} bytes", "", "try again")
    return digest.hexdigest()


def _check_size(address: str, size: int) -> None:
    if size > MAX_DOWNLOAD_BYTES:
        raise WeightsError(address, f"{size / 2**30:.1f} GB", f"at most {MAX_DOWNLOAD_BYTES / 2**30:.0f} GB")


def _check_hash(address: str, found: str, wanted: str, *, hint: str) -> None:
    if wanted and found != wanted:
        raise WeightsError(address, f"SHA-256 {found}", f"{wanted}, as asked for", hint)


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, 64 hex digits."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def check_ending(name: str, where: str) -> None:
    """Require a .safetensors file. Raises WeightsError, for a pickle with the command that converts it."""
    if name.endswith(ENDING):
        return
    if re.search(r"\.(pth|pt|bin|ckpt|pkl|pickle|tar)$", name, re.IGNORECASE):
        place = where if not is_remote(where) else f"the downloaded {name}"
        hint = f"convert it first: internvideo convert {place if is_remote(where) else shlex.quote(place)}"
        raise WeightsError(where, "a pickle can run any program, it is not opened", "a .safetensors file", hint)
    raise WeightsError(where, f"'{name}' is no weights file", "a .safetensors file")


def _first_line(error: BaseException) -> str:
    reason = getattr(error, "reason", None) or error
    return (str(reason).splitlines() or [type(error).__name__])[0][:200]
