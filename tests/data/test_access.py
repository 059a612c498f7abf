"""What names inside data may open: their own folder, the web within bounds, no more unasked."""

import base64
import contextlib
import os
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
from source_rows import picture, shade, write_parquet

from viq.data.sources.access import Access, ImageUrl, Names
from viq.data.sources.base import SourceError
from viq.data.sources.fetch import FetchLimits, is_public
from viq.data.sources.open import open_source
from viq.image.open import ImageError

PUBLIC = "https://example.org/a.png"


def may_not(name: str, reason: str, **access: Any) -> None:
    """Neither a list nor a table nor a JSON field may name it; the message is one line."""
    with pytest.raises(SourceError, match=reason) as error:
        Names(Path("data"), Access(**access)).image(name, "data.jsonl:12")
    assert str(error.value).startswith("data.jsonl:12: ") and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "name",
    [
        "reference://..::file:///etc/passwd",
        "reference::file:///tmp/refs.json",
        "simplecache::https://example.org/a.png",
        "zip://a.png::https://example.org/a.zip",
        "https://example.org/a::file:///etc/passwd",
    ],
)
def test_no_chain_of_file_systems(name: str) -> None:
    may_not(name, "chain of file systems")
    may_not(name, "chain of file systems", protocols=("reference", "zip"), absolute=True)


def test_other_protocols_have_to_be_allowed() -> None:
    for url in ("s3://bucket/a.png", "S3://bucket/a.png", "gs://b/a.png", "hf://datasets/a/b/c"):
        may_not(url, r"pass --allow-protocol (s3|gs|hf) ")
    assert Names(Path(), Access(protocols=("s3",))).image("S3://bucket/a.png", "") is not None
    for url in ("file:///etc/a.png", "FILE://a", "local://a"):
        may_not(url, "local file", protocols=("s3",))
    for name in ("file", "local", "zip::s3", ""):
        with pytest.raises(SourceError, match="--allow-protocol"):
            Access(protocols=(name,))
    home = Names(Path(), origin="hf://datasets/me/mine")
    assert home.image("hf://datasets/me/mine@main/a.png", "") is not None
    for url in ("hf://datasets/me/minery/a.png", "hf://datasets/me/mine/../../you/a.png"):
        with pytest.raises(SourceError, match="--allow-protocol hf"):
            home.image(url, "")


def test_paths_stay_below_the_folder_of_the_data(tmp_path: Path) -> None:
    for folder in ("data/in", "private"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "private" / "p.png").write_bytes(picture(9))
    (tmp_path / "data" / "in" / "a.png").write_bytes(picture(1))
    (tmp_path / "data" / "out").symlink_to(tmp_path / "private")
    (tmp_path / "data" / "same").symlink_to(tmp_path / "data" / "in")
    inside = ["in/a.png", "same/a.png", "in/../in/a.png", f"{tmp_path}/data/in/a.png"]
    outside = ["../private/p.png", "out/p.png", f"{tmp_path}/private/p.png"]
    (tmp_path / "data" / "list.txt").write_text("\n".join(inside + outside))
    source = open_source(tmp_path / "data" / "list.txt")
    assert [shade(source[number]) for number in range(4)] == [1] * 4
    for number in range(4, 7):
        with pytest.raises(SourceError, match=rf"^list.txt:{number + 1}: .*--allow-absolute"):
            source[number]
    allowed = open_source(tmp_path / "data" / "list.txt", access=Access(absolute=True))
    assert [shade(row) for row in allowed] == [1] * 4 + [9] * 3
    rooted = open_source(tmp_path / "data" / "list.txt", root=tmp_path)
    assert shade(rooted[6]) == 9
    table = write_parquet(tmp_path / "data" / "t.parquet", {"image": ["/etc/hosts", "in/a.png"]})
    with pytest.raises(SourceError, match=r"^t.parquet:0, column image: .* absolute path outside"):
        open_source(table)[0]
    assert shade(open_source(table)[1]) == 1
    (tmp_path / "data" / "d.jsonl").write_text(
        '{"image": {"patch": "../private/p.png", "start_num": 0, "size": 9}}\n'
    )
    with pytest.raises(SourceError, match=r"^d.jsonl:1: .*--allow-absolute"):
        open_source(tmp_path / "data" / "d.jsonl")[0]


