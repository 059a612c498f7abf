"""Answers as they are written, answers that may be withheld, and the stop button in both."""

from typing import Any

import pytest
from web_client import Visitor

from viq.core.files import DEFAULT_CHAT
from viq.report.samples import PICTURES
from viq.web.work import Stopped, Work

pytest.importorskip("transformers")
QUESTION = "Describe the image."


class Told(Work):
    """Work that is stopped by its visitor after so many events of a kind."""

    def __init__(self, kind: str = "", most: int = 0) -> None:
        super().__init__("", lambda work: {}, 60)
        self._kind, self._most = kind, most

    def tell(self, **event: Any) -> None:
        super().tell(**event)
        if self._kind and len(self.all(self._kind)) == self._most:
            self.stop()

    def all(self, kind: str) -> list[str]:
        return [event[kind] for event in self.events if kind in event]


@pytest.fixture(scope="module")
def talker() -> Any:
    from viq.web.asking import Talker

    return Talker(DEFAULT_CHAT, "cpu")


@pytest.fixture
def seen(app: Any, client: Visitor) -> Any:
    return app.state.viq.shelf.get(client.bring((PICTURES / "shapes.png").read_bytes()))


@pytest.fixture
def whole(talker: Any, seen: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    """The answer, of a model that withholds none any more."""
    monkeypatch.setattr(talker._processor, "min_confidence", 0.0)
    work = Told()
    said = talker.answer(seen, [], QUESTION, 256, work)
    texts = work.all("text")
    assert len(said.split()) > 5 and "".join(texts).strip() == said
    assert len(texts) >= len(said.split())  # word by word
    return said


def test_a_stopped_answer_is_what_there_is_of_it(talker: Any, seen: Any, whole: str) -> None:
    work = Told("text", 3)
    said = talker.answer(seen, [], QUESTION, 256, work)
    assert said and whole.startswith(said) and len(said) < len(whole) / 2


def test_no_word_of_what_may_be_withheld(
    talker: Any, seen: Any, whole: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one piece when it is decided; tokens are counted until then, and stopping still works."""
    from viq.web import asking

    monkeypatch.setattr(asking, "_EVERY", 0.0)
    for least, wanted in ((1e-9, whole), (1.0, "I don't know.")):
        monkeypatch.setattr(talker._processor, "min_confidence", least)
        work = Told()
        assert talker.answer(seen, [], QUESTION, 256, work) == wanted
        assert work.all("text") == [wanted]
        assert "answering, 3 tokens so far" in work.all("stage")
    monkeypatch.setattr(talker._processor, "min_confidence", 1e-9)
    work = Told("stage", 4)
    with pytest.raises(Stopped, match="stopped"):
        talker.answer(seen, [], QUESTION, 256, work)
    assert not work.all("text") and work.all("stage")[-1] == "answering, 3 tokens so far"
