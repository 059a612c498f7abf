"""Draw pages of text: articles, receipts, tables, forms, consoles, lists, signs.

Each run of text is shortened until it fits, so the recorded lines are exactly the drawn ones.
"""

import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from viq.data.synthetic.canvas import (
    RGB,
    SyntheticImage,
    any_colour,
    blend,
    canvas,
    fit_text,
    ink_and_paper,
    line_height,
    luminance,
    pick_font,
    readable_on,
    text_width,
    write,
)

WORDS = """
the of and to in is was for on that with as it by at from his her they be this are or had not but
what all were when we there can an your which their said if do will each about how up out them then
she many some so these would other into has more two like him see time could no make than first been
its who now people my made over did down only way find use may water long little very after words
called just where most know get through back much before go good new write our used me man too any
day same right look think also around another came come work three word must because does part even
place well such here take why things help put years different away again off went old number great
tell men say small every found still between name should home big give air line set own under read
last never us left end along while might next sound below saw something thought both few those
always show large often together asked house world going want school important until form food keep
children feet land side without boy once animal life enough took four head above kind began almost
live page got earth need far hand high year mother light country father let night picture being
study second soon story since white ever paper hard near sentence better best across during today
however sure knew try told young sun thing whole hear example heard several change answer room sea
against top turned learn point city play toward five himself usually money seen car morning body
upon family later turn move face door cut done group true half red fish plants river market garden
bridge window summer winter coffee bread apple orange lemon ticket station museum library doctor
engine signal copper silver forest island mountain harbour village journey letter music colour
""".split()

_UI_WORDS = "Save Open Close Cancel Delete Search Settings Login Next Back Send Share Help Edit Buy"
_SIGN_WORDS = "STOP EXIT OPEN CLOSED SALE PARKING CAFE HOTEL TAXI PUSH PULL WAY NORTH MUSEUM BAKERY"
_KEYWORDS = ("def", "return", "import", "for", "if", "else", "while", "class", "print")
_ONSETS = "b c d f g h k l m n p r s t v w br cl dr gr pl st tr".split()
_VOWELS = "a e i o u ai ea oo".split()
_CODAS = ["", "", "n", "r", "s", "t", "l", "m", "nd", "st"]


def pseudo_word(rng: random.Random) -> str:
    """A pronounceable word that is probably in no dictionary, so that letters must be read."""
    parts = (rng.choice(_ONSETS) + rng.choice(_VOWELS) for _ in range(rng.randint(1, 3)))
    return "".join(parts) + rng.choice(_CODAS)


def token(rng: random.Random) -> str:
    """A number, price, date, time, code, address or percentage."""
    n = rng.randrange
    choices: tuple[Callable[[], str], ...] = (
        lambda: str(n(10 ** rng.randint(1, 6))),
        lambda: f"${n(1000)}.{n(100):02d}",
        lambda: f"{1950 + n(100)}-{1 + n(12):02d}-{1 + n(28):02d}",
        lambda: f"{1 + n(28)}/{1 + n(12)}/{1950 + n(100)}",
        lambda: f"{n(24):02d}:{n(60):02d}",
        lambda: "".join(rng.choices("ABCDEFGHJKLMNPQRSTUVWXYZ23456789", k=rng.randint(4, 8))),
        lambda: f"{pseudo_word(rng)}@{pseudo_word(rng)}.com",
        lambda: f"{n(1000) / 10}%",
    )
    return rng.choice(choices)()


def word(rng: random.Random) -> str:
    """Mostly a common word, at times an invented one or a number."""
    roll = rng.random()
    return rng.choice(WORDS) if roll < 0.75 else pseudo_word(rng) if roll < 0.9 else token(rng)


def title(rng: random.Random, words: int) -> str:
    """Capitalized common words."""
    return " ".join(rng.choice(WORDS).capitalize() for _ in range(words))


