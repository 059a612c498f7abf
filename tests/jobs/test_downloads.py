"""Lists of URLs: fetched ahead and in parallel, a few at a time from a server, and tried again."""

import http.server
import io
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import tiny

from viq.data.sources.access import Access
from viq.data.sources.fetch import FetchLimits
from viq.data.sources.open import open_source
from viq.jobs.encode import encode
from viq.store.folder import Store

pytest.importorskip("aiohttp", reason="URLs are fetched by aiohttp: pip install 'viq[data]'")
PICTURES = 24


class Server(http.server.BaseHTTPRequestHandler):
    """Pictures; some are answered only when asked for again, some never."""

    protocol_version = "HTTP/1.1"
    asked: Counter[str] = Counter()
    at_once: list[int] = [0, 0]  # now, at most
    lock = threading.Lock()

    def do_GET(self) -> None:
        with self.lock:
            self.asked[self.path] += 1
            self.at_once[0] += 1
            self.at_once[1] = max(self.at_once)
        time.sleep(0.02)  # so that requests meet; nothing is asserted on time
        status = 200
        if self.path.startswith("/busy") and self.asked[self.path] < 3:
            status = 503
        elif self.path.startswith("/gone"):
            status = 404
        elif self.path.startswith("/broken"):
            status = 500
        with io.BytesIO() as stream:
            tiny.picture(len(self.path), 16, 16).save(stream, format="PNG")
            data = stream.getvalue() if status == 200 else b""
        with self.lock:
            self.at_once[0] -= 1
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        if status == 503:
            self.send_header("Retry-After", "0")
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def served() -> Iterator[str]:
    Server.asked.clear()
    Server.at_once[:] = [0, 0]
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()


def test_urls_are_fetched_in_parallel_and_tried_again(tmp_path: Path) -> None:
    with served() as url:
        names = [f"/{i}.png" for i in range(PICTURES)] + ["/busy.png", "/gone.png", "/gone2.png"]
        names += ["/broken.png"]
        (tmp_path / "urls.txt").write_text("\n".join(url + name for name in names))
        limits = FetchLimits(per_host=4, parallel=16)
        access = Access(private_network=True, limits=limits)
        source = open_source(tmp_path / "urls.txt", access=access)
        report = encode(tiny.tokenizer(), source, tmp_path / "codes")
    assert report.images == PICTURES + 1 and len(report.failures) == 3
    assert [key for key, _ in Store(tmp_path / "codes")] == [
        url + name for name in names if "gone" not in name and "broken" not in name
    ]
    assert 1 < Server.at_once[1] <= 4
    assert (Server.asked["/busy.png"], Server.asked["/broken.png"]) == (3, 3)
    assert Server.asked["/gone.png"] == Server.asked["/1.png"] == 1
    assert report.as_dict()["failure_reasons"] == {
        "does not exist; check the URL": 2,
        "the server answers 500; try again": 1,
    }


def test_one_try(tmp_path: Path) -> None:
    with served() as url:
        (tmp_path / "urls.txt").write_text(f"{url}/busy.png")
        access = Access(private_network=True, limits=FetchLimits(tries=1))
        source = open_source(tmp_path / "urls.txt", access=access)
        report = encode(tiny.tokenizer(), source, tmp_path / "codes")
    assert Server.asked["/busy.png"] == 1
    assert "answers 503; try again" in report.failures[0]["reason"]


@pytest.mark.slow
def test_urls_are_fetched_by_ray_too(tmp_path: Path) -> None:
    """The same store, byte for byte, by actors that fetch each URL once and try again."""
    pytest.importorskip("ray.data", reason="the cluster engine: pip install 'viq[ray]'")
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    with served() as url:
        names = [*(f"/{i}.png" for i in range(PICTURES)), "/busy.png", "/gone.png"]
        (tmp_path / "urls.txt").write_text("\n".join(url + name for name in names))
        for engine in ("local", "ray"):
            Server.asked.clear()
            command = [sys.executable, "-m", "viq", "encode", tmp_path / "urls.txt",
                       "-o", tmp_path / engine, "--model", tmp_path / "model", "--shard-size", "5",
                       "--allow-private-network", "--engine", engine]  # fmt: skip
            done = subprocess.run(command, capture_output=True, text=True)
            assert done.returncode == 3, done.stderr  # one is gone
            assert dict(Server.asked) == {name: 3 if name == "/busy.png" else 1 for name in names}
    local, ray = (
        {path.name: path.read_bytes() for path in (tmp_path / engine).iterdir()}
        for engine in ("local", "ray")
    )
    assert local == ray and len(Store(tmp_path / "ray").shards) == 6
