"""`viq compare` as a user meets it."""

from pathlib import Path

import pytest
import tiny
from cli_runs import one_line, run, run_json

from viq.data.synthetic.draw import draw


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for number in range(2):
        draw("gradient", (64, 96), number).image.save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny.tokenizer().save_pretrained(folder)
    return folder


def test_a_table_and_a_page(photos: Path, model: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    words = ("compare", photos, "--with", f"{model},jpeg", "--crop", 48, "--repeats", 1)
    result = run(*words, "-o", page)
    lines = result.stdout.splitlines()
    assert lines[1].split()[:3] == [str(model), "2", "48x48"] and lines[2].startswith("jpeg ")
    assert f"wrote {page}" in lines and "0.png" in page.read_text()
    run(*words, "-o", page)  # its own page is made again
    page.write_text("mine")
    assert "exists; give another name, or --overwrite" in one_line(run(*words, "-o", page, code=2))
    assert page.read_text() == "mine"


def test_what_fails_is_told_and_the_rest_is_done(photos: Path, model: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    methods = ["--with", f"viq:{model},jpeg", "--with", f"{tmp_path}/nobody"]
    words = ["compare", photos, tmp_path / "broken.png", *methods, "--repeats", 0]
    found = run_json(*words, code=3)
    assert [row["name"] for row in found["rows"]] == [f"viq:{model}", "jpeg"]
    assert [item["name"] for item in found["left_out"]] == [f"{tmp_path}/nobody"]
    assert found["failed"][0]["key"].endswith("broken.png")
    shown = run(*words, code=3)
    assert f"{tmp_path}/nobody is left out: " in shown.stdout
    assert "broken.png" in one_line(shown)


def test_what_cannot_run_is_one_line(photos: Path, tmp_path: Path) -> None:
    for words, told in (
        (["--bytes", "some"], "--bytes some: give equal or native"),
        (["--with", "jpeg"], "codecs get the bytes of a tokenizer, and there is none"),
        (["--transcript", "text"], "give --ocr, too"),
        (["-o", tmp_path / "page.png"], "give NAME.html"),
    ):
        assert told in one_line(run("compare", photos, *words, code=2))
    assert "nowhere" in one_line(run("compare", tmp_path / "nowhere", code=2))
