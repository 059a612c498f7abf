"""What `viq web` is started with, and the bounds of what its visitors may ask for."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from pathlib import Path

from viq.core.files import DEFAULT_CHAT, DEFAULT_MODEL
from viq.core.remote import Location
from viq.core.types import ViqError

TOKEN_LENGTH = 16  # characters at least: nobody guesses that many


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds for one visitor, and for all of them together."""

    upload_bytes: int = 32 * 2**20  # of a request
    open_pixels: int = 50_000_000  # of a picture; larger ones are refused before they are decoded
    max_pixels: int = 4_000_000  # pictures are shrunk to so many before they are encoded
    seconds: float = 120.0  # of one piece of work, from its start
    waiting: int = 64  # pieces of work that wait; one more is refused
    each: int = 3  # pieces of work of one visitor that wait or run
    kept_bytes: int = 256 * 2**20  # of pictures and what was made of them; the oldest go first
    question: int = 2000  # characters
    answer_tokens: int = 256
    turns: int = 20  # of a conversation
    search_rows: int = 250_000  # rows of a store whose vectors are kept for searches, 0.8 kB each


@dataclass(frozen=True, kw_only=True)
class WebConfig:
    """What is served, and to whom.

    Raises:
        ViqError: bound to another address than that of this machine without a token, or with one
            that could be guessed.
    """

    model: str = DEFAULT_MODEL
    chat: str | None = DEFAULT_CHAT  # None: no conversations
    draw: str | None = None  # run folder of viq train generation
    stores: tuple[Location, ...] = ()
    runs: tuple[Path, ...] = ()
    host: str = "127.0.0.1"
    port: int = 7860
    token: str | None = None
    names: tuple[str, ...] = ()  # further host names under which visitors come
    device: str = "cpu"
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        if self.token is None and not is_loopback(self.host):
            raise ViqError(
                f"--host {self.host}: others could reach these pages; give --token WORD too, or "
                "VIQ_WEB_TOKEN in the environment, which visitors then have to know"
            )
        if self.token is not None and (
            len(self.token) < TOKEN_LENGTH or not self.token.isascii() or " " in self.token
        ):
            raise ViqError(
                f"--token: give {TOKEN_LENGTH} or more letters and figures, as of "
                'python -c "import secrets; print(secrets.token_urlsafe())"'
            )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
