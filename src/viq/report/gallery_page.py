"""The gallery as one HTML file that asks for nothing outside itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image

from viq.report.gallery_common import captions, facts, intro, shown, unfit
from viq.report.page import Picture, render

_PAGE_BOX = (768, 512)  # px; larger than on the sheet, because fine screens show them smaller
_KINDS = ("original", "decoded from ViQ codes", "JPEG of equal bytes")
_AGAIN = 'tokenizer.decode(Codes.from_bytes(Path("NAME.viq").read_bytes()))[0].save("NAME.png")'


def make_page(summary: dict[str, Any], sections: Sequence[dict[str, Any]]) -> str:
    """The page of what `section` gives for each picture."""
    story, about = intro(summary)
    return render(
        "gallery.html", title=summary["title"], story=story, about=about,
        command=summary["command"], sections=sections, again=_AGAIN, failed=summary["failed"],
    )  # fmt: skip


def section(row: dict[str, Any], pictures: Sequence[Image.Image | None]) -> dict[str, Any]:
    """One picture's part of the page, as its template takes it."""
    parts = []
    kinds = zip(shown(row, pictures, _PAGE_BOX), _KINDS, captions(row), strict=True)
    for images, kind, (heading, lines) in kinds:
        part = {"kind": kind, "caption": [heading, *lines], "whole": None}
        if images is not None:
            whole, detail = map(Picture.of, images)
            enlarged = "sharp" if whole.width > row["width"] else ""
            part |= {"whole": whole, "detail": detail, "class": enlarged}
        parts.append(part)
    names = ("name", "credit", "width", "height")
    about = {"facts": facts(row), "unfit": unfit(row), "parts": parts}
    return {name: row[name] for name in names} | about
