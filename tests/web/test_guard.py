"""Who may ask for what: names, tokens, cookies, CSRF, sizes, paths."""

import http.client
import re
import urllib.parse
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from starlette.routing import Route
from web_client import HOST, Visitor, visitor

from viq.core.errors import ViqError
from viq.models.tokenizer.tokenizer import VisualTokenizer
from viq.web.app import make_app
from viq.web.config import WebConfig
from viq.web.guard import COOKIE

TOKEN = "correct-horse-battery-staple"
HTML = {"Accept": "text/html"}


@pytest.fixture(scope="module")
def locked(tokenizer: VisualTokenizer) -> Any:
    return make_app(WebConfig(token=TOKEN, host="0.0.0.0"), tokenizer)


class Markup(HTMLParser):
    """Tags of a page, and what of it the policy would forbid or lead elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.tags, self.bad = list[str](), list[str]()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        named = dict(attrs)
        if tag in ("style", "iframe", "object", "base") or (tag == "script" and "src" not in named):
            self.bad.append(tag)
        for name, value in attrs:
            leads = name in ("src", "href", "action") and not (value or "").startswith(("/", "#"))
            if name.startswith("on") or name == "style" or leads or (value or "")[:2] == "//":
                self.bad.append(f"{tag} {name}={value}")


def addresses(app: Any, method: str) -> Iterator[str]:
    """One address of every route."""
    for route in _routes(app.routes):
        if method in (route.methods or ()):
            yield re.sub(r"\{\w+(:\w+)?\}", "0", route.path)


def _routes(routes: list[Any]) -> Iterator[Route]:
    for route in routes:
        if isinstance(route, Route):
            yield route
        elif hasattr(route, "original_router"):
            yield from _routes(route.original_router.routes)


def test_all_routes_are_looked_at(app: Any) -> None:
    assert {"/", "/login", "/picture/0", "/store/0", "/runs/0"} <= set(addresses(app, "GET"))
    assert {"/picture", "/login", "/ask/0", "/work/0/stop"} <= set(addresses(app, "POST"))


def test_another_name_is_not_answered(app: Any, client: Visitor) -> None:
    for address in addresses(app, "GET"):
        for host in ("evil.example", "evil.example:7860", "127.0.0.1.evil.example", "", "10.0.0.1"):
            answer = client.get(address, headers={"Host": host})
            assert answer.status_code == 421, (address, host)
    for host in ("localhost:7860", "127.0.0.1", "[::1]:7860"):
        assert client.get("/", headers={"Host": host}).status_code == 200


def test_nothing_changes_without_the_csrf_token_or_from_elsewhere(
    app: Any, client: Visitor
) -> None:
    with visitor(app) as other:
        for address in addresses(app, "POST"):
            for headers in (
                {},
                {"X-CSRF-Token": "0" * 64},
                {"X-CSRF-Token": other.csrf},
                {"X-CSRF-Token": client.csrf, "Origin": "http://evil.example"},
                {"X-CSRF-Token": client.csrf, "Origin": "null"},
            ):
                answer = client.post(address, headers=headers)
                assert answer.status_code == 403, (address, headers)
            assert client.post(f"{address}?csrf=").status_code == 403
    fine = {"X-CSRF-Token": client.csrf, "Origin": HOST}
    assert client.post("/work/0/stop", headers=fine).status_code == 404


def test_nothing_is_seen_without_the_token(locked: Any) -> None:
    with visitor(locked) as client:
        for address in addresses(locked, "GET"):
            if address == "/login":
                continue
            assert client.get(address).status_code == 401, address
            shown = client.get(address, headers=HTML)
            assert (shown.status_code, shown.headers["location"]) == (303, "/login")
        for address in addresses(locked, "POST"):
            if address != "/login":
                assert client.submit(address).status_code == 401, address
        assert client.get("/static/../config.py").status_code in (401, 404)


def test_the_token_opens(locked: Any) -> None:
    with visitor(locked) as client:
        for wrong in ("", "x", TOKEN[:-1], TOKEN + "x", "é" * 20):
            assert client.submit("/login", data={"token": wrong}).status_code == 403
            assert client.get("/").status_code == 401
        right = client.submit("/login", data={"token": TOKEN})
        assert right.status_code == 303
        cookie = right.headers["set-cookie"]
        assert "HttpOnly" in cookie and "SameSite=Strict" in cookie and TOKEN not in cookie
        assert client.get("/").status_code == 200
    with visitor(locked) as client:
        bearer = {"Authorization": f"Bearer {TOKEN}"}
        assert client.get("/", headers=bearer).status_code == 200
        assert client.get("/", headers={"Authorization": "Bearer x"}).status_code == 401


def test_cookies_of_others_do_not_open(locked: Any, app: Any) -> None:
    with visitor(locked) as client:
        name, _, rest = client.cookies[COOKIE].partition(".")
        mac = rest.partition(".")[2]
        forged = (
            f"{name}.1.{mac}",
            f"{name}.1.",
            "..",
            "a" * 5000,
            f"{name}.1.{'0' * 64}",
            "é.1.x",
        )
    with visitor(app) as client:  # signed with the key of another server
        forged = (*forged, client.cookies[COOKIE])
    for value in forged:
        with visitor(locked) as client:
            client.cookies.clear()
            cookie = {"Cookie": f"{COOKIE}={urllib.parse.quote(value)}"}
            assert client.get("/", headers=cookie).status_code == 401, value


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.2", "example.org", "::"])
def test_other_addresses_need_a_token(host: str) -> None:
    with pytest.raises(ViqError, match="--token"):
        WebConfig(host=host)
    assert WebConfig(host=host, token=TOKEN).host == host


@pytest.mark.parametrize("token", ["", "short", "with a space in it", "schlüssel-schlüssel"])
def test_tokens_that_could_be_guessed_are_refused(token: str) -> None:
    with pytest.raises(ViqError, match="16 or more"):
        WebConfig(token=token)


def test_bodies_end_at_a_limit(client: Visitor) -> None:
    large = b"x" * (2**20 + 1)
    assert client.submit("/picture", files={"file": ("a.png", large)}).status_code == 413

    def pieces() -> Iterator[bytes]:  # without a Content-Length
        yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
        for _ in range(20):
            yield b"x" * 2**16

    kind = {"Content-Type": "multipart/form-data; boundary=b", "X-CSRF-Token": client.csrf}
    assert client.post("/picture", content=pieces(), headers=kind).status_code == 413
    many = {f"f{i}": ("a", b"x") for i in range(5)}
    assert client.submit("/picture", files=many).status_code == 400
    assert client.submit("/picture", data={"sample": "x" * 9999}).status_code == 400
    for length in ("-1", "1e9", "9" * 30):
        headers = {"X-CSRF-Token": client.csrf, "Content-Length": length}
        assert client.post("/picture", headers=headers).status_code == 413


def test_paths_lead_nowhere_else(client: Visitor, store: Path) -> None:
    secret = (store / "_index.json").read_text()[:20]
    ups = ["%2e%2e", "..%2f..%2f", "....//", "%2e%2e%2f%2e%2e", "..\\..", "%00", "~"]
    heads = ["/static", "/sample", "/picture", "/work", "/store", "/store/0/found", "/runs",
             "/runs/0/grid", "/ask", "/store/0/thumb"]  # fmt: skip
    for head in heads:
        for up in ups:
            for tail in ("", "/app.py", "/etc/passwd", "/_index.json"):
                answer = client.get(f"{head}/{up}{tail}")
                assert answer.status_code in (303, 404, 405, 422), (head, up, tail)
                assert secret not in answer.text and "root:" not in answer.text
                assert "def make_app" not in answer.text


def test_all_answers_have_the_policy_and_pages_no_inline_code(client: Visitor, app: Any) -> None:
    name = client.done("/picture", data={"sample": "shapes"})["picture"]
    pages = ["/", "/login", f"/picture/{name}", f"/ask/{name}", "/ask", "/store/0", "/runs/0",
             "/store/0/check", "/nowhere", "/store/99"]  # fmt: skip
    for address in [*pages, "/static/app.js", "/static/app.css", "/sample/chelsea"]:
        answer = client.get(address, headers=HTML)
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "*" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        if address in pages:
            seen = Markup()
            seen.feed(answer.text)
            assert seen.tags and not seen.bad, (address, seen.bad)
            assert "no-store" in answer.headers["cache-control"]


def test_paths_as_no_browser_sends_them(served: str) -> None:
    host = served.removeprefix("http://")
    for path in ("/static/../app.py", "/static/../../core/errors.py", "//etc/passwd",
                 "/static//etc/passwd", "/static/..%5c..%5capp.py", "/static/%2e%2e/app.py",
                 "/store/0/../../static/../app.py", "/%2e%2e/%2e%2e/etc/passwd"):  # fmt: skip
        connection = http.client.HTTPConnection(host)
        connection.request("GET", path)
        answer = connection.getresponse()
        assert answer.status in (400, 404), path
        assert b"def " not in answer.read()
        connection.close()


def test_scripts_and_styles_ask_for_nothing_elsewhere() -> None:
    folder = Path(make_app.__code__.co_filename).parent
    for file in [*folder.glob("static/*"), *folder.glob("templates/*")]:
        text = file.read_text().replace("http://www.w3.org/2000/svg", "")
        assert "http" not in text and "//cdn" not in text and "@import" not in text, file


def test_work_of_others_is_not_told(app: Any, client: Visitor) -> None:
    begun = client.submit("/picture", data={"sample": "shapes"}).json()["work"]
    with visitor(app) as other:
        assert other.get(begun).status_code == 404
        assert other.submit(f"{begun}/stop").status_code == 404
    assert '"done"' in client.get(begun).text