class Page:
    """A canvas that draws fitted runs of text and records them."""

    def __init__(self, size: tuple[int, int], rng: random.Random, path: Path | None) -> None:
        self.height, self.width = size
        self.rng, self.path = rng, path
        self.ink, self.paper = ink_and_paper(rng)
        self.image, self.pen = canvas(size, self.paper)
        # Log-uniform, so that small print is as common as headings.
        largest = max(8.0, min(40.0, self.height / 4, self.width / 7))
        self.size = round(8 * (largest / 8) ** rng.random())
        self.facts: dict[str, Any] = {"lines": [], "boxes": [], "inks": [], "papers": []}

    def run(
        self,
        x: float,
        y: float,
        text: str,
        *,
        size: int = 0,
        width: float | None = None,
        align: float = 0.0,
        ink: RGB | None = None,
        paper: RGB | None = None,
        bold: bool = False,
        slant: float = 0.0,
    ) -> float:
        """Draw what fits of `text` in `width` px from (x, y), aligned 0 left .. 1 right.

        Returns the drawn width in px; nothing is drawn or recorded where not one letter fits.
        """
        size = size or self.size
        tall = line_height(self.path, size)
        room = min(self.width - x - 1, self.width if width is None else width)
        text = fit_text(text, self.path, size, room - (bold + slant * size))
        if not text or y < 0 or y + tall > self.height:
            return 0.0
        length = text_width(text, self.path, size)
        left = round(x + align * (room - length))
        at, ink = (left, int(y)), ink or self.ink
        write(self.image, at, text, self.path, size, ink, bold=bold, slant=slant)
        self.facts["lines"].append(text)
        self.facts["boxes"].append([left, int(y), left + length, int(y) + tall])
        self.facts["inks"].append(list(ink))
        self.facts["papers"].append(list(paper or self.paper))
        return length

    def sentence(self, width: float, size: int) -> str:
        """Words for about one line of `width` px."""
        # 0.5 em is the usual mean letter width; fit_text trims the rest exactly.
        letters, words = int(width / (0.48 * size)), []
        while sum(map(len, words)) + len(words) < letters:
            words.append(word(self.rng))
        return " ".join(words)

    def accent(self) -> RGB:
        """A colour for headings, panels and buttons."""
        return blend(any_colour(self.rng), self.ink, 0.25)


