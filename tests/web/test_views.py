"""Conversations, runs, drawing, and the command itself."""

import html
import json
import re
import shutil
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner
from web_client import Visitor, opened, visitor
from web_stores import HOSTILE

from viq.cli import app as cli
from viq.core.files import DEFAULT_CHAT
from viq.jobs.info import purpose_of
from viq.models.tokenizer.tokenizer import VisualTokenizer
from viq.report.samples import PICTURES
from viq.web.app import make_app
from viq.web.config import Limits, WebConfig
from viq.web.draw_routes import _so_far
from viq.web.state import short_names

HTML = {"Accept": "text/html"}


@pytest.fixture
def shapes(client: Visitor) -> str:
    return client.bring((PICTURES / "shapes.png").read_bytes(), "shapes.png")


def test_a_conversation(client: Visitor, shapes: str) -> None:
    pytest.importorskip("transformers")
    page = client.get(f"/ask/{shapes}", headers=HTML).text
    assert f"{DEFAULT_CHAT}: {purpose_of(DEFAULT_CHAT)}." in html.unescape(page)
    events = client.events(f"/ask/{shapes}", data={"question": "What color is the triangle?"})
    answer = events[-1]["done"]["answer"]
    assert answer and "".join(e.get("text", "") for e in events).strip() == answer
    client.done(f"/ask/{shapes}", data={"question": HOSTILE})
    page = client.get(f"/ask/{shapes}", headers=HTML).text
    said = re.findall(r'<li class="(asked|said)">', page)
    assert said[:2] == ["asked", "said"] and answer in html.unescape(page)
    assert HOSTILE not in page and "&lt;script&gt;alert(1)" in page
    assert client.submit(f"/ask/{shapes}/new").status_code == 303
    assert "What color is" not in client.get(f"/ask/{shapes}", headers=HTML).text


def test_answers_are_those_of_viq_chat(client: Visitor, shapes: str) -> None:
    pytest.importorskip("transformers")
    from viq.mllm.chat import ask
    from viq.mllm.loading import load_mllm

    model, processor = load_mllm(DEFAULT_CHAT)
    for question in ("What is this?", "How many shapes are there?"):
        client.submit(f"/ask/{shapes}/new")
        options = {"do_sample": False, "max_new_tokens": 256}
        wanted = ask(model, processor, [PICTURES / "shapes.png"], question, **options)
        assert client.done(f"/ask/{shapes}", data={"question": question})["answer"] == wanted


def test_conversations_are_bounded_and_of_one_visitor(
    app: Any, client: Visitor, shapes: str
) -> None:
    assert client.submit(f"/ask/{shapes}", data={"question": "  "}).status_code == 400
    assert client.submit(f"/ask/{shapes}", data={"question": "x" * 2001}).status_code == 400
    assert client.submit("/ask/none", data={"question": "x"}).status_code == 404
    with visitor(app) as other:
        other.done(f"/ask/{shapes}", data={"question": "What is this?"})
        assert "What is this?</p>" in other.get(f"/ask/{shapes}", headers=HTML).text
    assert "What is this?</p>" not in client.get(f"/ask/{shapes}", headers=HTML).text


def test_a_conversation_ends(tokenizer: VisualTokenizer) -> None:
    app = make_app(WebConfig(limits=Limits(turns=1)), tokenizer)
    with visitor(app) as client:
        name = client.bring((PICTURES / "shapes.png").read_bytes())
        client.done(f"/ask/{name}", data={"question": "What is this?"})
        answer = client.submit(f"/ask/{name}", data={"question": "And this?"})
        assert "up to 1 questions" in answer.json()["error"]


