"""The documentation: links lead somewhere, and nothing that the package offers is left out."""

import subprocess
import sys
from pathlib import Path

import command_pages
import docs_figures
import docs_links
import docs_pages
import make_docs
import pytest

import viq

ROOT = Path(viq.__file__).parent.parent.parent
if not (ROOT / "docs/index.md").is_file():
    pytest.skip("needs the source tree", allow_module_level=True)


def test_links_of_markdown_files_lead_to_files_and_headings() -> None:
    files = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("src/**/*.md")]
    assert len(files) > 25
    assert docs_links.markdown_faults(files) == []


def test_links_of_notebooks_lead_to_pages(tmp_path: Path) -> None:
    """A link to nowhere would end the program here, as it would `make docs`."""
    where = make_docs.places()
    books = list((ROOT / "examples").glob("*.ipynb"))
    pages = [docs_pages.notebook_page(book, tmp_path, where) for book in books]
    assert all("](../tutorials/" in page for page in pages) and len(pages) >= 3


def test_a_link_to_nowhere_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# One `two`: three\n\n# Twice\n\n# Twice\n\n[a](#one-two-three) [b](#twice-1)\n"
    )
    assert docs_links.markdown_faults([page]) == []
    page.write_text("[a](gone.md) ![b](gone.png) [c](page.md#gone) [d](https://example.org/)\n")
    told = docs_links.markdown_faults([page])
    assert [line.split(": ")[1] for line in told] == ["gone.md", "gone.png", "page.md#gone"]


def test_every_page_is_in_the_contents() -> None:
    """And in a section of its own, whose links are the sidebar of the site."""
    where = make_docs.places()
    listed = docs_pages.contents(ROOT / "docs/index.md", where)
    entries = [place for entries in listed.values() for _, place in entries]
    wanted = {where[path] for path in ROOT.glob("docs/**/*.md")} - {"contents.md"}
    wanted |= {where[path] for path in ROOT.glob("src/viq/bundled/*/README.md")}
    assert wanted <= set(entries), f"add to docs/index.md: {wanted - set(entries)}"
    assert len(entries) == len(set(entries))


def test_charts_show_the_tables_as_they_are() -> None:
    """After a change of a table, or of a chart: python scripts/docs_figures.py."""
    made = docs_figures.figures()
    files = {path.stem: path.read_text() for path in docs_figures.FOLDER.glob("*.svg")}
    assert set(files) == set(made)
    old = [name for name in made if files[name] != made[name]]
    assert not old, f"{old}: run python scripts/docs_figures.py"


def test_a_chart_is_read_from_the_table_below_its_heading() -> None:
    rows = docs_figures.table("results.md", "Reading")
    assert list(rows[0]) == ["", "in order", "at random"] and len(rows) > 4
    assert docs_figures.number("**54.3**") == (54.3, 0)
    assert docs_figures.number("95.9 ± 3.8") == (95.9, 3.8)
    assert docs_figures.number("36,150 (1.5)") == (36150, 0)
    with pytest.raises(SystemExit, match="no heading"):
        docs_figures.table("results.md", "Weather")


def test_every_command_and_option_has_its_place() -> None:
    pages = command_pages.command_pages()
    assert "## viq store lint" in pages["store"] and "--psnr" in pages["encode"]
    assert "`--out" in pages["demo"].replace("`-o, --out", "`--out")
    assert "draw" not in pages  # an old name, hidden
    assert set(pages) == set(command_pages.first_sentences())


def test_every_public_name_has_its_place() -> None:
    assert set(docs_pages.MODULES["viq"]) == set(viq.__all__)
    pages = docs_pages.api_pages()
    text = (ROOT / "docs/api.md").read_text()
    for name in viq.__all__:
        assert f":: {name}\n" in pages["reference/viq.md"] and f"`{name}`" in text
    assert all(f"`{module}`" in text for module in docs_pages.MODULES if module.count(".") < 3)


@pytest.mark.parametrize(
    "planted",
    [
        '<script src="https://example.org/a.js"></script>',
        '<img src="//example.org/a.png">',
        '<link rel="stylesheet" href="http://example.org/a.css">',
        '<link rel="preload" href="https://example.org/a.woff2">',
        '<style>@font-face { src: url("https://example.org/a.woff2") }</style>',
        "<style>@import 'https://example.org/a.css';</style>",
        '<p style="background: url(https://example.org/a.png)">',
        '<iframe src="https://example.org/"></iframe>',
    ],
)
def test_a_page_that_asks_for_things_elsewhere_is_found(tmp_path: Path, planted: str) -> None:
    page = tmp_path / "index.html"
    page.write_text('<a href="https://example.org/">a link is no request</a><img src="a.png">')
    assert docs_links.requests_elsewhere(tmp_path) == []
    page.write_text(planted)
    assert len(docs_links.requests_elsewhere(tmp_path)) == 1


def test_links_of_pages_are_followed(tmp_path: Path) -> None:
    (tmp_path / "b.html").write_text('<h1 id="here">')
    page = tmp_path / "a.html"
    page.write_text('<a href="b.html#here">x</a><a href="#">top</a><a href="mailto:a@b.c">y</a>')
    assert docs_links.broken_links(tmp_path) == []
    page.write_text('<a href="b.html#there">x</a><a href="c.html">z</a>')
    assert len(docs_links.broken_links(tmp_path)) == 2


def test_links_are_mended_outside_of_code_alone(tmp_path: Path) -> None:
    for name in ("docs/sub/page.md", "docs/other.md", "src/code.py", "CHANGELOG.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    page = tmp_path / "docs/sub/page.md"
    page.write_text(
        "[o](../other.md#x) [c](../../CHANGELOG.md) [s](../../src/code.py)\n"
        "```python\nf[a](../other.md)\n```\n"
    )
    where = {
        page: "sub/page.md",
        tmp_path / "docs/other.md": "other.md",
        tmp_path / "CHANGELOG.md": "project/changelog.md",
    }
    assert docs_pages.relinked(page.read_text(), page, where) == (
        "[o](../other.md#x) [c](../project/changelog.md) s\n```python\nf[a](../other.md)\n```\n"
    )


def test_a_folder_of_somebody_else_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("kept")
    script = ROOT / "scripts/make_docs.py"
    done = subprocess.run([sys.executable, script, tmp_path], capture_output=True, text=True)
    assert done.returncode == 1 and "is no site of ours" in done.stderr
    assert (tmp_path / "mine.txt").read_text() == "kept"