def _article(page: Page) -> None:
    rng, size = page.rng, page.size
    margin = rng.randint(1, max(2, page.width // 14))
    y = float(margin)
    if page.height > 4 * size and rng.random() < 0.7:
        big = min(64, round(size * rng.uniform(1.2, 2.4)), page.height // 4)
        align = rng.choice((0.0, 0.5))
        room = page.width - 2 * margin
        heading = title(rng, rng.randint(1, 5))
        page.run(margin, y, heading, size=big, width=room, bold=rng.random() < 0.6, align=align)
        y += big * 1.5
        if rng.random() < 0.3:
            page.pen.line((margin, y - 2, page.width - margin, y - 2), fill=page.ink)
    columns = rng.randint(1, max(1, min(3, page.width // (12 * size))))
    gap = size
    room = (page.width - 2 * margin - gap * (columns - 1)) / columns
    for column in range(columns):
        _paragraphs(page, margin + column * (room + gap), y, room, margin)


def _paragraphs(page: Page, x: float, y: float, room: float, margin: int) -> None:
    rng, size = page.rng, page.size
    step = size * rng.uniform(1.15, 1.6)
    slant, bold = rng.choice((0.0, 0.0, 0.0, 0.2)), rng.random() < 0.12
    left = rng.randint(2, 8)
    start = True
    while y + size <= page.height - margin:
        text = page.sentence(room, size)
        if start:
            text = text[:1].upper() + text[1:]
        end = left == 0
        if end:
            text = fit_text(text, page.path, size, room * rng.uniform(0.3, 0.9)) + "."
        page.run(x, y, text, width=room, slant=slant, bold=bold)
        y += step * (1.6 if end else 1.0)
        start, left = end, rng.randint(2, 8) if end else left - 1


def _receipt(page: Page) -> None:
    rng = page.rng
    size = page.size = min(page.size, max(8, page.width // 12))
    half = min(page.width / 2 - 4, size * rng.uniform(7, 11))
    x, room, step = page.width / 2 - half, 2 * half, size * rng.uniform(1.2, 1.5)
    y = size * 0.4
    big = min(64, round(size * 1.4))
    page.run(x, y, title(rng, 2), size=big, width=room, align=0.5, bold=True)
    page.run(x, y + big * 1.3, token(rng), width=room, align=0.5)
    y += big * 1.3 + step * 1.5
    total = 0
    while y + 3 * step < page.height:
        cents = rng.randrange(50, 9999)
        total += cents
        price = f"{cents / 100:.2f}"
        used = text_width(price, page.path, size) + size
        page.run(x, y, f"{rng.randint(1, 9)} {rng.choice(WORDS)}", width=room - used)
        page.run(x, y, price, width=room, align=1.0)
        y += step
    for dash in range(round(x), round(x + room), 6):
        page.pen.line((dash, y + size * 0.3, dash + 3, y + size * 0.3), fill=page.ink)
    y += step * 0.6
    page.run(x, y, "TOTAL", width=room * 0.5, bold=True)
    page.run(x + room * 0.5, y, f"{total / 100:.2f}", width=room * 0.5, align=1.0, bold=True)


def _table(page: Page) -> None:
    rng = page.rng
    size = page.size = min(page.size, 20)
    columns = max(1, min(6, page.width // (size * rng.randint(4, 7))))
    row, wide = round(size * rng.uniform(1.5, 2.0)), page.width // columns
    rows = page.height // row
    head, band = page.accent(), blend(page.paper, page.ink, rng.choice((0.0, 0.06, 0.1)))
    numeric = [rng.random() < 0.6 for _ in range(columns)]
    grid, pad = rng.random() < 0.7, (row - size) / 2 - 1
    for r in range(rows):
        paper = head if r == 0 else band if r % 2 else page.paper
        page.pen.rectangle((0, r * row, page.width, (r + 1) * row - 1), fill=paper)
        for c in range(columns):
            text = title(rng, 1) if r == 0 or not numeric[c] else token(rng)
            ink = readable_on(head) if r == 0 else None
            align = 1.0 if r and numeric[c] else 0.0
            page.run(
                c * wide + 3, r * row + pad, text, width=wide - 6, align=align,
                ink=ink, paper=paper, bold=r == 0,
            )  # fmt: skip
    line = blend(page.paper, page.ink, 0.35)
    for r in range(rows + 1) if grid else ():
        page.pen.line((0, r * row, page.width, r * row), fill=line)
    for c in range(1, columns) if grid else ():
        page.pen.line((c * wide, 0, c * wide, rows * row), fill=line)


def _form(page: Page) -> None:
    rng = page.rng
    size = page.size = min(page.size, 22)
    bar, colour = round(size * 1.8), page.accent()
    page.pen.rectangle((0, 0, page.width, bar - 1), fill=colour)
    label = title(rng, rng.randint(1, 3))
    page.run(5, bar / 2 - size * 0.6, label, ink=readable_on(colour), paper=colour)
    y, radius = bar + size * 0.6, rng.choice((0, 2, 4, size))
    while y + 2 * size < page.height:
        _form_row(page, y, rng.choice((colour, colour, page.accent())), radius)
        y += size * 2.3


def _form_row(page: Page, y: float, colour: RGB, radius: int) -> None:
    rng, size, x = page.rng, page.size, 5.0
    kind = rng.choice(("field", "buttons", "check"))
    line, soft = blend(page.paper, page.ink, 0.4), blend(page.paper, page.ink, 0.04)
    if kind == "field":
        name = rng.choice(WORDS).capitalize()
        x += max(page.width * 0.3, page.run(x, y + size * 0.2, name, width=page.width * 0.4) + 6)
        box = (x, y, page.width - 6, y + size * 1.6)
        if box[2] > box[0] + size:
            page.pen.rectangle(box, fill=soft, outline=line)
            room = box[2] - x - 8
            page.run(x + 4, y + size * 0.2, page.sentence(room * 0.6, size), width=room, paper=soft)
    elif kind == "check":
        box = (x, y + size * 0.3, x + size * 0.9, y + size * 1.2)
        page.pen.rectangle(box, outline=line, fill=rng.choice((page.paper, colour)))
        page.run(x + size * 1.4, y + size * 0.2, page.sentence(page.width * 0.5, size))
    else:
        while x + size * 3 < page.width:
            name = rng.choice(_UI_WORDS.split())
            wide = text_width(name, page.path, size) + size
            if x + wide > page.width:
                break
            page.pen.rounded_rectangle((x, y, x + wide, y + size * 1.6), radius, fill=colour)
            ink = readable_on(colour)
            page.run(x + size / 2, y + size * 0.2, name, ink=ink, paper=colour)
            x += wide + size * rng.uniform(0.4, 2)


def _console(page: Page) -> None:
    rng, size = page.rng, min(page.size, 18)
    sign = -1 if luminance(page.paper) > 128 else 1
    tints = [blend(page.ink, any_colour(rng), 0.3) for _ in range(3)]
    # Tints that drift towards the paper are dropped.
    far = [t for t in tints if sign * (luminance(t) - luminance(page.paper)) > 100] or [page.ink]
    y, indent = 3.0, 0
    while y + size < page.height:
        x = 4 + indent * size * 1.5
        if rng.random() < 0.4:
            x += page.run(x, y, rng.choice(_KEYWORDS), size=size, ink=rng.choice(far)) + size * 0.4
        name = "_".join(pseudo_word(rng) for _ in range(rng.randint(1, 2)))
        ends = (f"({rng.choice(WORDS)}):", f" = {token(rng)}", f"[{rng.randrange(99)}]")
        value = rng.choice(ends)
        page.run(x, y, name + value, size=size, ink=rng.choice((page.ink, *far)))
        y += size * 1.35 * rng.choice((1, 1, 1, 1, 2))
        indent = max(0, min(3, indent + rng.choice((-1, 0, 0, 1))))


def _bullets(page: Page) -> None:
    rng, size = page.rng, page.size
    page.run(4, 3, title(rng, 2), size=round(size * 1.2), bold=True, ink=page.ink)
    y, number, numbered = size * 1.9, 1, rng.random() < 0.5
    while y + size < page.height:
        if numbered:
            page.run(4, y, f"{number}.", width=size * 1.6)
        else:
            page.pen.ellipse((6, y + size * 0.45, 6 + size * 0.3, y + size * 0.75), fill=page.ink)
        room = (page.width - 2 * size - 4) * rng.uniform(0.4, 1)
        page.run(4 + size * 1.7, y, page.sentence(room, size), width=room)
        y, number = y + size * rng.uniform(1.3, 1.8), number + 1


def _sign(page: Page) -> None:
    rng = page.rng
    panel = page.accent()
    edge, ink = rng.randint(0, max(1, min(page.height, page.width) // 10)), readable_on(panel)
    box = (edge, edge, page.width - 1 - edge, page.height - 1 - edge)
    page.pen.rounded_rectangle(
        box, rng.choice((0, edge, 2 * edge)), panel, rng.choice((panel, ink)), max(1, edge // 4)
    )
    lines = rng.randint(1, 3)
    room, step = page.width - 2 * edge - 8, (page.height - 2 * edge) / lines
    for i in range(lines):
        text = rng.choice((rng.choice(_SIGN_WORDS.split()), title(rng, 1), token(rng)))
        size = max(8, min(64, round(step * 0.7), round(room / (0.62 * len(text)))))
        y = edge + (i + 0.5) * step - size * 0.62
        bold = rng.random() < 0.5
        page.run(
            edge + 4, y, text, size=size, width=room, align=0.5, ink=ink, paper=panel, bold=bold
        )


_LAYOUTS: dict[str, Callable[[Page], None]] = {
    "article": _article,
    "receipt": _receipt,
    "table": _table,
    "form": _form,
    "console": _console,
    "bullets": _bullets,
    "sign": _sign,
}


def draw_word(size: tuple[int, int], rng: random.Random, system_fonts: bool) -> SyntheticImage:
    """One or two words on lines of their own, as large as fits in 12 to 40 px; facts as in
    `draw_text`, with `layout` "word"."""
    page = Page(size, rng, pick_font(rng, system_fonts))
    count = rng.randint(1, 2 if page.height >= 2 * line_height(page.path, 12) else 1)
    step, room = page.height // count, page.width - 3
    for i in range(count):
        text = rng.choice((rng.choice(WORDS), pseudo_word(rng), str(rng.randrange(10_000))))
        text = rng.choice((str.lower, str.capitalize, str.upper))(text)
        bold, slant = rng.random() < 0.3, rng.choice((0.0, 0.0, 0.0, 0.2))
        text = fit_text(text, page.path, 12, room - 3) or "1"  # 16 px are too narrow for a "W"
        em = text_width(text, page.path, 40) / 40 + slant
        fitting = min(40.0, 0.95 * room / em, 40 * step / line_height(page.path, 40))
        large = max(12, int(fitting * rng.uniform(0.75, 1)))
        wide, tall = math.ceil(em * large) + 2, line_height(page.path, large)
        x, y = rng.randint(1, max(1, room - wide)), rng.randint(0, max(0, step - tall))
        tint = any_colour(rng)
        ink = tint if abs(luminance(tint) - luminance(page.paper)) >= 110 else page.ink
        page.run(x, i * step + y, text, size=large, ink=ink, bold=bold, slant=slant)
    return SyntheticImage(image=page.image, kind="word", facts={"layout": "word", **page.facts})


def draw_text(size: tuple[int, int], rng: random.Random, system_fonts: bool) -> SyntheticImage:
    """A page. Facts: `layout`, and one entry per drawn run in `lines`, `boxes` (px, from ascent
    to descent), `inks` and `papers` (its colours)."""
    page = Page(size, rng, pick_font(rng, system_fonts))
    layout = rng.choice(("article", *_LAYOUTS))  # articles twice: the commonest kind of page
    _LAYOUTS[layout](page)
    return SyntheticImage(image=page.image, kind="text", facts={"layout": layout, **page.facts})
