"""How held-out answers are counted: by a model whose every answer is known."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from viq.core.codes import Codes
from viq.core.types import ViqError
from viq.data.batching.code_batches import CodeCorpus, CodesRef
from viq.data.sources.base import Row, Source
from viq.eval.vlm import held_out
from viq.eval.vlm.held_out import evaluate, lines
from viq.metrics.answers import is_right, words_f1

COLORS = ("red", "green", "blue")


class Store(Source):
    """Samples whose first code tells the colour; two questions each, the second on the first."""

    name = "colors"

    def __init__(self, samples: int, images: int = 1) -> None:
        self.samples, self.images = samples, images

    def __len__(self) -> int:
        return self.samples

    def keys(self) -> Iterator[str]:
        return (f"{number}.png" for number in range(self.samples))

    def _row(self, index: int) -> Row:
        code = Codes(np.full((2, 2, 4), index % 3, np.uint16), size=(32, 32))
        said = [
            ("human", "<image>\n" * self.images + "Which color?"),
            ("gpt", COLORS[index % 3].upper() + "."),
            ("human", "And in short?"),
            ("gpt", COLORS[index % 3][0]),
        ]
        turns = [{"from": who, "value": text} for who, text in said]
        return Row(
            key=f"{index}.png",
            images=(CodesRef(code),) * self.images,
            extras={"conversations": turns, "kinds": ["color", "letter"], "task": "colors"},
            where=f"colors: {index}",
        )


class Seer:
    """A model, and its processor, that reads the first code, or for letters the turn before."""

    device = "cpu"

    def __call__(self, text: Any, codes: Any, keys: Any) -> "Seer":
        self.made: list[str] = []
        for messages, seen in zip(text, codes, strict=True):
            asked = messages[-1]["content"]
            if "short" in asked:
                assert [message["role"] for message in messages] == ["user", "assistant", "user"]
                self.made.append(messages[1]["content"][0].lower())
            else:
                self.made.append(COLORS[int(seen[0].ids[0, 0, 0])] if seen else "none")
        return self

    def to(self, device: str) -> dict[str, Any]:
        return {"made": self.made}

    def generate(self, inputs: dict[str, Any], **options: Any) -> tuple[list[str], torch.Tensor]:
        """In place of `generate_with_confidence`: sure of letters alone."""
        assert options == {"max_new_tokens": 64, "do_sample": False}
        return inputs["made"], torch.tensor([0.95 if len(x) == 1 else 0.25 for x in inputs["made"]])

    def answers(self, generated: list[str], inputs: Any) -> list[str]:
        return generated


@pytest.fixture(autouse=True)
def seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held_out, "generate_with_confidence", Seer.generate)


def asked(store: Store, **options: Any) -> dict[str, Any]:
    train, held = (CodeCorpus("colors", store, split) for split in ("train", "held-out"))  # type: ignore[arg-type]
    seer = Seer()
    return evaluate(seer, seer, [held], [train], batch=7, **options)


def test_answers_that_need_the_image_fail_without_it() -> None:
    found = asked(Store(900))
    color, letter = found["kinds"]["colors/color"], found["kinds"]["colors/letter"]
    assert color["questions"] == letter["questions"] > 60
    assert color["right"]["percent"] == 100 == color["words_f1"]
    # Another sample has the same colour in one of three; letters are told by the turn before.
    assert 10 < color["other_images"]["percent"] < 60
    assert letter["right"]["percent"] == letter["other_images"]["percent"] == 100
    assert 15 < color["most_frequent"]["percent"] < 55
    everything = found["kinds"]["all"]
    assert everything["questions"] == found["questions"] == 2 * color["questions"]
    assert found["examples"]["colors/color"][0]["question"] == "Which color?"
    table = lines(found)
    assert len(table) == 8 and "100.0" in table[1]


def test_right_answers_by_confidence() -> None:
    found = asked(Store(900))
    unsure, sure = found["calibration"]
    assert (unsure["from"], unsure["to"]) == (0.2, 0.3)
    assert (sure["from"], sure["to"], sure["confidence"]) == (0.9, 1.0, 0.95)
    assert sure["questions"] == found["kinds"]["colors/letter"]["questions"]
    assert unsure["questions"] + sure["questions"] == found["questions"]
    assert "0.9 to 1.0" in lines(found)[-1] and "by confidence" in lines(found)[-3]


def test_kinds_limit_and_text_alone() -> None:
    found = asked(Store(900), by="task", limit=30)
    assert list(found["kinds"]) == ["all", "colors/colors"]
    assert found["questions"] == 30
    assert list(asked(Store(900), by="gone")["kinds"]) == ["all", "colors"]
    text = asked(Store(900, images=0))["kinds"]["colors/color"]
    assert text["other_images"] is None and text["right"]["percent"] == 0
    assert "-" in lines(asked(Store(900, images=0)))[1]
    with pytest.raises(ViqError, match="give more samples"):
        asked(Store(0))


def test_right_and_words() -> None:
    assert is_right("A red  cup.", "a Red cup")
    assert not is_right("a red cup", "a red cups")
    assert words_f1("a red cup", "a cup") == pytest.approx(0.8)
    assert words_f1("red", "blue") == 0 == words_f1("red", "")
    assert words_f1("yes yes no", "yes no no") == pytest.approx(2 / 3)
