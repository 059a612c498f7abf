"""Text on sheets: the font, what it can show, how wide it is, and where lines break."""

from __future__ import annotations

import unicodedata
from functools import cache

from PIL import ImageFont


@cache
def font(size: float) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Aileron, which comes inside Pillow: the picture looks the same on every machine."""
    return ImageFont.load_default(size)


def plain(text: str) -> str:
    """Only what that font has glyphs for: accents are dropped, other scripts become "?"."""
    kept = text.replace("…", "..").replace("×", "x").replace("–", "-")
    letters = unicodedata.normalize("NFKD", kept)
    return "".join(
        c if c.isascii() or c == "·" else "?" for c in letters if not unicodedata.combining(c)
    )


def width_of(text: str, size: float) -> float:
    """Of the plain text, in px."""
    return font(size).getlength(plain(text))


def wrapped(text: str, size: float, width: float) -> list[str]:
    """Lines of at most `width` px, broken between words where that is possible."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if width_of(longer, size) <= width:
            lines[-1] = longer
            continue
        if lines[-1]:
            lines.append("")
        for letter in word:  # a word longer than the line is cut where it has to be
            if lines[-1] and width_of(lines[-1] + letter, size) > width:
                lines.append("")
            lines[-1] += letter
    return lines
