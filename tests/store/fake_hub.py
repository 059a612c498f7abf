"""A hub of data sets on this machine: what `HfFileSystem` asks of huggingface.co, and no more."""

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit


class FakeHub(ThreadingHTTPServer):
    """Data sets by name, each with its files; every revision is the newest one."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos: dict[str, dict[str, bytes]] = {}
        self.commits, self.lock = 0, Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def hub(*names: str) -> Iterator[FakeHub]:
    """A server with these empty data sets."""
    with FakeHub() as server:
        server.repos.update({name: {} for name in names})
        thread = Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def _entry(path: str, content: bytes) -> dict[str, Any]:
    oid = hashlib.sha1(content, usedforsecurity=False).hexdigest()
    return {"type": "file", "path": path, "size": len(content), "oid": oid}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    @property
    def hub(self) -> FakeHub:
        assert isinstance(self.server, FakeHub)
        return self.server

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        kind, name, rest = self._named(unquote(parts.path))
        files = self.hub.repos.get(name)
        if files is None:
            self._json({"error": "not found"}, 404, {"X-Error-Code": "RepoNotFound"})
        elif kind == "resolve":
            self._file(files.get(rest))
        elif kind == "tree":
            self._tree(files, rest, dict(parse_qsl(parts.query)).get("recursive") in ("true", "1"))
        else:
            self._json({"id": name, "sha": f"{self.hub.commits:040x}", "private": False,
                        "tags": [], "downloads": 0, "likes": 0, "siblings": []})  # fmt: skip

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        kind, name, _ = self._named(unquote(urlsplit(self.path).path))
        files = self.hub.repos.get(name, {})
        if kind == "paths-info":
            wanted = [value for key, value in parse_qsl(body.decode()) if key == "paths"]
            self._json([_entry(path, files[path]) for path in wanted if path in files] + [
                {"type": "directory", "path": path, "oid": "0" * 40} for path in wanted
                if any(file.startswith(f"{path}/") for file in files)
            ])  # fmt: skip
        elif kind == "preupload":
            paths = [file["path"] for file in json.loads(body)["files"]]
            plain = {"uploadMode": "regular", "shouldIgnore": False, "oid": None}
            self._json({"files": [{"path": path, **plain} for path in paths]})
        elif kind == "commit":
            self._commit(files, [json.loads(line) for line in body.splitlines()])
        else:
            self._json({"errors": [], "warnings": []})

    def _commit(self, files: dict[str, bytes], lines: list[dict[str, Any]]) -> None:
        with self.hub.lock:
            for line in lines:
                value = line["value"]
                if line["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "deletedFile":
                    files.pop(value["path"], None)
            self.hub.commits += 1
            oid = f"{self.hub.commits:040x}"
        url = f"{self.hub.url}/datasets/o/n/commit/{oid}"
        self._json({"success": True, "commitOid": oid, "commitUrl": url})

    def _named(self, path: str) -> tuple[str, str, str]:
        """What is asked, of which data set, and the rest of the path."""
        words = path.removeprefix("/api").removeprefix("/datasets/").split("/", 4)
        kind = words[2] if len(words) > 2 else "info"
        if kind == "revision":
            return "info", "/".join(words[:2]), words[3]
        return kind, "/".join(words[:2]), words[4] if len(words) > 4 else ""

    def _tree(self, files: dict[str, bytes], below: str, deep: bool) -> None:
        head = f"{below}/" if below else ""
        found = {path: content for path, content in files.items() if path.startswith(head)}
        if below and not found:
            return self._json({"error": "not found"}, 404, {"X-Error-Code": "EntryNotFound"})
        entries, folders = list[dict[str, Any]](), set[str]()
        for path, content in found.items():
            inner = path[len(head) :].split("/")[:-1]
            folders |= {head + "/".join(inner[: n + 1]) for n in range(len(inner))}
            if deep or not inner:
                entries.append(_entry(path, content))
        entries += [{"type": "directory", "path": path, "oid": "0" * 40} for path in folders
                    if deep or "/" not in path[len(head):]]  # fmt: skip
        self._json(entries)

    def _file(self, content: bytes | None) -> None:
        if content is None:
            return self._json({"error": "not found"}, 404, {"X-Error-Code": "EntryNotFound"})
        first, code = 0, 200
        if wanted := self.headers.get("Range"):
            begin, _, end = wanted.removeprefix("bytes=").partition("-")
            if int(begin) >= len(content):
                return self._send(b"", 416, {})
            first, code = int(begin), 206
            whole, content = len(content), content[first : int(end) + 1 if end else None]
            facts = {"Content-Range": f"bytes {first}-{first + len(content) - 1}/{whole}"}
        else:
            facts = {}
        oid = hashlib.sha1(content, usedforsecurity=False).hexdigest()
        commit = f"{self.hub.commits:040x}"
        self._send(content, code, {"ETag": f'"{oid}"', "X-Repo-Commit": commit, **facts})

    def _json(self, value: Any, code: int = 200, headers: dict[str, str] | None = None) -> None:
        kind = {"Content-Type": "application/json"}
        self._send(json.dumps(value).encode(), code, kind | (headers or {}))

    def _send(self, content: bytes, code: int, headers: dict[str, str]) -> None:
        self.send_response(code)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Date", datetime.now(timezone.utc).strftime("%a, %d %b %Y %H:%M:%S GMT"))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
