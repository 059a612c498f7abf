"""MMStar: questions with options that need the picture, in 18 fine categories."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from viq.data.sources.base import Row
from viq.eval.vlm.tasks.base import Hub, Scored, Task, by_group, mean, text_of
from viq.metrics.choices import stated_letter

_ASKED_FOR_A_WORD = " Please answer yes or no."
_BETWEEN = "\n"  # category and fine category in a group


class MMStar(Task):
    """The total is the mean over fine categories, whatever their sizes."""

    name, title, metric = "mmstar", "MMStar", "average"
    hub = Hub("Lin-Chen/MMStar", "val")
    columns = ("question", "answer", "category", "l2_category")
    is_binary = False  # a mean of means

    def text(self, row: Row) -> str:
        question = text_of(row, "question").strip().replace(_ASKED_FOR_A_WORD, "")
        return f"{question}\nAnswer with the option's letter from the given choices directly"

    def score(self, row: Row, answer: str) -> Scored:
        letter = stated_letter(answer)
        group = text_of(row, "category") + _BETWEEN + text_of(row, "l2_category")
        return Scored(float(letter == text_of(row, "answer")), group, unread=not letter)

    def totals(self, scored: Sequence[Scored]) -> dict[str, float]:
        fine: dict[str, dict[str, float]] = defaultdict(dict)
        for group, members in by_group(scored).items():
            category, _, name = group.partition(_BETWEEN)
            fine[category][name] = mean(members)
        every = [value for values in fine.values() for value in values.values()]
        parts = {name: sum(values.values()) / len(values) for name, values in fine.items()}
        return {self.metric: sum(every) / len(every)} | parts
