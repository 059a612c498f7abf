"""Shared ground of the synthetic pictures: the result type, colours and fonts.

Colours are (red, green, blue) integers 0..255. Boxes are [x0, y0, x1, y1] in pixels,
x1 and y1 excluded.
"""

import os
import random
import sys
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

RGB = tuple[int, int, int]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

# Families that hold plain Latin text. Symbol, emoji and single-script fonts would draw empty boxes.
_FAMILIES = (
    "arial", "calibri", "cambria", "consola", "cour", "dejavusans", "dejavuserif", "freemono",
    "freesans", "freeserif", "georgia", "helvetica", "lato", "liberation", "menlo", "monaco",
    "notosans-", "notosansmono-", "notoserif-", "opensans", "roboto", "segoeui", "tahoma", "times",
    "trebuc", "ubuntu", "verdana",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class SyntheticImage:
    """A synthetic picture and exactly what is on it.

    `image` is RGB of exactly the asked size, `kind` what was asked for, `facts` plain JSON values.
    """

    image: Image.Image
    kind: str
    facts: dict[str, Any]


def _font_folders() -> list[Path]:
    home = Path.home()
    if sys.platform == "win32":
        return [Path(os.environ.get("WINDIR", "C:/Windows")) / "Fonts"]
    if sys.platform == "darwin":
        return [Path("/System/Library/Fonts"), Path("/Library/Fonts"), home / "Library/Fonts"]
    return [Path("/usr/share/fonts"), Path("/usr/local/share/fonts"), home / ".local/share/fonts"]


@lru_cache(maxsize=1)
def _system_fonts() -> tuple[Path, ...]:
    found = []
    for folder in _font_folders():
        for path in sorted(folder.rglob("*")) if folder.is_dir() else ():
            plain = path.suffix.lower() in (".ttf", ".otf", ".ttc")
            if plain and path.name.lower().startswith(_FAMILIES) and _opens(path):
                found.append(path)
    return tuple(found)


def _opens(path: Path) -> bool:
    try:
        ImageFont.truetype(path, 12)
    except (OSError, ImportError):
        return False
    return True


def fonts() -> list[Path | None]:
    """Fonts for `load_font` here: None (Pillow's own, always there), then system files."""
    return [None, *_system_fonts()]


@lru_cache(maxsize=512)
def load_font(path: Path | None, size: int) -> Font:
    """The font at `size` pixels; `path` None is the one inside Pillow, the same on each machine."""
    if path is not None:
        return ImageFont.truetype(path, size, layout_engine=ImageFont.Layout.BASIC)
    try:
        return ImageFont.load_default(size)
    except ImportError:  # Pillow built without FreeType: one small bitmap font, size ignored
        return ImageFont.load_default()


def pick_font(rng: random.Random, system_fonts: bool) -> Path | None:
    """One font for a whole picture."""
    return rng.choice(fonts()) if system_fonts else None


@lru_cache(maxsize=20_000)
def _glyph(path: Path | None, size: int, letter: str) -> tuple[int, NDArray[np.uint8]]:
    """Advance in px, and coverage with `_pad(size)` px left and right of it."""
    font = load_font(path, size)
    advance, pad = max(1, round(font.getlength(letter))), _pad(size)
    mask = Image.new("L", (advance + 2 * pad, line_height(path, size)))
    ImageDraw.Draw(mask).text((pad, 0), letter, font=font, fill=255)
    return advance, np.asarray(mask)


def _pad(size: int) -> int:
    return 1 + size // 6  # letters such as j or f reach outside their advance


@lru_cache(maxsize=512)
def line_height(path: Path | None, size: int) -> int:
    """Px from the top of the highest letter to the bottom of the lowest one."""
    font = load_font(path, size)
    return sum(font.getmetrics()) if isinstance(font, ImageFont.FreeTypeFont) else 12


def text_width(text: str, path: Path | None, size: int) -> int:
    """Width of `text` in px."""
    return sum(_glyph(path, size, letter)[0] for letter in text)


def write(
    image: Image.Image,
    xy: tuple[int, int],
    text: str,
    path: Path | None,
    size: int,
    ink: RGB,
    *,
    bold: bool = False,
    slant: float = 0.0,
) -> None:
    """Write one line with its top left corner at `xy` px; parts outside the image are lost.

    Letters are rendered once and then kept: rendering a line afresh takes Pillow 40 us a letter,
    some 20 times as long. The price is whole-pixel spacing without kerning, as on older screens.
    """
    pad, glyphs = _pad(size), [_glyph(path, size, letter) for letter in text]
    width = sum(advance for advance, _ in glyphs) + 2 * pad
    tall = line_height(path, size)
    extra = round(tall * slant) + size // 24 + 1
    line = np.zeros((tall, width + extra), np.uint8)
    x = 0
    for letter, (advance, mask) in zip(text, glyphs, strict=True):
        if letter != " ":
            part = line[:, x : x + mask.shape[1]]
            np.maximum(part, mask, out=part)
        x += advance
    if bold and size > 10:  # doubled with a small shift, which would blot smaller letters
        shift = max(1, round(size / 24))
        line[:, shift:] = np.maximum(line[:, shift:], line[:, :-shift])
    stamp = Image.fromarray(line)
    if slant:
        shear = (1, slant, -slant * size, 0, 1, 0)
        stamp = stamp.transform(
            stamp.size, Image.Transform.AFFINE, shear, Image.Resampling.BILINEAR
        )
    image.paste(ink, (xy[0] - pad, xy[1]), stamp)


def fit_text(text: str, path: Path | None, size: int, width: float) -> str:
    """`text`, shortened by words and then by letters until it is at most `width` pixels wide."""
    while text and text_width(text, path, size) > width:
        text = text.rsplit(" ", 1)[0] if " " in text else text[:-1]
    return text


def luminance(colour: RGB) -> float:
    """Perceived brightness, 0..255."""
    return 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]


def distance(a: RGB, b: RGB) -> float:
    """Euclidean distance between two colours, 0..442."""
    return sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) ** 0.5


def blend(a: RGB, b: RGB, share: float) -> RGB:
    """`a` moved towards `b` by `share` 0..1."""
    red, green, blue = (round(x + (y - x) * share) for x, y in zip(a, b, strict=True))
    return red, green, blue


def any_colour(rng: random.Random) -> RGB:
    """A colour drawn evenly from the whole cube."""
    return rng.randrange(256), rng.randrange(256), rng.randrange(256)


def ink_and_paper(rng: random.Random, dark_share: float = 0.3) -> tuple[RGB, RGB]:
    """A readable pair, at least 110 of 255 apart in brightness; `dark_share`: of dark paper."""
    tint = any_colour(rng)
    strength = rng.choice((0.0, 0.03, 0.06, 0.15, 0.35))
    if rng.random() < dark_share:
        paper, ink = blend((18, 18, 22), tint, strength), (238, 238, 238)
    else:
        paper, ink = blend((255, 255, 255), tint, strength), (17, 17, 17)
    tinted = blend(ink, any_colour(rng), rng.choice((0.0, 0.1, 0.3, 0.55)))
    return (tinted if abs(luminance(tinted) - luminance(paper)) >= 110 else ink), paper


def readable_on(paper: RGB) -> RGB:
    """Near-black or white, whichever stands out on `paper`."""
    return (20, 20, 20) if luminance(paper) > 140 else (250, 250, 250)


def canvas(size: tuple[int, int], colour: RGB) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """A flat RGB image of `size` (height, width) and its pen."""
    image = Image.new("RGB", (size[1], size[0]), colour)
    return image, ImageDraw.Draw(image)
