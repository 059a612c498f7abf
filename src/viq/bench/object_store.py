"""A server on this machine that s3fs reads from, and that answers each request late.

It does nothing but hand out bytes: it shares the processor with who reads, and its own work is not
to be measured. The tests read from moto, which does all that S3 does.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from unittest import mock

from viq.core.errors import require

_BUCKET = "codes"


class ObjectStore(ThreadingHTTPServer):
    """Files by name, as objects of one bucket.

    Attributes:
        url: of the bucket.
        files: bytes by name, with slashes.
        latency_s: seconds that pass before a request is looked at; may be changed at any moment.
        answers: of each request that was answered, when that ended (`time.monotonic`, which all
            processes of a machine share) and the bytes of the answer.
    """

    url = f"s3://{_BUCKET}"
    daemon_threads = True
    request_queue_size = 128

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Request)
        self.files: dict[str, bytes] = {}
        self.latency_s = 0.0
        self.answers: list[tuple[float, int]] = []

    def put(self, folder: Path, name: str) -> str:
        """Store the files of a folder under a name; gives the URL."""
        for path in folder.iterdir():
            self.files[f"{name}/{path.name}"] = path.read_bytes()
        return f"{self.url}/{name}"


class _Request(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: ObjectStore  # pyright: ignore[reportIncompatibleVariableOverride]  # that makes it

    def log_message(self, format: str, *args: object) -> None: ...

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        time.sleep(self.server.latency_s)
        name = self.path.partition("?")[0].removeprefix(f"/{_BUCKET}/")
        data = self.server.files.get(name)
        if data is None:
            self.send_response(HTTPStatus.NOT_FOUND)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        part, whole = self.headers.get("Range"), len(data)
        if part:
            first, last = part.removeprefix("bytes=").split("-")
            stop = min(int(last or whole) + 1, whole)
            data = memoryview(data)[int(first) : stop]
            self.send_response(HTTPStatus.PARTIAL_CONTENT)
            self.send_header("Content-Range", f"bytes {first}-{stop - 1}/{whole}")
        else:
            self.send_response(HTTPStatus.OK)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", f'"{hash(name):x}"')
        self.send_header("Last-Modified", self.date_time_string(0))
        self.end_headers()
        if body:
            self.wfile.write(data)
        self.server.answers.append((time.monotonic(), len(data) if body else 0))


@contextmanager
def serving() -> Iterator[ObjectStore]:
    """A server that s3fs of this process and of its children reads from until the block ends.

    Raises:
        ViqError: s3fs is not installed.
    """
    with require("s3fs", "s3", "reading from an object store"):
        import s3fs
    server = ObjectStore()
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    settings = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}",
        "AWS_ACCESS_KEY_ID": "none",
        "AWS_SECRET_ACCESS_KEY": "none",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    try:
        with mock.patch.dict(os.environ, settings):
            s3fs.S3FileSystem.clear_instance_cache()
            yield server
            s3fs.S3FileSystem.clear_instance_cache()
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
