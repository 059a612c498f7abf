"""TextVQA: questions about text in photos, each with ten answers of people."""

from __future__ import annotations

from viq.data.sources.base import Row
from viq.eval.vlm.tasks.base import Hub, Scored, Task, text_of, texts_of
from viq.metrics.answers import vqa_accuracy


class TextVQA(Task):
    """Without the words that an OCR found."""

    name, title = "textvqa_val", "TextVQA"
    hub = Hub("lmms-lab-encoder/textvqa", "validation")
    columns = ("question", "answers")
    stop = ("ASSISTANT:",)
    is_binary = False

    def text(self, row: Row) -> str:
        question = text_of(row, "question").capitalize()  # which makes all other letters small
        return f"{question}\nAnswer the question using a single word or phrase."

    def score(self, row: Row, answer: str) -> Scored:
        return Scored(vqa_accuracy(answer, texts_of(row, "answers")))
