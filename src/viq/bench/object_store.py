"""An S3 server on this machine that answers each request late, as one far away does."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import count
from threading import Thread
from typing import Any
from unittest import mock

from viq.core.types import ViqError

_numbers = count()  # of buckets, as moto keeps those of servers that have ended


class ObjectStore:
    """What a server of `serving` does, and has done.

    Attributes:
        url: of an empty bucket.
        latency_s: seconds that pass before a request is looked at; may be changed at any moment.
        answers: of each request that was answered, when that ended (`time.monotonic`, which all
            processes of a machine share) and the bytes of the answer.
    """

    def __init__(self, app: Callable[..., Iterable[bytes]]) -> None:
        self._app = app
        self.url, self.latency_s = "", 0.0
        self.answers: list[tuple[float, int]] = []

    def __call__(self, environ: Any, start_response: Any) -> Iterator[bytes]:
        """By WSGI."""
        time.sleep(self.latency_s)
        sent = 0
        for piece in self._app(environ, start_response):
            sent += len(piece)
            yield piece
        self.answers.append((time.monotonic(), sent))


@contextmanager
def serving() -> Iterator[ObjectStore]:
    """A server with an empty bucket, which s3fs of this process and of its children finds.

    Raises:
        ViqError: moto or s3fs is not installed.
    """
    try:
        import fsspec
        import s3fs
        from moto.server import DomainDispatcherApplication, create_backend_app
        from werkzeug.serving import WSGIRequestHandler, make_server
    except ImportError:
        raise ViqError(
            "an object store on this machine needs moto and s3fs: pip install 'moto[server]' "
            "'viq[s3]'"
        ) from None

    class Silent(WSGIRequestHandler):
        def log(self, *_: Any, **__: Any) -> None: ...

    store = ObjectStore(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, store, threaded=True, request_handler=Silent)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    settings = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    try:
        with mock.patch.dict(os.environ, settings):
            bucket = f"codes-{next(_numbers)}"
            fsspec.filesystem("s3", skip_instance_cache=True).mkdir(bucket)
            s3fs.S3FileSystem.clear_instance_cache()
            store.url = f"s3://{bucket}"
            yield store
            s3fs.S3FileSystem.clear_instance_cache()
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
