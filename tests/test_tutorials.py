"""The tutorials work, from the first line to the last, and print what they say."""

from pathlib import Path

import pytest
from tutorials import blocks, matches, run

import viq

DOCS = Path(viq.__file__).parent.parent.parent / "docs"
PAGES = sorted((DOCS / "tutorials").glob("*.md"))
if not PAGES:
    pytest.skip("needs the source tree", allow_module_level=True)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_tutorial_runs(page: Path, tmp_path: Path) -> None:
    text = page.read_text()
    assert sum(block.runs for block in blocks(text)) >= 3
    run(text, tmp_path)


@pytest.mark.parametrize(
    ("expected", "printed", "same"),
    [
        ("6 images, 1.27 s", "7 images, 10.5 s", True),
        ("6 images", "6 pictures", False),
        ("a\n...\nz", "a\nb 1\nc\nz", True),
        ("a\n...\nz", "a\nb\nc", False),
        ("a", "a\nb", False),
        ("loss   0.5", "  loss 12", True),
        ("wrote 6 files, ...", "wrote 5 files, quickly, too", True),
        ("viq-tiny", "viq-large", False),
        ("", "", True),
        ("", "a", False),
    ],
)
def test_output_is_compared_but_for_numbers(expected: str, printed: str, same: bool) -> None:
    assert matches(expected, printed) is same


def test_a_block_that_fails_or_prints_something_else_is_noticed(tmp_path: Path) -> None:
    passed = (
        "```python\nx = 2\n```\n```bash\necho 1\n```\n```python\nprint(x)\n```\n```text\n2\n```\n"
    )
    run(passed, tmp_path)
    for broken in (
        "```bash\nfalse\ntrue\n```\n",
        "```python\n1 / 0\n```\n",
        "```bash\necho hello\n```\n```text\ngoodbye\n```\n",
    ):
        with pytest.raises(AssertionError):
            run(broken, tmp_path)
    run("<!-- not run: slow -->\n```bash\nfalse\n```\n```text\nany\n```\n", tmp_path)
