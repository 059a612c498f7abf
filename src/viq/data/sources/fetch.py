"""The bytes of an http(s) URL that data name: so many, for so long, from public addresses.

A URL in somebody's data could point this machine at its own services, or at those of the network
that it stands in. So the address of each connection is looked at when it is made, after the name
was resolved and after each redirect: a server of names that answers otherwise the second time is
not asked a second time. Proxies and passwords of the environment are not used.

What may pass is tried again, after 0.25 s, then twice as long each time, or after as long as the
server asks for (`Retry-After`), half a minute at most. A server gets a few connections at a time.

fsspec's thread runs all connections, which are kept open for the next fetch, and made anew after a
fork.
"""

from __future__ import annotations

import asyncio
import atexit
import ipaddress
import socket
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, cast

from viq.image.open import ImageError

_REDIRECTS = (301, 302, 303, 307, 308)
_BUSY = (408, 425, 429, 500, 502, 503, 504)
_FIRST_WAIT, _LONGEST_WAIT = 0.25, 30.0  # seconds
_CONNECTIONS = 256  # of a process at a time
_PIECE = 2**16
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")  # IPv4 addresses as seen from IPv6 alone

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, kw_only=True)
class FetchLimits:
    """What one fetch may take."""

    size: int = 256 * 2**20  # bytes
    connect: float = 30.0  # seconds, for each connection
    total: float = 300.0  # seconds, from the first name resolved to the last byte
    redirects: int = 5
    tries: int = 3  # of what may pass: no connection, a server that is busy or has failed
    per_host: int = 8  # connections to one server at a time
    parallel: int = 32  # downloads at a time, ahead of what reads them


class _MayPassError(ImageError):
    """Another try may help.

    Attributes:
        after: seconds that the server asks to wait; None if it does not.
    """

    after: float | None = None


class _PrivateAddress(OSError):
    """An address that data may not name."""


def fetch(url: str, limits: FetchLimits, *, private: bool, trusted: bool = False) -> bytes:
    """What lies at an http or https URL.

    Args:
        private: whether addresses of this machine and of private networks may be asked.
        trusted: whether `url` itself, unlike what it redirects to, may name such an address.

    Raises:
        ImageError: it cannot be had within the limits. The message does not name the URL.
    """
    from fsspec.asyn import get_loop, sync

    try:
        return cast(bytes, sync(get_loop(), _within, url, limits, private, trusted))
    except (TimeoutError, asyncio.TimeoutError) as error:  # two in Python 3.10
        raise ImageError(f"took more than {limits.total:g} s; try again") from error


async def _within(url: str, limits: FetchLimits, private: bool, trusted: bool) -> bytes:
    return await asyncio.wait_for(_fetch(url, limits, private, trusted), limits.total)


async def _fetch(url: str, limits: FetchLimits, private: bool, trusted: bool) -> bytes:
    clock = asyncio.get_running_loop().time
    end = clock() + limits.total
    for number in range(limits.tries - 1):
        try:
            return await _try(url, limits, private, trusted)
        except _MayPassError as error:
            asked = _FIRST_WAIT * 2**number if error.after is None else error.after
            wait = min(asked, _LONGEST_WAIT)
            if clock() + wait >= end:
                raise
            await asyncio.sleep(wait)
    return await _try(url, limits, private, trusted)


async def _try(url: str, limits: FetchLimits, private: bool, trusted: bool) -> bytes:
    import aiohttp

    timeout = aiohttp.ClientTimeout(total=limits.total, sock_connect=limits.connect)
    asked = {"allow_redirects": False, "timeout": timeout}
    for hop in range(limits.redirects + 1):
        session = _session(private or (trusted and hop == 0), limits.per_host)
        try:
            async with session.get(url, **asked) as answer:
                location = answer.headers.get("Location")
                if answer.status not in _REDIRECTS or location is None:
                    return await _body(answer, limits.size)
                url = str(answer.url.join(type(answer.url)(location)))
        except aiohttp.ClientConnectorError as error:
            is_final = isinstance(error.os_error, _PrivateAddress)
            raise (ImageError if is_final else _MayPassError)(_words(error.os_error)) from error
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientPayloadError) as error:
            raise _MayPassError(f"the connection was cut ({_words(error)})") from error
        if not url.lower().startswith(("http://", "https://")):
            raise ImageError(f"the server leads to {url[:100]}, which is not http(s)")
    raise ImageError(f"the server leads on more than {limits.redirects} times")


def _seconds(text: str) -> float | None:
    """Of a Retry-After; None for a date, or none."""
    return float(text) if text.isdigit() and len(text) < 9 else None


async def _body(answer: Any, limit: int) -> bytes:
    if answer.status in (404, 410):
        raise ImageError("does not exist; check the URL")
    if answer.status in _BUSY:
        busy = _MayPassError(f"the server answers {answer.status}; try again")
        busy.after = _seconds(answer.headers.get("Retry-After", ""))
        raise busy
    if answer.status != 200:
        raise ImageError(f"the server answers {answer.status}; check the URL, or try again")
    coding = answer.headers.get("Content-Encoding", "identity")
    if coding != "identity":  # not asked for, and a few bytes may unpack to any number
        raise ImageError(f"the server sends it packed ({coding[:20]})")
    data = bytearray()
    if (answer.content_length or 0) <= limit:
        async for piece in answer.content.iter_chunked(_PIECE):
            data += piece
            if len(data) > limit:
                break
        else:
            return bytes(data)
    answer.close()
    raise ImageError(f"has more than {limit:,} bytes, the limit")


_sessions: dict[tuple[asyncio.AbstractEventLoop, bool, int], Any] = {}


def _session(private: bool, per_host: int) -> Any:
    """The connections of this loop that may, or may not, go to private addresses."""
    import aiohttp

    key = (asyncio.get_running_loop(), private, per_host)
    if key not in _sessions:
        _sessions[key] = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=_CONNECTIONS,
                limit_per_host=per_host,
                socket_factory=None if private else _public_socket,
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            headers={"Accept-Encoding": "identity"},
            trust_env=False,
        )
    return _sessions[key]


@atexit.register
def _close() -> None:
    """Close what is open in this process; loops of before a fork do not run in it."""
    for (loop, *_), session in _sessions.items():
        if loop.is_running():
            with suppress(Exception):
                asyncio.run_coroutine_threadsafe(session.close(), loop).result(1)


def _public_socket(info: tuple[Any, ...]) -> socket.socket:
    """A socket for a resolved address. Raises `_PrivateAddress`."""
    family, kind, protocol, _, (host, *_) = info
    if not is_public(host):
        raise _PrivateAddress(
            0,
            f"its address {host} is of this machine or of a private network; pass"
            " --allow-private-network if you trust the data",
        )
    return socket.socket(family, kind, protocol)


def is_public(host: str) -> bool:
    """Whether an IP address, in digits, is one of the internet at large."""
    try:
        address = _inner(ipaddress.ip_address(host.partition("%")[0]))
    except ValueError:
        return False
    return address.is_global and not (address.is_multicast or address.is_reserved)


def _inner(address: Address) -> Address:
    """The IPv4 address that an IPv6 address stands for, if it does."""
    if not isinstance(address, ipaddress.IPv6Address):
        return address
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    teredo = address.teredo[1] if address.teredo else None
    return address.ipv4_mapped or address.sixtofour or teredo or address


def _words(error: BaseException) -> str:
    """Those of a failed connection, which may have tried several addresses."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(text).split())[:300]