@pytest.mark.parametrize("name", ["a\0b", "", "x" * 5000])
def test_names_that_are_no_paths(name: str) -> None:
    may_not(name, "no path there can be")
    may_not(name, "no path there can be", absolute=True)


def test_images_in_the_text_itself(tmp_path: Path) -> None:
    plain = base64.b64encode(picture(7)).decode()
    wrapped = "\n".join(plain[at : at + 20] for at in range(0, len(plain), 20))
    urlsafe = base64.urlsafe_b64encode(picture(7)).decode().rstrip("=")
    quoted = "data:image/png," + "".join(f"%{byte:02x}" for byte in picture(7))
    for text in (plain, wrapped, urlsafe, f"data:image/png;base64,{plain}", quoted):
        path = write_parquet(tmp_path / "t.parquet", {"image": [text]})
        assert shade(open_source(path)[0]) == 7
    for text, reason in (("data:image/png;base64,!!!", "base64"), (plain[:-9] + "~~~~", "base64")):
        path = write_parquet(tmp_path / "t.parquet", {"image": [text]})
        with pytest.raises(ImageError, match=f"^t.parquet:0: .*{reason}"):
            open_source(path)[0].open()


@pytest.mark.parametrize(
    ("host", "public"),
    [
        ("8.8.8.8", True), ("2606:4700::1111", True), ("::ffff:8.8.8.8", True),
        ("64:ff9b::808:808", True), ("127.0.0.1", False), ("10.0.0.1", False),
        ("172.16.0.1", False), ("192.168.1.1", False), ("169.254.169.254", False),
        ("100.64.0.1", False), ("0.0.0.0", False), ("224.0.0.1", False), ("255.255.255.255", False),
        ("240.0.0.1", False), ("::", False), ("::1", False), ("::ffff:127.0.0.1", False),
        ("::127.0.0.1", False), ("64:ff9b::7f00:1", False), ("2002:7f00:1::", False),
        ("fe80::1%eth0", False), ("fc00::1", False), ("ff02::1", False), ("x", False),
    ],
)  # fmt: skip
def test_addresses(host: str, public: bool) -> None:
    assert is_public(host) is public


