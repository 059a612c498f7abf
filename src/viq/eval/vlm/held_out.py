"""How often a multimodal language model answers right, on samples it was not trained on.

Questions come from the held-out tenth of stores of codes. Each is asked with the true turns before
it, and answered greedily by `generate`, as in a chat. Two figures stand beside the model's, as much
of an answer may be guessed from the question: the same model, shown the images of another sample,
and the most frequent answer of the training samples to the same words.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch

from viq.core.codes import Codes
from viq.core.types import ViqError
from viq.data.batching.code_batches import CodeCorpus
from viq.data.text.conversations import IMAGE_PLACEHOLDER, split_system
from viq.metrics.answers import is_right, words_f1
from viq.metrics.intervals import of_share
from viq.mllm.confidence import generate_with_confidence

_FREQUENT_FROM = 20_000  # training samples of a store at most
_ALL = "all"
_EXAMPLES = 3  # kept of each kind


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """One question; `sample` is that of the store, `messages` ends with the question."""

    sample: tuple[str, str]
    kind: str
    messages: tuple[dict[str, str], ...]
    codes: tuple[Codes, ...]
    answer: str

    @property
    def question(self) -> str:
        return self.messages[-1]["content"].replace(IMAGE_PLACEHOLDER, "").strip()

    @property
    def alike(self) -> tuple[tuple[str, str], ...]:
        """What makes questions the same: their words, or else their kind."""
        return (self.kind, self.question), (self.kind, "")


def evaluate(
    model: Any,
    processor: Any,
    held_out: Sequence[CodeCorpus],
    train: Sequence[CodeCorpus],
    *,
    by: str = "kinds",
    limit: int = 500,
    batch: int = 32,
    max_new_tokens: int = 64,
    seed: int = 0,
    progress: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Ask held-out questions of stores.

    Args:
        model, processor: as `viq.mllm.loading.load_mllm` gives them.
        held_out, train: the two parts of the same stores.
        by: column that names kinds of questions: a text, or a list with a name an answer.
        limit: questions of each store at most; samples are drawn by `seed`.
        batch: questions at a time.
        progress: called after each answer.

    Returns:
        `kinds`: by kind, and for "all": `questions`; `right`, `other_images`, `most_frequent`, each
        `percent` with its 95% `interval`, of answers that are equal but for case, spaces and a
        full stop at the end, `other_images` None where there are no other images; and `words_f1`,
        percent, the harmonic mean of precision and recall of words (SQuAD's), averaged.
        `calibration`: by how sure the model was (`viq.mllm.confidence`), in tenths: `from`, `to`,
        `questions`, mean `confidence`, and `right` as above; those without questions are left out.
        `examples`: by kind, some questions with `true` and `answer`.

    Raises:
        ViqError: no question among the samples.
    """
    asked: list[_Asked] = []
    for corpus in held_out:
        rng = random.Random(seed)
        order = rng.sample(range(corpus.length), corpus.length)
        found = (q for index in order for q in _questions(corpus, index, by, rng))
        asked += islice(found, limit)
    if not asked:
        raise ViqError("no held-out sample can be asked about: give more samples")
    frequent = _frequent(train, by, seed)
    others = _images_of_others(asked)
    # Like with like, so that little of a batch is padding.
    order = sorted(range(len(asked)), key=lambda i: (asked[i].kind, len(asked[i].answer)))

    def answers(
        shown: Mapping[int, Sequence[Codes]], done: Callable[[], None]
    ) -> dict[int, tuple[str, float]]:
        """Of each question, with these images, and how sure the model is."""
        numbers = [i for i in order if i in shown]
        found: dict[int, tuple[str, float]] = {}
        for start in range(0, len(numbers), batch):
            group = numbers[start : start + batch]
            inputs = processor(
                text=[list(asked[i].messages) for i in group],
                codes=[list(shown[i]) for i in group],
                keys=["/".join(asked[i].sample) for i in group],
            ).to(model.device)
            ids, sure_B = generate_with_confidence(
                model, inputs, max_new_tokens=max_new_tokens, do_sample=False
            )
            texts = processor.answers(ids, inputs)
            for i, text, sure in zip(group, texts, sure_B.tolist(), strict=True):
                found[i] = text, sure
                done()
        return found

    with torch.inference_mode():
        own = answers({i: question.codes for i, question in enumerate(asked)}, progress)
        swapped = answers(others, lambda: None)

    by_kind: dict[str, list[int]] = defaultdict(list)
    for i, question in enumerate(asked):
        by_kind[_ALL].append(i)
        by_kind[question.kind].append(i)
    return {
        "questions": len(asked),
        "kinds": {
            kind: _summary(
                [asked[i].answer for i in numbers],
                [own[i][0] for i in numbers],
                [(asked[i].answer, swapped[i][0]) for i in numbers if i in swapped],
                [frequent(asked[i]) for i in numbers],
            )
            for kind, numbers in sorted(by_kind.items(), key=lambda item: item[0] != _ALL)
        },
        "calibration": _calibration([(q.answer, *own[i]) for i, q in enumerate(asked)]),
        "examples": {
            kind: [
                {"question": asked[i].question, "true": asked[i].answer, "answer": own[i][0]}
                for i in numbers[:_EXAMPLES]
            ]
            for kind, numbers in sorted(by_kind.items())
            if kind != _ALL
        },
    }


