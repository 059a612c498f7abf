"""AI2D: questions about diagrams of school books, with options."""

from __future__ import annotations

from viq.data.sources.base import Row, SourceError
from viq.eval.vlm.tasks.base import Hub, Scored, Task, lettered, letters, text_of, texts_of
from viq.metrics.answers import option_match


class AI2D(Task):
    """The answer has to be the letter and nothing else."""

    name, title = "ai2d", "AI2D"
    hub = Hub("lmms-lab-encoder/ai2d", "test")
    columns = ("question", "options", "answer")
    most_tokens = 16

    def text(self, row: Row) -> str:
        options = lettered(texts_of(row, "options"), row.where)
        return (
            f"{text_of(row, 'question')}\n{options}\n"
            "Answer with the option's letter from the given choices directly."
        )

    def score(self, row: Row, answer: str) -> Scored:
        options = letters(len(texts_of(row, "options")), row.where)
        right = str(row.extras.get("answer"))
        if not (right.isascii() and right.isdigit() and int(right) < len(options)):
            raise SourceError(
                f"{row.where}: column answer is no number of one of {len(options)} options; mend "
                "or remove it"
            )
        return Scored(option_match(answer, options[int(right)]))
