"""DocVQA and InfographicVQA: questions about pages, and about infographics."""

from __future__ import annotations

from viq.data.sources.base import Row
from viq.eval.vlm.tasks.base import Hub, Scored, Task, text_of, texts_of
from viq.metrics.answers import anls


class DocVQA(Task):
    """Of the validation split, as answers to the test split are not public."""

    name, title, metric = "docvqa_val", "DocVQA", "anls"
    hub = Hub("lmms-lab-encoder/DocVQA", "validation", "DocVQA")
    columns = ("question", "answers")
    most_tokens = 32
    is_binary = False

    def text(self, row: Row) -> str:
        return f"{text_of(row, 'question')}\nAnswer the question using a single word or phrase."

    def score(self, row: Row, answer: str) -> Scored:
        return Scored(anls(answer, texts_of(row, "answers")))


class InfoVQA(DocVQA):
    """The same of infographics, some of which are ten times as tall as wide."""

    name, title = "infovqa_val", "InfoVQA"
    hub = Hub("lmms-lab-encoder/DocVQA", "validation", "InfographicVQA")
