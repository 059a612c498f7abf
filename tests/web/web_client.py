"""A visitor without a browser: pages, and work that is followed until it is done."""

from __future__ import annotations

import io
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from PIL import Image
from starlette.testclient import TestClient

HOST = "http://127.0.0.1:7860"


class Visitor(TestClient):
    """A client with the CSRF token of its pages."""

    csrf = ""

    def enter(self) -> None:
        """Load a page, for the cookie and the CSRF token."""
        page = self.get("/login", headers={"Accept": "text/html"}).text
        found = re.search(r'name="csrf" content="(\w+)"', page)
        assert found
        self.csrf = found[1]

    def submit(self, address: str, **options: Any) -> Any:
        """POST with the token, as the script of the pages does."""
        return self.post(address, headers={"X-CSRF-Token": self.csrf}, **options)

    def events(self, address: str, **options: Any) -> list[dict[str, Any]]:
        """All that a piece of work tells."""
        begun = self.submit(address, **options)
        assert begun.status_code == 202, begun.text
        return [json.loads(line) for line in self.get(begun.json()["work"]).text.splitlines()]

    def done(self, address: str, **options: Any) -> dict[str, Any]:
        """What a piece of work gives."""
        last = self.events(address, **options)[-1]
        assert "done" in last, last
        return last["done"]

    def error(self, address: str, **options: Any) -> str:
        """The one line of work that fails."""
        last = self.events(address, **options)[-1]
        assert last.keys() == {"error"} and "\n" not in last["error"], last
        return last["error"]

    def bring(self, data: bytes, name: str = "picture.png") -> str:
        """The id of a picture that was brought."""
        return self.done("/picture", files={"file": (name, data)})["picture"]


@contextmanager
def visitor(app: Any, base_url: str = HOST) -> Iterator[Visitor]:
    """Without the lifespan of the app, which several visitors share."""
    found = Visitor(app, base_url=base_url, follow_redirects=False)
    found.enter()
    yield found
    found.close()


@contextmanager
def serving(app: Any) -> Iterator[str]:
    """Serve at a free port; gives the address."""
    import uvicorn

    from viq.web.serve import bound_socket

    with bound_socket("127.0.0.1", 0) as sock:
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", ws="none"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]})
        thread.start()
        while not server.started:
            time.sleep(0.05)
        try:
            yield f"http://127.0.0.1:{sock.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


def png(image: Image.Image) -> bytes:
    with io.BytesIO() as stream:
        image.save(stream, "PNG")
        return stream.getvalue()


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")