def test_a_run(client: Visitor, debug_run: Path) -> None:
    page = client.get("/runs/0", headers=HTML).text
    assert "3-decoder" in page and page.count("<svg") > 5 and "Finished." in page
    grids = re.findall(r'src="(/runs/0/grid/\d+\?step=\d+)"', page)
    assert grids and opened(client.get(grids[0]).content).width > 10
    part = client.get("/runs/0/part")
    again = client.get("/runs/0/part", headers={"If-None-Match": part.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    for address in ("/runs/1", "/runs/0/grid/99", "/runs/x", "/runs/-1"):
        assert client.get(address).status_code in (404, 422)


def test_a_run_that_trains_is_read_again(
    debug_run: Path, tokenizer: VisualTokenizer, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(debug_run, folder)
    shutil.rmtree(folder / "3-decoder" / "model")
    with visitor(make_app(WebConfig(runs=(folder,)), tokenizer)) as client:
        page = client.get("/runs/0", headers=HTML).text
        assert 'data-live="yes"' in page
        tag = client.get("/runs/0/part").headers["etag"]
        log = folder / "3-decoder" / "log.jsonl"
        line = json.loads(log.read_text().splitlines()[-1])
        line["step"] += 1
        with open(log, "a") as file:
            file.write(json.dumps(line) + "\n")
        assert client.get("/runs/0/part", headers={"If-None-Match": tag}).status_code == 200
        shutil.rmtree(folder)
        answer = client.get("/runs/0", headers=HTML)
        assert answer.status_code == 400 and "no such folder" in answer.text


def test_views_that_are_not_served(tokenizer: VisualTokenizer) -> None:
    with visitor(make_app(WebConfig(chat=None), tokenizer)) as client:
        page = client.get("/", headers=HTML).text
        for name in ("Ask", "Draw", "Store", "Runs"):
            assert f">{name}</a>" not in page
        for address in ("/ask", "/draw", "/store/0", "/runs/0"):
            assert client.get(address).status_code == 404


def test_the_command_refuses_in_one_line(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        cases = [
            (["--host", "0.0.0.0"], "give --token"),
            (["--token", "short"], "16 or more"),
            (["--port", port], f"--port {port}"),
            (["--store", str(tmp_path / "none"), "--port", "0"], "does not exist"),
            (["--model", str(tmp_path / "none"), "--port", "0"], "none"),
        ]
        for arguments, words in cases:
            done = CliRunner().invoke(cli, ["web", *arguments])
            assert done.exit_code == 2, (arguments, done.output)
            assert words in done.stderr and done.stderr.count("\n") == 1, done.stderr


def test_the_command_serves_until_it_is_interrupted() -> None:
    command = [sys.executable, "-m", "viq", "web", "--port", "0", "--chat", "none"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as run:
        assert run.stdout and run.stderr
        line = run.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:\d+", line)
        assert found, line + run.stderr.read()
        with urllib.request.urlopen(found[0], timeout=30) as answer:
            assert b"What codes keep" in answer.read()
        run.terminate()
        assert "Traceback" not in run.stderr.read()
        run.wait(30)


def test_a_sentence_is_drawn(tokenizer: VisualTokenizer, tmp_path: Path) -> None:
    """By a model of seconds, from viq train generation."""
    pytest.importorskip("transformers")
    trained = CliRunner().invoke(cli, ["train", "generation", "debug", "--out", str(tmp_path)])
    assert trained.exit_code == 0, trained.output
    with visitor(make_app(WebConfig(draw=str(tmp_path)), tokenizer)) as client:
        assert client.get("/draw", headers=HTML).status_code == 200
        asked = {"sentence": "a red circle", "seed": "3"}
        first = client.done("/draw", data=asked)["picture"]
        page = client.get(f"/picture/{first}", headers=HTML).text
        assert "Drawn from this sentence, seed 3." in page and "a red circle" in page
        for data in ({"sentence": ""}, {"sentence": "x" * 301}, {**asked, "seed": "-1"}):
            refused = client.submit("/draw", data=data)
            assert refused.status_code == 400 and "\n" not in refused.json()["error"]


def test_a_picture_that_is_not_whole_yet_is_blank_where_nothing_is_written(
    tokenizer: VisualTokenizer,
) -> None:
    codes = tokenizer.encode(PICTURES / "shapes.png")[0]
    rows, cols = codes.ids.shape[:2]
    written = 2 * cols + 3
    image = _so_far(tokenizer, codes.ids.reshape(rows * cols, -1)[:written], (rows, cols))
    alpha = np.asarray(image)[..., 3]
    assert [int((alpha[row * 16 + 8] > 0).sum()) for row in range(4)] == [
        cols * 16, cols * 16, 3 * 16, 0
    ]  # fmt: skip
    whole = np.asarray(tokenizer.decode(codes)[0], int)
    apart = np.abs(np.asarray(image, int)[..., :3] - whole)[: 16 + 8]
    assert apart.mean() < 2  # but where patches meet that are still to come


def test_places_of_one_name_are_told_apart() -> None:
    places = [Path("a/codes"), Path("b/codes"), "s3://bucket/b/codes", Path("/x/run"), "s3://one"]
    assert short_names(places) == ["a/codes", "b/codes", "bucket/b/codes", "run", "one"]
    assert short_names([Path("codes"), Path("codes")]) == ["codes", "codes"]
    assert short_names([Path("codes"), Path("a/codes")]) == ["codes", "a/codes"]


def test_forms_wait_for_the_script(client: Visitor, shapes: str) -> None:
    """Before it listens, a browser would send them without the CSRF token."""
    for address in ("/", "/ask", f"/ask/{shapes}", f"/picture/{shapes}", "/store/0",
                    "/store/0/check"):  # fmt: skip
        page = client.get(address, headers=HTML).text
        forms = re.findall(r"<form[^>]*\bdata-work\b[^>]*>\s*(<\w+[^>]*>)", page)
        assert forms and set(forms) == {"<fieldset disabled>"}, address
