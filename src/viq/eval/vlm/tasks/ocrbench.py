"""OCRBench: reading of words, scenes, pages, forms and formulas, in 1000 questions."""

from __future__ import annotations

from collections.abc import Sequence

from viq.data.sources.base import Row
from viq.eval.vlm.tasks.base import Hub, Scored, Task, by_group, mean, text_of, texts_of
from viq.metrics.answers import ocr_hit
from viq.metrics.intervals import wilson

_ROWS = 1000  # that points are counted of, whatever the number of rows
_FORMULAS = "HME100k"


class OCRBench(Task):
    """A reference within the answer is a point; the paper prints points."""

    name, title, metric = "ocrbench", "OCRBench", "ocrbench_accuracy"
    hub = Hub("echo840/OCRBench", "test")
    columns = ("dataset", "question", "question_type", "answer")
    most_tokens = 128

    def text(self, row: Row) -> str:
        return text_of(row, "question").strip()

    def score(self, row: Row, answer: str) -> Scored:
        is_formula = text_of(row, "dataset") == _FORMULAS
        hit = ocr_hit(answer, texts_of(row, "answer"), formula=is_formula)
        return Scored(hit, text_of(row, "question_type"))

    def totals(self, scored: Sequence[Scored]) -> dict[str, float]:
        points = {kind: sum(s.value for s in group) for kind, group in by_group(scored).items()}
        return {self.metric: sum(points.values()) / _ROWS, "points": sum(points.values())} | points

    def interval(self, scored: Sequence[Scored]) -> tuple[float, float]:
        low, high = wilson(mean(scored), len(scored))
        return low * len(scored) / _ROWS, high * len(scored) / _ROWS
