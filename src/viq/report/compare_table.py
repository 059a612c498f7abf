"""The table of a comparison of tokenizers and codecs, for a page and for a terminal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Row = dict[str, Any]

DISTANCES = {"lpips": "LPIPS", "efficientnet_distance": "EfficientNet distance"}


def headings_and_cells(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """The headings of the figures that a comparison has, and a line of cells for each row.

    The rows that are left out come last; why is in `left_out`.
    """
    rows = result["rows"]
    columns = _columns(result["settings"]["perceptual"])
    # What no row has is no column.
    shown = [(title, cell) for title, cell in columns if any(cell(row) != "-" for row in rows)]
    lines = [[row["name"], *(cell(row) for _, cell in shown)] for row in rows]
    missing = ["left out", *["-"] * (len(shown) - 1)]
    lines += [[item["name"], *missing] for item in result["left_out"]]
    return ["", *(title for title, _ in shown)], lines


def size_of(row: Row) -> str:
    """Width and height of what a method sees, as people write them."""
    size = row["size"]
    return f"{size[1]}x{size[0]}" if size else "several"


def left_out(result: dict[str, Any]) -> list[tuple[str, str]]:
    """Name and reason of each row that is left out."""
    items = result["left_out"]
    return [(each["name"], each["reason"].removeprefix(f"{each['name']}: ")) for each in items]


def notes(result: dict[str, Any]) -> list[str]:
    """What a reader of the table has to know beside the figures."""
    settings, rows = result["settings"], result["rows"]
    lines = [f"{row['name']}: {row['note']}" for row in rows if row["note"]]
    if settings["bytes_of"]:
        lines.append(
            f"Codecs get the bytes of {settings['bytes_of']}, picture by picture, plain, without "
            "entropy coding."
        )
    lines += [
        f"{row['name']}: {row['over']} of {row['images']} files take more, even at the lowest "
        "quality."
        for row in rows
        if row["over"]
    ]
    most = max(row["images"] for row in rows)
    lines += [
        f"{row['name']}: made {row['images']} of {most} pictures; its means are of those alone."
        for row in rows
        if row["images"] < most
    ]
    text = result["text"]
    if text:
        lines.append(_text_note(text))
    return lines + [_sentence(line) for line in settings["missing"]]


def _text_note(text: dict[str, Any]) -> str:
    if text["against"] == "reading":
        return (
            "Text: characters that an OCR reads as it reads them on the original that the method "
            "sees."
        )
    return (
        "Text: characters that an OCR reads as the transcript has them; of the originals "
        f"{text['original']:.1%}."
    )


def _columns(distance: str | None) -> list[tuple[str, Callable[[Row], str]]]:
    named = DISTANCES.get(distance or "", "")
    return [
        ("pictures", lambda row: f"{row['images']:,}"),
        ("size, px", size_of),
        ("bits a pixel", _number("bpp", 3)),
        ("entropy coded", _number("bpp_entropy", 3)),
        ("PSNR, dB", _number("psnr", 2)),
        ("SSIM", _number("ssim", 3)),
        ("MS-SSIM", _number("ms_ssim", 3)),
        (named, _number(distance or "", 3)),
        ("EfficientNet-Frechet", _number("efficientnet_frechet", 2)),
        ("blockiness, 16 px", _number("blockiness", 2)),
        ("text", _share("text_accuracy")),
        ("encode, ms", _number("encode_s", 1, 1000)),
        ("decode, ms", _number("decode_s", 1, 1000)),
        ("memory, MiB", _number("peak_mib", 0)),
    ]


def _number(key: str, digits: int, scale: float = 1) -> Callable[[Row], str]:
    return lambda row: "-" if row.get(key) is None else f"{scale * row[key]:,.{digits}f}"


def _share(key: str) -> Callable[[Row], str]:
    return lambda row: "-" if row.get(key) is None else f"{row[key]:.1%}"


def _sentence(line: str) -> str:
    return line[:1].upper() + line[1:]
