"""What all pages share: escaping, one policy, one font for sheets."""

import pytest
from jinja2 import UndefinedError
from PIL import Image

from viq.report.page import Picture, render
from viq.report.text import plain, width_of, wrapped

EVIL = "</style><script>\"'&{{ 7*7 }}"


def test_a_page_escapes_whatever_it_is_given() -> None:
    picture = Picture.of(Image.new("RGB", (3, 2), "red"))
    page = render(
        "preview.html", title=EVIL, about=EVIL, cells=[{"picture": picture, "lines": [EVIL, EVIL]}]
    )
    assert "<script" not in page and page.count("</style>") == 1
    assert page.count("&lt;script&gt;&#34;&#39;&amp;{{ 7*7 }}") == 6  # one is the picture's alt
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in page
    assert 'width="3" height="2"' in page


def test_a_value_that_is_missing_is_an_error() -> None:
    with pytest.raises(UndefinedError, match="about"):
        render("preview.html", title="t", cells=[])


def test_lines_break_between_words_and_within_those_that_are_too_long() -> None:
    words = "one two " + "w" * 60 + " three"
    lines = wrapped(words, 14, 120)
    assert "".join(lines).replace(" ", "") == words.replace(" ", "")
    assert lines[0] == "one two" and all(width_of(line, 14) <= 120 for line in lines)
    assert wrapped("", 14, 120) == [""]
    assert plain("Häggström… 2 × 2 – 日") == "Haggstrom.. 2 x 2 - ?"
