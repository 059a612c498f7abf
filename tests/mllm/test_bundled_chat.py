"""The language model that comes with the package: it reads the codes of viq-tiny, and looks."""

import random

import pytest

import viq
from viq.core.files import BUNDLED, bundled
from viq.data.corpora.synthetic_corpus import SyntheticCorpus
from viq.mllm.chat import ask
from viq.mllm.loading import load_mllm

NAME = "viq-tiny-chat"


def test_it_reads_the_codes_of_the_bundled_tokenizer() -> None:
    model, processor = load_mllm(NAME)
    tokenizer = viq.load(model.config.embedder.tokenizer)
    assert processor.fingerprint == model.config.embedder.fingerprint == tokenizer.fingerprint
    assert sum(path.stat().st_size for path in (BUNDLED / NAME).iterdir()) < 8 << 20


def test_transformers_classes_take_its_name(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.chdir(tmp_path)
    model = viq.ViQForConditionalGeneration.from_pretrained(NAME)
    processor = viq.ViQProcessor.from_pretrained(NAME)
    assert processor.fingerprint == model.config.embedder.fingerprint


def test_it_sees_colors_and_counts_in_pictures_it_was_not_trained_on() -> None:
    model, processor = load_mllm(NAME)
    tokenizer = viq.load("viq-tiny")
    corpus = SyntheticCorpus("plain", "held-out", sides=(48, 112))
    right = {"plain/color_of": [0, 0], "plain/count": [0, 0]}
    for index in range(60):
        example = corpus.example(index, random.Random(index))
        (code,) = tokenizer.encode([example.pictures[0]])
        for number, kind in enumerate(example.kinds):
            if kind in right:
                question, answer = example.chat.turns[2 * number : 2 * number + 2]
                text = question.text.replace("<image>", "").strip()
                inputs = processor(text=text, codes=[code])
                found = processor.answers(model.generate(**inputs, max_new_tokens=8), inputs)[0]
                right[kind][0] += found == answer.text
                right[kind][1] += 1
    for kind, (hits, asked) in right.items():
        # Far above what guessing gives: one of twelve colours, one of two numbers.
        assert asked >= 20 and hits / asked > {"plain/color_of": 0.5, "plain/count": 0.7}[kind], (
            kind
        )


def test_a_folder_of_its_name_goes_before(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    assert bundled(NAME) == BUNDLED / NAME
    assert bundled("gone") is None and bundled(f"./{NAME}") is None and bundled("..") is None
    monkeypatch.chdir(tmp_path)
    (tmp_path / NAME).mkdir()
    assert bundled(NAME) is None


def test_chat_without_a_model_of_ones_own(tmp_path) -> None:  # type: ignore[no-untyped-def]
    from PIL import Image

    Image.new("RGB", (64, 64), (200, 30, 30)).save(tmp_path / "a.png")
    model, processor = load_mllm(NAME)
    answer = ask(model, processor, [tmp_path / "a.png"], "What is this?", max_new_tokens=16)
    assert answer
