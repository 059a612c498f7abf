"""Serve the application until it is interrupted."""

from __future__ import annotations

import socket
from collections.abc import Callable

import uvicorn

from viq.core.errors import ViqError
from viq.web.app import make_app
from viq.web.config import WebConfig

_BACKLOG = 256  # connections that wait to be taken
_HELD = 500  # connections at once
_QUIET = 20  # seconds that a connection may stay without a request


def serve(config: WebConfig, announce: Callable[[str], None]) -> None:
    """Bind, tell the address to `announce`, and serve.

    Raises:
        ViqError: the address cannot be had, or a model, store or run cannot be opened.
    """
    bound = bound_socket(config.host, config.port)
    with bound:
        app = make_app(config)
        port = bound.getsockname()[1]
        host = f"[{config.host}]" if ":" in config.host else config.host
        announce(f"http://{host}:{port}")
        settings = uvicorn.Config(
            app, log_level="warning", access_log=False, server_header=False, lifespan="on",
            limit_concurrency=_HELD, timeout_keep_alive=_QUIET, timeout_graceful_shutdown=5,
            ws="none",
        )  # fmt: skip
        uvicorn.Server(settings).run(sockets=[bound])


def bound_socket(host: str, port: int) -> socket.socket:
    """A socket that listens, so that an address in use is told before models are loaded."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        made = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise ViqError(f"--host {host}: no address of this machine ({error.strerror})") from None
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
        made.listen(_BACKLOG)
    except OSError as error:
        made.close()
        raise ViqError(
            f"--port {port}: {error.strerror}; give another --port, or 0 for a free one"
        ) from None
    return made
