"""MMMU: college exams in 30 subjects, with up to seven pictures in question and options."""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence

from viq.data.sources.access import ImageText, is_encoded
from viq.data.sources.base import ImageBytes, ImageRef, Row, SourceError
from viq.eval.vlm.tasks.base import (
    Hub,
    Like,
    Part,
    Scored,
    Task,
    by_group,
    lettered,
    letters,
    mean,
    text_of,
    texts_of,
)
from viq.metrics.choices import chosen_letter, open_candidates, open_match

_PLACE = re.compile(r"<image (\d+)>")
_OPTIONS = 64 * 2**10  # characters of a list of options
_DIGITS = 5  # that lmms-eval rounds totals to
_DOMAINS = {
    "Art and Design": ("Art", "Art_Theory", "Design", "Music"),
    "Business": ("Accounting", "Economics", "Finance", "Manage", "Marketing"),
    "Science": ("Biology", "Chemistry", "Geography", "Math", "Physics"),
    "Health and Medicine": (
        "Basic_Medical_Science", "Clinical_Medicine", "Diagnostics_and_Laboratory_Medicine",
        "Pharmacy", "Public_Health",
    ),
    "Humanities and Social Science": ("History", "Literature", "Sociology", "Psychology"),
    "Tech and Engineering": (
        "Agriculture", "Architecture_and_Engineering", "Computer_Science", "Electronics",
        "Energy_and_Power", "Materials", "Mechanical_Engineering",
    ),
}  # fmt: skip


class MMMU(Task):
    """Questions with options, and a few without.

    An answer to a question with options that names none of them is wrong (`Scored.unread`), where
    lmms-eval draws a letter at random.
    """

    name, title, metric = "mmmu_val", "MMMU", "mmmu_acc"
    hub = Hub("lmms-lab-encoder/MMMU", "validation")
    columns = (
        "id", "question", "options", "answer", "question_type",
        *(f"image_{number}" for number in range(1, 8)),
    )  # fmt: skip
    image_columns = ()  # a row names its pictures by their columns, of which some are empty
    most_tokens = 128

    def images(self, row: Row) -> tuple[ImageRef, ...]:
        return tuple(_image(row, number) for number in _numbers(self.text(row)))

    def text(self, row: Row) -> str:
        question = text_of(row, "question")
        if not _has_options(row):
            return f"{question}\n\nAnswer the question using a single word or phrase."
        return (
            f"{question}\n{lettered(_options(row), row.where)}\n\n"
            "Answer with the option's letter from the given choices directly."
        )

    def parts(self, row: Row, like: Like = "viq") -> tuple[Part, ...]:
        """Each picture where its placeholder stands, all text kept.

        As lmms-eval has it: pictures in the order of their numbers, whatever the placeholders say;
        of texts between surplus placeholders all but the last are lost, and none keeps its outer
        white space.
        """
        text = self.text(row)
        numbers = _numbers(text)
        pieces = _PLACE.split(text)  # text, number, text, number, ..., text
        if like == "viq":
            placed = [numbers.index(int(n)) if at % 2 else n for at, n in enumerate(pieces)]
            return tuple(part for part in placed if part != "")
        texts = [piece.strip() for piece in pieces[::2]]
        before = [
            part for number, one in enumerate(texts[: len(numbers)]) for part in (one, number)
        ]
        return tuple(part for part in (*before, texts[-1]) if part != "")

    def score(self, row: Row, answer: str) -> Scored:
        right, subject = text_of(row, "answer"), "_".join(text_of(row, "id").split("_")[1:-1])
        if not _has_options(row):
            return Scored(float(open_match(right, open_candidates(answer))), subject)
        options = _options(row)
        letter = chosen_letter(
            answer, dict(zip(letters(len(options), row.where), options, strict=True))
        )
        return Scored(float(letter == right), subject, unread=letter is None)

    def totals(self, scored: Sequence[Scored]) -> dict[str, float]:
        groups = by_group(scored)
        found = {self.metric: mean(scored)}
        for domain, subjects in _DOMAINS.items():
            of_domain = [one for subject in subjects for one in groups.get(subject, ())]
            found |= {domain: mean(of_domain)} if of_domain else {}
        found |= {subject: mean(group) for subject, group in groups.items()}
        return {name: round(value, _DIGITS) for name, value in found.items()}


def _has_options(row: Row) -> bool:
    return text_of(row, "question_type") == "multiple-choice"


def _options(row: Row) -> list[str]:
    """The options, which the data hold as the text of a Python list, and some copies as a list."""
    if isinstance(row.extras.get("options"), list):
        return texts_of(row, "options")
    text = text_of(row, "options")
    try:
        found = ast.literal_eval(text) if len(text) <= _OPTIONS else None
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        found = None
    if not isinstance(found, list | tuple):
        raise SourceError(f"{row.where}: column options holds no list; mend or remove it")
    return [str(option) for option in found]


def _numbers(text: str) -> list[int]:
    """Of the pictures that placeholders name, each once, in order."""
    return sorted({int(number) for number in _PLACE.findall(text)})


def _image(row: Row, number: int) -> ImageRef:
    match row.extras.get(f"image_{number}"):
        case bytes(data) | {"bytes": bytes(data)}:
            return ImageBytes(data)
        case str(text) if is_encoded(text):
            return ImageText(text)
    raise SourceError(
        f"{row.where}: its text names <image {number}>, but column image_{number} holds no bytes "
        "of a picture; mend or remove it"
    )
