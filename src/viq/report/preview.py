"""A sheet of decoded rows, to look at what is in a store: `viq store preview`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from viq.core.codes import Codes
from viq.core.files import write_atomically, written_aside
from viq.core.remote import Location
from viq.core.types import ViqError
from viq.core.untrusted import printable
from viq.models.tokenizer.tokenizer import VisualTokenizer
from viq.report.page import Picture, render
from viq.report.text import font
from viq.store.folder import Store
from viq.store.rows import CodeRow

_BOX, _CAPTION, _GAP, _ACROSS = 224, 18, 12, 6  # px of a cell of the PNG, and cells in a row


def preview(
    tokenizer: VisualTokenizer,
    path: Location,
    out: Path,
    *,
    count: int = 24,
    seed: int | None = None,
) -> dict[str, Any]:
    """Decode some rows of a store into one picture or page.

    Args:
        out: NAME.png, or NAME.html, which also shows the extras.
        count: rows, evenly spread over the store.
        seed: draws the rows instead.

    Raises:
        ViqError: made by another tokenizer, no images, or `out` is neither PNG nor HTML.
    """
    if out.suffix not in (".png", ".html"):
        raise ViqError(f"-o {out}: give NAME.png or NAME.html")
    store = Store(path)
    tokenizer.require(store.info.fingerprint)
    places = np.linspace(0, len(store) - 1, min(count, len(store))).round().astype(int)
    if seed is not None and len(store):
        draw = np.random.default_rng(seed)
        places = np.sort(draw.choice(len(store), min(count, len(store)), replace=False))
    cells = [
        (row, tokenizer.decode(row.codes)[0])
        for row in _rows(store, set(places.tolist()))
        if row.codes is not None
    ]
    if not cells:
        raise ViqError(f"{path}: holds no images")
    title = f"{Path(path).name}: {len(cells)} of {len(store)} rows"
    about = f"{store.info.model} {store.info.fingerprint}"
    if out.suffix == ".png":
        with written_aside(out) as aside:
            _sheet(cells).save(aside, format="PNG")
    else:
        write_atomically(out, _page(title, about, cells).encode())
    return {"output": str(out), "shown": len(cells), "rows": len(store)}


def _rows(store: Store, places: set[int]) -> list[CodeRow]:
    found, first = [], 0
    for shard in store.shards:
        if any(first <= place < first + shard.rows for place in places):
            rows = enumerate(store.reader(shard).rows(), first)
            found += [row for place, row in rows if place in places]
        first += shard.rows
    return found


def _sheet(cells: list[tuple[CodeRow, Image.Image]]) -> Image.Image:
    across = min(_ACROSS, len(cells))
    step = _BOX + _GAP
    down = -(-len(cells) // across)
    size = (across * step + _GAP, down * (step + _CAPTION) + _GAP)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for place, (row, image) in enumerate(cells):
        left = _GAP + place % across * step
        top = _GAP + place // across * (step + _CAPTION)
        small = image.copy()
        small.thumbnail((_BOX, _BOX))
        sheet.paste(small, (left + (_BOX - small.width) // 2, top + (_BOX - small.height) // 2))
        draw.text((left, top + _BOX + 2), _short(row.key), fill="#555555", font=font(12))
    return sheet


def _page(title: str, about: str, cells: list[tuple[CodeRow, Image.Image]]) -> str:
    shown = []
    for row, image in cells:
        assert isinstance(row.codes, Codes)
        height, width = row.codes.size
        lines = [row.key, f"{width} x {height} px"]
        lines += [f"{name}: {value}" for name, value in row.extras.items() if value is not None]
        shown.append({"picture": Picture.of(image), "lines": lines})
    return render("preview.html", title=title, about=about, cells=shown)


def _short(key: str, limit: int = 34) -> str:
    key = printable(key)
    return key if len(key) <= limit else "..." + key[-limit + 3 :]
