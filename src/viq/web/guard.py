"""Who may ask for what: every request passes here before a route sees it.

1. The Host header must name this server, so that a page elsewhere cannot reach it under a name of
   its own (DNS rebinding).
2. With a token, visitors give it once, and then have a cookie. Cookies are signed with a key that
   each start of the server draws, hold no secret, and are not sent along from other sites.
3. What changes something (any method but GET and HEAD) needs the CSRF token that only our own pages
   show, and an Origin, where the browser sends one, that is ours.
4. Bodies end at a limit, whatever their headers say.

All answers carry a Content-Security-Policy without any inline script or style.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import secrets
from collections.abc import Iterable
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from viq.web.config import WebConfig, is_loopback

COOKIE = "viq_web"
_OPEN = ("/login", "/static/")  # what may be seen without the token
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
        "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",  # without any, browsers send an Origin of "null"
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}


class TooLarge(Exception):
    """A body has more bytes than it may."""


class Keys:
    """What is signed with a key of this start of the server: cookies and CSRF tokens."""

    def __init__(self, token: str | None) -> None:
        self._token = token or ""
        self._key = secrets.token_bytes(32)

    def opens(self, token: str) -> bool:
        """Whether this is the token; takes as long for any that is not."""
        return bool(self._token) and hmac.compare_digest(
            _digest(token.encode()), _digest(self._token.encode())
        )

    def cookie(self, visitor: str, known: bool) -> str:
        """The value of a Set-Cookie header."""
        return f"{COOKIE}={self._signed(visitor, known)}; Path=/; HttpOnly; SameSite=Strict"

    def csrf(self, visitor: str) -> str:
        """What requests of a visitor that change something have to carry."""
        return self._mac(f"csrf {visitor}")

    def visitor(self, value: str) -> tuple[str, bool] | None:
        """Who a cookie is of, and whether the token was given; None if we did not sign it."""
        name, _, rest = value.partition(".")
        known = rest[:1] == "1"
        if name.isalnum() and hmac.compare_digest(
            value.encode(), self._signed(name, known).encode()
        ):
            return name, known
        return None

    def _signed(self, visitor: str, known: bool) -> str:
        text = f"{visitor}.{int(known)}"
        return f"{text}.{self._mac('visitor ' + text)}"

    def _mac(self, text: str) -> str:
        return hmac.new(self._key, text.encode(), hashlib.sha256).hexdigest()


class Guard:
    """The middleware. Puts `visitor`, `csrf` and `known` (has given the token) into the scope."""

    def __init__(self, app: ASGIApp, config: WebConfig, keys: Keys) -> None:
        self._app, self._config, self._keys = app, config, keys
        self._names = _names_of(config)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return  # no websockets here
        headers = Headers(scope=scope)
        visitor, known, fresh = self._visitor(headers)
        about = {"visitor": visitor, "known": known, "csrf": self._keys.csrf(visitor)}
        scope["state"] = {**scope.get("state", {}), **about}

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                out = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    out.setdefault(name, value)
                out.setdefault("Cache-Control", "no-store")
                if fresh:
                    out.append("Set-Cookie", self._keys.cookie(visitor, known))
            await send(message)

        refused = self._refusal(scope, headers, visitor, known)
        if refused is not None:
            await refused(scope, receive, sending)
            return
        await self._app(scope, self._bounded(receive), sending)

    def _refusal(
        self, scope: Scope, headers: Headers, visitor: str, known: bool
    ) -> Response | None:
        host = _host_of(headers.get("host", ""))
        if not self._is_ours(host):
            return _plain(421, "this server has another name; open it by the address it printed")
        length = headers.get("content-length", "0")
        most = self._config.limits.upload_bytes
        if not length.isdecimal() or int(length) > most:
            return _plain(413, f"more than {most // 2**20} MB; make the picture smaller")
        path, method = scope["path"], scope["method"]
        if self._config.token and not known and not path.startswith(_OPEN):
            if method in ("GET", "HEAD") and "text/html" in headers.get("accept", ""):
                return RedirectResponse("/login", 303)
            return _plain(401, "give the token first, at /login")
        if method in ("GET", "HEAD"):
            return None
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != headers.get("host"):
            return _plain(403, "asked for from another site")
        query = parse_qs(scope.get("query_string", b"").decode("latin-1"))
        given = headers.get("x-csrf-token") or query.get("csrf", [""])[0]
        if not hmac.compare_digest(given.encode(), self._keys.csrf(visitor).encode()):
            return _plain(403, "this page is from before the server was started; load it again")
        return None

    def _is_ours(self, host: str) -> bool:
        if host in self._names:
            return True
        if is_loopback(self._config.host):
            return False
        try:  # by its number, a site elsewhere cannot have this server take it for its own
            ipaddress.ip_address(host)
        except ValueError:
            return False
        return True

    def _bounded(self, receive: Receive) -> Receive:
        seen = 0

        async def bounded() -> Message:
            nonlocal seen
            message = await receive()
            if message["type"] == "http.request":
                seen += len(message.get("body", b""))
                if seen > self._config.limits.upload_bytes:
                    raise TooLarge
            return message

        return bounded

    def _visitor(self, headers: Headers) -> tuple[str, bool, bool]:
        """Who it is, whether the token was given, and whether the cookie is new."""
        bearer = headers.get("authorization", "").partition("Bearer ")[2]
        by_header = bool(bearer) and self._keys.opens(bearer)
        try:
            found = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
        except CookieError:
            found = None
        signed = self._keys.visitor(found.value) if found else None
        if signed is None:
            return secrets.token_hex(16), by_header, True
        return signed[0], signed[1] or by_header, False


def _names_of(config: WebConfig) -> frozenset[str]:
    import socket

    names: Iterable[str] = ["localhost", "127.0.0.1", "::1", config.host, *config.names]
    if not is_loopback(config.host):
        names = [*names, socket.gethostname(), socket.getfqdn()]
    return frozenset(name.lower() for name in names)


def _host_of(header: str) -> str:
    """The name in a Host header, without port and brackets."""
    host = header.strip().lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.rpartition(":")[0] if ":" in host else host


def _plain(code: int, words: str) -> Response:
    return PlainTextResponse(words + "\n", code)


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()
