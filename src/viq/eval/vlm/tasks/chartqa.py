"""ChartQA: questions about charts, one half written by people and one by a program."""

from __future__ import annotations

from collections.abc import Sequence

from viq.data.sources.base import Row
from viq.eval.vlm.tasks.base import Hub, Scored, Task, by_group, mean, text_of
from viq.metrics.answers import relaxed_match

_SPLITS = {"human_test": "relaxed_human_split", "augmented_test": "relaxed_augmented_split"}


class ChartQA(Task):
    """Numbers may be 5% off."""

    name, title, metric = "chartqa", "ChartQA", "relaxed_overall"
    hub = Hub("lmms-lab-encoder/ChartQA", "test")
    columns = ("type", "question", "answer")
    most_tokens = 16

    def text(self, row: Row) -> str:
        return f"{text_of(row, 'question')}\nAnswer the question with a single word."

    def score(self, row: Row, answer: str) -> Scored:
        return Scored(relaxed_match(answer, text_of(row, "answer")), text_of(row, "type"))

    def totals(self, scored: Sequence[Scored]) -> dict[str, float]:
        groups = by_group(scored)
        parts = {name: mean(groups[kind]) for kind, name in _SPLITS.items() if kind in groups}
        return {self.metric: mean(scored)} | parts
