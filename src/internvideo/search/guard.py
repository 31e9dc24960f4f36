"""Check every request to the server: token, origin and size; set the content security policy of the page."""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import SplitResult, parse_qs, urlsplit

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

COOKIE = "internvideo_token"
MAX_URL = 16_000
"""Bytes of a path with its query."""
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "media-src 'self' blob:; connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}


def is_loopback(host: str) -> bool:
    """Return whether an address is this machine's own."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


class Guard:
    """ASGI middleware.

    Args:
        app: the application. token: secret that requests must carry, None for none.
        max_body: bytes of a request's body. local: answer only to this machine's names in the Host header, so that no
            other site can point its own name here (DNS rebinding).
    """

    def __init__(self, app: App, *, token: str | None, max_body: int, local: bool) -> None:
        self.app, self.token, self.max_body, self.local = app, token, max_body, local

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        refused = self._refusal(scope, headers)
        if refused is not None:
            await _answer(send, *refused)
            return
        if (cookie := self._token_of_url(scope)) is not None:
            attributes = "HttpOnly; SameSite=Strict; Path=/"
            await _answer(send, 303, "", {"location": "/", "set-cookie": f"{COOKIE}={cookie}; {attributes}"})
            return
        begun, read = False, 0

        async def counted() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self.max_body:
                raise _TooLargeError
            return message

        async def guarded(message: Message) -> None:
            nonlocal begun
            if read > self.max_body and not begun:
                return  # whatever the application makes of it, the answer is below
            if message["type"] == "http.response.start":
                begun = True
                own = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message["headers"] = [*message.get("headers", ()), *own]
            await send(message)

        with suppress(_TooLargeError):
            await self.app(scope, counted, guarded)
        if read > self.max_body and not begun:
            await _answer(send, 413, f"more than {self.max_body:,} bytes")

    def _refusal(self, scope: Scope, headers: dict[bytes, str]) -> tuple[int, str] | None:
        host = headers.get(b"host", "")
        if self.local and not is_loopback(_split(f"//{host}").hostname or ""):
            return 421, "this server answers to 127.0.0.1 and localhost"
        if len(scope.get("raw_path") or b"") + len(scope.get("query_string") or b"") > MAX_URL:
            return 414, f"an address of more than {MAX_URL:,} bytes"
        origin = headers.get(b"origin")
        if scope["method"] not in ("GET", "HEAD") and origin is not None and _split(origin).netloc != host:
            return 403, "from the page of another site"
        length = headers.get(b"content-length", "0")
        if not (length.isascii() and length.isdigit() and len(length) < 19) or int(length) > self.max_body:
            return 413, f"more than {self.max_body:,} bytes"
        if self.token is not None and not self._knows_token(scope, headers):
            return 401, "a token is needed: open the address that the server printed, or send Authorization: Bearer"
        return None

    def _knows_token(self, scope: Scope, headers: dict[bytes, str]) -> bool:
        given = [headers.get(b"authorization", "").removeprefix("Bearer ")]
        try:
            cookie = SimpleCookie(headers.get(b"cookie", ""))
            given += [cookie[COOKIE].value] if COOKIE in cookie else []
        except CookieError:
            pass
        if (of_url := self._token_of_url(scope)) is not None:
            given.append(of_url)
        wanted = (self.token or "").encode()
        return any(hmac.compare_digest(one.encode(), wanted) for one in given)

    def _token_of_url(self, scope: Scope) -> str | None:
        """Return the token in the address of the page, which is exchanged for a cookie."""
        if self.token is None or scope["path"] != "/":
            return None
        try:
            found = parse_qs(scope["query_string"].decode("latin-1"), max_num_fields=50).get("token")
        except ValueError:
            return None
        return found[0] if found and hmac.compare_digest(found[0].encode(), self.token.encode()) else None


class _TooLargeError(Exception):
    """A body that is longer than allowed."""


def _split(address: str) -> SplitResult:
    """Split an address; one that is none has empty parts."""
    try:
        return urlsplit(address)
    except ValueError:
        return urlsplit("")


async def _answer(send: Send, status: int, text: str, headers: dict[str, str] | None = None) -> None:
    body = text.encode()
    told = {"content-type": "text/plain; charset=utf-8", "content-length": str(len(body)), **HEADERS, **(headers or {})}
    pairs = [(name.encode(), value.encode("latin-1")) for name, value in told.items()]
    await send({"type": "http.response.start", "status": status, "headers": pairs})
    await send({"type": "http.response.body", "body": body})
