"""What every benchmark of vision-language models says: its data, its prompt, its score.

One file a task; the harness knows nothing else of it. Names, prompts and scores are those of
lmms-eval 0.7.3.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from viq.data.sources.base import ImageRef, Row, SourceError
from viq.metrics.intervals import bootstrap, wilson

Like = Literal["viq", "lmms-eval"]
Part = str | int  # of a prompt: text, or the number of one of its pictures
BLANK_LINE = ("\n\n",)  # the stop text of most tasks
MOST_TOKENS = 1024  # of an answer, where a task gives no number


@dataclass(frozen=True)
class Hub:
    """A data set of the Hugging Face hub: `repository` is "owner/name"."""

    repository: str
    split: str
    config: str = ""

    @property
    def name(self) -> str:
        return self.repository.partition("/")[2]


@dataclass(frozen=True)
class Scored:
    """What an answer counts.

    Attributes:
        value: 0 to 1.
        group: what the totals tell apart: a category, a subject, a split.
        unread: whether nothing was found in the answer that could be right or wrong.
    """

    value: float
    group: str = ""
    unread: bool = False


class Task(ABC):
    """A benchmark.

    Attributes:
        name: that of lmms-eval.
        title: that of the paper.
        metric: its headline metric.
        hub: where the data are.
        columns: that prompt and score are made of, without pictures.
        image_columns: that hold pictures.
        most_tokens: of an answer; None where lmms-eval leaves it to the model.
        stop: texts that end an answer.
        is_binary: whether a row is right or wrong, and the total the share of right ones.
        note: what a reader of the score has to know.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    metric: ClassVar[str] = "exact_match"
    hub: ClassVar[Hub]
    columns: ClassVar[tuple[str, ...]]
    image_columns: ClassVar[tuple[str, ...]] = ("image",)
    most_tokens: ClassVar[int | None] = None
    stop: ClassVar[tuple[str, ...]] = BLANK_LINE
    is_binary: ClassVar[bool] = True
    note: ClassVar[str] = ""

    def images(self, row: Row) -> tuple[ImageRef, ...]:
        """The pictures of a prompt. Raises `SourceError` if there are none."""
        if not row.images:
            raise SourceError(f"{row.where}: has no picture; mend or remove the row")
        return row.images

    @abstractmethod
    def text(self, row: Row) -> str:
        """The text of the prompt. Raises `SourceError` for a row that has none."""

    def parts(self, row: Row, like: Like = "viq") -> tuple[Part, ...]:
        """The prompt, one turn of the user; a number stands for that picture of `images`."""
        return 0, self.text(row)

    @abstractmethod
    def score(self, row: Row, answer: str) -> Scored:
        """What an answer counts. Raises `SourceError` for a row without a reference."""

    def totals(self, scored: Sequence[Scored]) -> dict[str, float]:
        """Figures by name, that of `metric` first; at least one row."""
        return {self.metric: mean(scored)}

    def interval(self, scored: Sequence[Scored]) -> tuple[float, float]:
        """95% interval of the headline figure, which is a mean of values from 0 to 1.

        Of values that are all the same every draw of a bootstrap is, too, and would give no width.
        """
        if self.is_binary or len({one.value for one in scored}) == 1:
            return wilson(mean(scored), len(scored))
        return bootstrap(
            lambda drawn: self.totals([scored[i] for i in drawn])[self.metric], len(scored)
        )


def mean(scored: Sequence[Scored]) -> float:
    """The mean value; at least one."""
    return sum(one.value for one in scored) / len(scored)


def by_group(scored: Sequence[Scored]) -> dict[str, list[Scored]]:
    """Those of each group, in the order in which groups first occur."""
    groups: dict[str, list[Scored]] = defaultdict(list)
    for one in scored:
        groups[one.group].append(one)
    return dict(groups)


def text_of(row: Row, column: str) -> str:
    """A cell of text. Raises `SourceError`."""
    value = row.extras.get(column)
    if not isinstance(value, str):
        raise SourceError(
            f"{row.where}: column {column} holds {_kind(value)} instead of text; mend or remove it"
        )
    return value


def texts_of(row: Row, column: str) -> list[str]:
    """A cell with a list of texts, or one text. Raises `SourceError`."""
    value = row.extras.get(column)
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise SourceError(
            f"{row.where}: column {column} holds {_kind(value)} instead of a list of texts; mend "
            "or remove it"
        )
    return value


def letters(count: int, where: str) -> list[str]:
    """The letters of so many options. Raises `SourceError` for none, or more than there are."""
    if not 1 <= count <= 26:
        raise SourceError(f"{where}: has {count} options; 1 to 26 can be asked for")
    return [chr(ord("A") + number) for number in range(count)]


def lettered(options: Sequence[str], where: str) -> str:
    """Options as lines "A. text"."""
    marked = zip(letters(len(options), where), options, strict=True)
    return "\n".join(f"{letter}. {option}" for letter, option in marked)


def _kind(value: Any) -> str:
    return "nothing" if value is None else type(value).__name__