class _Handler(BaseHTTPRequestHandler):
    """Answers of every kind, told by the path."""

    asked: ClassVar[list[str]] = []
    over: ClassVar[threading.Event] = threading.Event()

    def do_GET(self) -> None:
        self.asked.append(self.path)
        kind, _, rest = self.path[1:].partition("/")
        if kind == "to":
            self.send_response(302)
            self.send_header("Location", rest)
            self.end_headers()
        elif kind == "slow":
            self.send_response(200)
            self.end_headers()
            self.over.wait()
        elif kind == "long":
            self.send_response(200)
            self.end_headers()
            write_for_ever(self.wfile)
        elif kind == "packed":
            self.send_response(200)
            self.send_header("Content-Encoding", "gzip")
            self.end_headers()
        else:
            self.send_response(200 if kind == "a.png" else int(kind))
            data = picture(5)
            self.send_header("Content-Length", rest or str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    def log_message(self, format: str, *_: Any) -> None:
        pass


def write_for_ever(stream: Any) -> None:
    """Until the other side hangs up."""
    with contextlib.suppress(OSError):
        while True:
            stream.write(bytes(2**16))


@pytest.fixture
def server() -> Iterator[str]:
    pytest.importorskip("aiohttp", reason="URLs are read through aiohttp")
    pytest.importorskip("fsspec", reason="URLs are read through fsspec")
    _Handler.asked.clear()
    _Handler.over.clear()
    made = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{made.server_port}"
    _Handler.over.set()
    made.shutdown()
    made.server_close()
    thread.join()


def fetched(url: str, trusted: bool = False, **access: Any) -> Any:
    """The bytes, or the words of the error."""
    try:
        return ImageUrl(url, Access(**access), trusted).read()
    except ImageError as error:
        assert str(error).startswith(url.replace("\n", "\\n")[:90])
        return str(error)


def test_addresses_of_this_machine_are_refused_unless_allowed(server: str) -> None:
    port = server.rpartition(":")[2]
    hosts = ["127.0.0.1", "localhost", "2130706433", "0x7f.1", "127.1", "0.0.0.0", "[::1]"]
    for host in [*hosts, "[::ffff:127.0.0.1]"]:
        assert isinstance(fetched(f"http://{host}:{port}/a.png"), str), host
    assert "--allow-private-network" in fetched(f"{server}/a.png")
    assert _Handler.asked == []
    assert fetched(f"{server}/a.png", private_network=True) == picture(5)
    assert fetched(f"{server}/a.png", trusted=True) == picture(5)
    assert "--allow-private-network" in fetched(f"{server}/a.png")  # though it is connected


def test_a_name_that_resolves_otherwise_the_second_time(
    server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The address that is connected to is looked at, not one that was resolved before."""
    calls: list[str] = []
    real = socket.getaddrinfo

    def rebound(host: Any, *rest: Any, **options: Any) -> Any:
        if host != "rebound.example":
            return real(host, *rest, **options)
        calls.append(host)
        return real("127.0.0.1" if len(calls) > 1 else "192.0.2.1", *rest, **options)

    monkeypatch.setattr(socket, "getaddrinfo", rebound)
    url = f"http://rebound.example:{server.rpartition(':')[2]}/a.png"
    for _ in range(2):
        assert "--allow-private-network" in fetched(url)
    assert _Handler.asked == []


def test_proxies_of_the_environment_are_not_used(
    server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, server)
    assert isinstance(fetched("http://192.0.2.1/a.png"), str)
    assert _Handler.asked == []


def test_redirects(server: str) -> None:
    allowed = {"private_network": True}
    assert fetched(f"{server}/to//a.png", **allowed) == picture(5)
    assert "is not http(s)" in fetched(f"{server}/to/file:///etc/passwd", **allowed)
    assert "is not http(s)" in fetched(f"{server}/to/ftp://a/b", **allowed)
    assert "more than 5 times" in fetched(f"{server}/to/" + "/to/" * 8 + "/a.png", **allowed)
    # Of a URL that the user typed, what it leads to is not his.
    assert "--allow-private-network" in fetched(f"{server}/to/{server}/a.png", trusted=True)


def test_what_is_too_large_or_too_slow_is_left(server: str) -> None:
    limits = {"private_network": True, "limits": FetchLimits(size=10**6, total=0.5)}
    assert "more than 1,000,000 bytes" in fetched(f"{server}/long", **limits)
    assert "more than 1,000,000 bytes" in fetched(f"{server}/200/1000001", **limits)
    assert "took more than 0.5 s" in fetched(f"{server}/slow", **limits)
    assert "packed (gzip)" in fetched(f"{server}/packed", **limits)
    assert "does not exist" in fetched(f"{server}/404", **limits)
    assert "answers 503" in fetched(f"{server}/503", **limits)
    assert fetched(f"{server}/a.png", **limits) == picture(5)


def test_other_file_systems_have_a_limit_too() -> None:
    fsspec = pytest.importorskip("fsspec", reason="URLs are read through fsspec")
    fsspec.filesystem("memory").pipe("/viq-access/a.bin", bytes(11))
    access = {"protocols": ("memory",), "limits": FetchLimits(size=10)}
    assert "more than 10 bytes" in fetched("memory://viq-access/a.bin", **access)
    assert fetched("memory://viq-access/a.bin", protocols=("memory",)) == bytes(11)


def test_a_list_of_urls_and_a_typed_one(server: str, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text(f"{server}/a.png\n{server}/404\n")
    source = open_source(tmp_path / "list.txt", access=Access(private_network=True))
    assert shade(source[0]) == 5
    with pytest.raises(ImageError, match=r"^list.txt:2: http://.*/404: does not exist"):
        source[1].open()
    with pytest.raises(ImageError, match=r"^list.txt:1: .*--allow-private-network"):
        open_source(tmp_path / "list.txt")[0].open()
    assert shade(open_source(f"{server}/a.png")[0]) == 5
    with pytest.raises(SourceError, match="chains of file systems"):
        open_source("simplecache::memory://a.png")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_after_a_fork(server: str) -> None:
    """Workers of a DataLoader have no thread of fsspec's; they make their own."""
    allowed = {"private_network": True}
    assert fetched(f"{server}/a.png", **allowed) == picture(5)
    child = os.fork()
    if child == 0:
        os._exit(0 if fetched(f"{server}/a.png", **allowed) == picture(5) else 1)
    assert os.waitpid(child, 0)[1] == 0
