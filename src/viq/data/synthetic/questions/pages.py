"""Questions and captions about print: pages, signs, receipts, single words."""

import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from viq.data.synthetic.canvas import SyntheticImage
from viq.data.synthetic.pages import WORDS
from viq.data.synthetic.questions.base import LONGEST, Draft, Facts, with_article, yes_no

PROMPTS: dict[str, tuple[str, ...]] = {
    "text_layout": ("what kind of page is this?", "name the kind of page."),
    "count_lines": ("how many lines are there?", "count the lines of text."),
    "read": ("what does it say?", "read the text."),
    "read_line": ("read the {nth} line.", "what does the {nth} line say?"),
    "read_largest": ("read the largest line.", "what does the largest line say?"),
    "read_word": ("which word follows '{word}'?", "what is the word after '{word}'?"),
    "read_letter": ("what is the {nth} letter?", "read the {nth} letter."),
    "has_word": ("is the word '{word}' in the picture?", "can you read the word '{word}'?"),
    "receipt_price": ("what does {item} cost?", "what is the price of {item}?"),
    "receipt_total": ("what is the total?", "how much is it in total?"),
}

_LEAST_PRINT = 10  # px of a readable line
_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth")
_COMMON = {word for word in WORDS if len(word) >= 4}
_PRICE = re.compile(r"\d+\.\d\d")


class TextRun(NamedTuple):
    """A run of text and its box in px."""

    text: str
    box: tuple[int, int, int, int]

    @property
    def tall(self) -> int:
        return self.box[3] - self.box[1]

    @property
    def readable(self) -> bool:
        return self.tall >= _LEAST_PRINT and len(self.text) <= LONGEST


def _runs(facts: Facts) -> list[TextRun]:
    """All runs in drawn order, which is reading order within a column."""
    pairs = zip(facts["lines"], facts["boxes"], strict=True)
    return [TextRun(text, (x0, y0, x1, y1)) for text, (x0, y0, x1, y1) in pairs]


def _countable(runs: Sequence[TextRun]) -> list[TextRun]:
    """The lines from the top down to where two stand side by side: their order is plain."""
    lines = sorted(runs, key=lambda run: run.box[1])
    for i, (a, b) in enumerate(zip(lines, lines[1:], strict=False)):
        if b.box[1] < (a.box[1] + a.box[3]) / 2:
            return lines[:i]
    return lines


def ask(drawing: SyntheticImage, rng: random.Random) -> Iterator[Draft]:
    """All that can be asked, in a fixed order."""
    facts, runs = drawing.facts, _runs(drawing.facts)
    if facts["layout"] == "sign" or len(runs) > 3:  # less of the others tells little
        yield "text_layout", facts["layout"], {}
    if not runs or min(run.tall for run in runs) < _LEAST_PRINT:
        return
    yield from _lines(runs, rng)
    yield from _words(runs, rng)
    if facts["layout"] == "receipt":
        yield from _receipt(runs, rng)


def _lines(runs: Sequence[TextRun], rng: random.Random) -> Iterator[Draft]:
    lines = _countable(runs)
    whole = len(lines) == len(runs)
    if whole and len(lines) <= 12:
        yield "count_lines", str(len(lines)), {}
    if len(runs) == 1:
        if runs[0].readable:
            yield "read", runs[0].text.lower(), {}
        return
    named = list(zip(_ORDINALS, lines, strict=False)) + ([("last", lines[-1])] if whole else [])
    named = [(nth, line) for nth, line in named if line.readable]
    if named:
        nth, line = rng.choice(named)
        yield "read_line", line.text.lower(), {"nth": nth}
    second, largest = sorted(runs, key=lambda run: run.tall)[-2:]
    if largest.tall >= 1.2 * second.tall and largest.readable:
        yield "read_largest", largest.text.lower(), {}


def _words(runs: Sequence[TextRun], rng: random.Random) -> Iterator[Draft]:
    if len(runs) == 1 and runs[0].text.isalnum() and len(runs[0].text) > 1:
        nth = rng.choice([*_ORDINALS[: len(runs[0].text)], "last"])
        at = -1 if nth == "last" else _ORDINALS.index(nth)
        yield "read_letter", runs[0].text[at].lower(), {"nth": nth}
    rows = [[word.lower().rstrip(".") for word in run.text.split()] for run in runs]
    counts = Counter(word for row in rows for word in row)
    follows = [
        (a, b)
        for row in rows
        for a, b in zip(row, row[1:], strict=False)
        if counts[a] == 1 and a.isalnum() and any(map(str.isalnum, b))
    ]
    if follows:
        word, after = rng.choice(follows)
        yield "read_word", after, {"word": word}
    # Common words of 4 letters and more, so that hardly one is hidden in another.
    text = " ".join(run.text.lower() for run in runs)
    there = sorted(set(re.findall(r"[a-z]+", text)) & _COMMON)
    if there:
        yes = rng.random() < 0.5
        word = rng.choice(there if yes else sorted(w for w in _COMMON if w not in text))
        yield "has_word", yes_no(yes), {"word": word}


def _receipt(runs: Sequence[TextRun], rng: random.Random) -> Iterator[Draft]:
    """Items look like "3 apple", with their price as the next run of the same row."""
    rows = [(a.text, b.text) for a, b in zip(runs, runs[1:], strict=False) if a.box[1] == b.box[1]]
    priced = [(name, price) for name, price in rows if _PRICE.fullmatch(price)]
    items = [(m[1], price) for name, price in priced if (m := re.fullmatch(r"\d ([a-z]+)", name))]
    counts = Counter(item for item, _ in items)
    single = [(item, price) for item, price in items if counts[item] == 1]
    if single:
        item, price = rng.choice(single)
        yield "receipt_price", price, {"item": item}
    if priced and priced[-1][0] == "TOTAL":
        yield "receipt_total", priced[-1][1], {}


def caption(facts: Facts, rng: random.Random) -> str:
    """One true sentence."""
    layout = "text" if facts["layout"] == "word" else with_article(facts["layout"])
    runs = _runs(facts)
    readable = [run.text for run in _countable(runs) if run.readable]
    if not readable:
        return layout
    if len(readable) == len(runs) <= 2:
        return f"{layout} that reads '{' '.join(readable)}'"
    return f"{layout} with a line that reads '{rng.choice(readable)}'"
