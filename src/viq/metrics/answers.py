"""Whether an answer is right, as the benchmarks of vision-language models count it.

Strings in, a score from 0 to 1 out. `prediction` is what a model said, `reference` what is right.
The functions of one benchmark count as lmms-eval 0.7.3 does, oddities included, so that scores can
be laid beside published ones; they strip the prediction, as it does.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

from viq.metrics.normal_form import normal_form
from viq.metrics.text import edit_distance

ANLS_LEAST = 0.5  # similarities below it count 0
RELAXED = 0.05  # relative error of a number that still is right

_ENOUGH = 3  # annotators who agree with an answer make it right (VQA accuracy)
_LETTER = re.compile(r"\s*([A-Z])\.")
_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)
# Full-width forms of ASCII and the ideographic space.
_HALF_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {0x3000: 0x20}


def words_f1(true: str, answer: str) -> float:
    """Harmonic mean of precision and recall of the words of an answer, 0 to 1."""
    wanted, given = _words(true), _words(answer)
    if not wanted or not given:
        return float(wanted == given)
    both = sum((Counter(wanted) & Counter(given)).values())
    return 2 * both / (len(wanted) + len(given))


def is_right(true: str, answer: str) -> bool:
    """Whether two answers are equal but for case, spaces and a full stop at the end."""
    return _plain(true) == _plain(answer)


def anls(prediction: str, references: Sequence[str]) -> float:
    """Average normalised Levenshtein similarity of DocVQA and InfographicVQA: the best reference's.

    Distances are of lower-cased texts with single spaces, lengths those of the unchanged texts.
    """
    prediction = prediction.strip()
    distances = [_normalised_distance(reference, prediction) for reference in references]
    similarity = 1 - min(distances, default=1.0)
    return similarity if similarity >= ANLS_LEAST else 0.0


def vqa_accuracy(prediction: str, references: Sequence[str]) -> float:
    """TextVQA: the mean over references of min(1, matches among the other ones / 3).

    Texts are compared in their normal form. One reference alone scores 0.
    """
    answer = normal_form(prediction.strip())
    matches = [normal_form(reference) == answer for reference in references]
    if not matches:
        return 0.0
    total = sum(matches)
    return sum(min(1.0, (total - match) / _ENOUGH) for match in matches) / len(matches)


def normal_match(prediction: str, reference: str) -> float:
    """SimpleVQA: 1 if the normal forms are equal, else 0."""
    return float(normal_form(prediction.strip()) == normal_form(reference))


def relaxed_match(prediction: str, reference: str) -> float:
    """ChartQA: 1 for a number within 5% of the reference, or for equal lower-cased texts, else 0.

    A number is what Python takes for a float, or that before "%", divided by 100. A reference of 0
    has to be met as text.
    """
    prediction = prediction.strip()
    given, wanted = _number(prediction), _number(reference)
    if given is not None and wanted:
        return float(abs(given - wanted) / abs(wanted) <= RELAXED)
    return float(prediction.lower() == reference.lower())


def ocr_hit(prediction: str, references: Sequence[str], *, formula: bool = False) -> float:
    """OCRBench: 1 if any reference is part of the answer, else 0.

    Args:
        formula: of HME100k, whose texts lose all spaces and line feeds and keep their case; others
            are lower-cased, and full-width letters become plain ones.
    """
    form = _without_spaces if formula else _half_width
    answer = form(prediction)
    return float(any(form(reference) in answer for reference in references))


def option_match(prediction: str, letter: str) -> float:
    """AI2D: 1 if the answer is the letter alone, but for case and ASCII punctuation, else 0.

    Of an answer that begins with a capital letter and a full stop, this letter is taken.
    """
    found = _LETTER.match(prediction)
    answer = found[1] if found else prediction.strip()
    return float(answer.lower().translate(_WITHOUT_PUNCTUATION) == letter.lower())


def _plain(text: str) -> str:
    return " ".join(text.lower().split()).removesuffix(".")


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _normalised_distance(reference: str, prediction: str) -> float:
    """Levenshtein distance over the length of the longer text; 0 for two empty texts."""
    longest = max(len(reference), len(prediction))
    first, second = (" ".join(text.lower().split()) for text in (reference, prediction))
    return edit_distance(first, second) / longest if longest else 0.0


def _number(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None


def _without_spaces(text: str) -> str:
    return text.strip().replace("\n", "").replace(" ", "")


def _half_width(text: str) -> str:
    return text.translate(_HALF_WIDTH).lower().strip().replace("\n", " ")
