"""What the routes share: models, loaded once, the queue, and the pictures in memory."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import Any

from starlette.requests import Request

from viq.core.remote import Location
from viq.core.untrusted import printable
from viq.models.tokenizer.loading import load
from viq.models.tokenizer.tokenizer import VisualTokenizer
from viq.web.config import WebConfig
from viq.web.pictures import Shelf
from viq.web.stores import OpenStore
from viq.web.work import Queue

_AT_ONCE = 2  # pictures that are decoded for pages, beside the work in the queue
_TALKS = 1000  # conversations that are kept
Turns = list[dict[str, str]]  # {role, content}


class State:
    """Of one server.

    Args:
        tokenizer: in place of loading the one that the config names.

    Raises:
        ViqError: the model or a store cannot be opened.
    """

    def __init__(self, config: WebConfig, tokenizer: VisualTokenizer | None = None) -> None:
        self.config = config
        self.tokenizer = tokenizer or load(config.model, device=config.device)
        self.stores = [OpenStore(place, self.tokenizer) for place in config.stores]
        for opened, name in zip(self.stores, short_names(config.stores), strict=True):
            opened.name = name
        self.run_names = short_names([place.resolve() for place in config.runs])
        self.queue = Queue(config.limits)
        self.shelf = Shelf(config.limits.kept_bytes)
        self.decoding = asyncio.Semaphore(_AT_ONCE)
        self.talks: OrderedDict[str, Turns] = OrderedDict()  # by visitor and picture
        self._others: list[VisualTokenizer] = []
        self._parts: dict[str, Any] = {}
        self._lock = Lock()

    def close(self) -> None:
        """End all threads."""
        self.queue.close()
        for opened in self.stores:
            opened.close()

    def part(self, name: str, make: Any) -> Any:
        """A large part that is made when it is first asked for: a chat model, say."""
        with self._lock:
            if name not in self._parts:
                self._parts[name] = make()
            return self._parts[name]

    def tokenizer_of(self, fingerprint: str) -> VisualTokenizer:
        """The one that made codes: that of this server, or of one of its stores. Raises
        `ViqError`."""
        known = [opened.tokenizer for opened in self.stores] + self._others
        for tokenizer in known:
            if tokenizer is not None and tokenizer.fingerprint == fingerprint:
                return tokenizer
        self.tokenizer.require(fingerprint)
        return self.tokenizer

    def know(self, tokenizer: VisualTokenizer) -> None:
        """Remember who made codes of pictures on the shelf."""
        if tokenizer not in self._others:
            self._others.append(tokenizer)

    def turns(self, visitor: str, picture: str) -> Turns:
        """What was said about a picture, by a visitor and a model in turn."""
        with self._lock:
            key = f"{visitor} {picture}"
            found = self.talks.setdefault(key, [])
            self.talks.move_to_end(key)
            while len(self.talks) > _TALKS:
                self.talks.popitem(last=False)
            return found


def short_names(places: Sequence[Location]) -> list[str]:
    """The end of each path or URL, of as many parts as tell it from the others."""
    texts = [p.as_posix() if isinstance(p, Path) else p for p in places]
    parts = [text.rstrip("/").split("/") for text in texts]
    names = []
    for mine in parts:
        others = [other for other in parts if other != mine]
        count = 1
        while count < len(mine) and any(other[-count:] == mine[-count:] for other in others):
            count += 1
        names.append(printable("/".join(mine[-count:]), 80))
    return names


def state_of(request: Request) -> State:
    return request.app.state.viq