def lines(result: dict[str, Any]) -> list[str]:
    """The result of `evaluate` as text."""
    kinds = result["kinds"]
    wide = max(12, *(len(kind) for kind in kinds)) + 2
    names = ("right", "other images", "most frequent")
    found = [
        f"right answers to held-out questions, % ± half of the 95% interval\n{'':<{wide}}"
        f"{'questions':>10}" + "".join(f"{name:>16}" for name in names) + f"{'words F1':>10}"
    ]
    for kind, row in kinds.items():
        cells = [row[name.replace(" ", "_")] for name in names]
        texts = ["-" if c is None else f"{c['percent']:.1f} ± {c['interval']:.1f}" for c in cells]
        found.append(
            f"{kind:<{wide}}{row['questions']:>10,}"
            + "".join(f"{text:>16}" for text in texts)
            + f"{row['words_f1']:>10.1f}"
        )
    found += ["", f"{'by confidence':<{wide}}{'questions':>10}{'right':>16}"]
    for row in result["calibration"]:
        name, right = f"{row['from']:.1f} to {row['to']:.1f}", row["right"]
        share = f"{right['percent']:.1f} ± {right['interval']:.1f}"
        found.append(f"{name:<{wide}}{row['questions']:>10,}{share:>16}")
    return found


def _calibration(answers: Sequence[tuple[str, str, float]]) -> list[dict[str, Any]]:
    """Of true answers, given ones and confidences, by tenths of confidence."""
    tenths = defaultdict(list)
    for true, given, sure in answers:
        tenths[min(int(10 * sure), 9)].append((is_right(true, given), sure))
    return [
        {
            "from": tenth / 10,
            "to": (tenth + 1) / 10,
            "questions": len(seen),
            "confidence": round(sum(sure for _, sure in seen) / len(seen), 3),
            "right": of_share(sum(right for right, _ in seen), len(seen)),
        }
        for tenth, seen in sorted(tenths.items())
    ]


def _summary(
    true: Sequence[str],
    own: Sequence[str],
    swapped: Sequence[tuple[str, str]],
    frequent: Sequence[str],
) -> dict[str, Any]:
    def share(pairs: Sequence[tuple[str, str]]) -> dict[str, float] | None:
        return of_share(sum(is_right(*pair) for pair in pairs), len(pairs)) if pairs else None

    f1 = sum(map(words_f1, true, own)) / len(true)
    return {
        "questions": len(true),
        "right": share(list(zip(true, own, strict=True))),
        "other_images": share(swapped),
        "most_frequent": share(list(zip(true, frequent, strict=True))),
        "words_f1": round(100 * f1, 1),
    }


def _questions(corpus: CodeCorpus, index: int, by: str, rng: random.Random) -> Iterator[_Asked]:
    try:
        row, example = corpus.row(index), corpus.example(index, rng)
    except ViqError:
        return
    messages = tuple({"role": turn.role, "content": turn.text} for turn in example.chat.turns)
    _, turns = split_system(example.chat.turns)
    first, said = len(messages) - len(turns), row.extras
    named = said.get(by)
    # Questions of other forms come in an order of their own.
    in_order = bool(said.get("conversations") or said.get("messages"))
    for number in range(len(turns) // 2):
        kind = ""
        if isinstance(named, str):
            kind = named
        elif isinstance(named, list) and in_order and len(named) == len(turns) // 2:
            kind = str(named[number])
        before = messages[: first + 2 * number + 1]
        seen = sum(message["content"].count(IMAGE_PLACEHOLDER) for message in before)
        yield _Asked(
            sample=(corpus.name, row.key),
            kind=f"{corpus.name}/{kind}" if kind else corpus.name,
            messages=before,
            codes=example.codes[:seen],
            answer=turns[2 * number + 1].text,
        )


def _images_of_others(asked: Sequence[_Asked]) -> dict[int, tuple[Codes, ...]]:
    """By number of the question: images of the next sample of its store with as many, if any."""
    alike: dict[tuple[str, int], dict[tuple[str, str], tuple[Codes, ...]]] = defaultdict(dict)
    for question in asked:
        alike[question.sample[0], len(question.codes)].setdefault(question.sample, question.codes)
    following = {
        (count, sample): samples[after]
        for (_, count), samples in alike.items()
        for sample, after in zip(samples, [*samples][1:] + [*samples][:1], strict=True)
        if count and after != sample
    }
    keys = [(len(question.codes), question.sample) for question in asked]
    return {i: following[key] for i, key in enumerate(keys) if key in following}


def _frequent(train: Sequence[CodeCorpus], by: str, seed: int) -> Callable[[_Asked], str]:
    """Gives the most frequent training answer to the words of a question, else to its kind."""
    counts: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for corpus in train:
        rng = random.Random(seed)
        few = rng.sample(range(corpus.length), min(corpus.length, _FREQUENT_FROM))
        for index in few:
            for question in _questions(corpus, index, by, rng):
                for key in question.alike:
                    counts[key][question.answer] += 1

    def most(question: _Asked) -> str:
        for key in question.alike:
            if found := counts.get(key):
                return found.most_common(1)[0][0]
        return ""

    return most
