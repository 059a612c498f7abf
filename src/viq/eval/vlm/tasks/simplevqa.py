"""SimpleVQA: facts about what a picture shows, in English and Chinese."""

from __future__ import annotations

from viq.data.sources.base import Row
from viq.eval.vlm.tasks.base import Hub, Scored, Task, text_of
from viq.metrics.answers import normal_match


class SimpleVQA(Task):
    """Pictures are base64 text."""

    name, title = "simplevqa", "SimpleVQA"
    hub = Hub("m-a-p/SimpleVQA", "test")
    columns = ("question", "answer")
    most_tokens = 32
    note = "simplevqa: equal texts count; its own paper lets a model judge, so it is another figure"

    def text(self, row: Row) -> str:
        return f"{text_of(row, 'question').strip()}\nAnswer the question using a short phrase."

    def score(self, row: Row, answer: str) -> Scored:
        return Scored(normal_match(answer, text_of(row, "answer")))
