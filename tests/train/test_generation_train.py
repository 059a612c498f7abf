"""Training of models that draw, on pictures that are drawn as it goes, in codes of a transform."""

import json
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from viq.core.types import ViqError
from viq.data.synthetic.captions import CaptionedShapes
from viq.mllm.generation import Sampling
from viq.mllm.text_to_image import TextToImagePipeline
from viq.models.tokenizer.loading import load
from viq.recipes.generation import debug, transform
from viq.train.generation.drawn_pairs import DrawnPairs
from viq.train.generation.run import GenerationRun
from viq.weights.checkpoint import read_weights

pytest.importorskip("transformers")
pytest.importorskip("accelerate")
SIZE = (32, 32)


def test_each_picture_comes_about_so_often() -> None:
    corpus = DrawnPairs(load("viq-tiny"), SIZE, uses=3, caption_ratio=0.5)
    numbers = Counter(corpus.number(index) for index in range(6000))
    assert max(numbers) <= 2000 + 256 and min(numbers) < 20
    old = [count for number, count in numbers.items() if 256 <= number < 1800]
    assert 2.9 < sum(old) / (1800 - 256) < 3.1 and max(old) < 14
    late = {corpus.number(index) for index in range(5900, 6000)}
    assert min(late) > 1900  # none comes back long after
    once = DrawnPairs(load("viq-tiny"), SIZE)
    assert [once.number(index) for index in range(5)] == [0, 1, 2, 3, 4]
    pair, drawn = once.pair(3), CaptionedShapes("train", SIZE).pair(3)
    assert pair.caption == drawn.caption and pair.codes.size == SIZE
    assert once.example(3, random.Random(0)).pair is pair  # encoded once
    assert dict(once.grids) == {(2, 2): 1} and pair.caption in once.captions


def test_a_run_goes_on_where_it_was_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And tells its loss on pictures that it is not trained on; what it gives draws."""
    recipe = replace(debug(), tokenizer="viq-transform", uses=2, size=SIZE)

    def run(name: str) -> GenerationRun:
        return GenerationRun(recipe=recipe, out=tmp_path / name, hidden=True)

    def stop(self: object, record: dict[str, Any]) -> None:
        if record["step"] == 4:
            raise InterruptedError

    monkeypatch.setattr("viq.train.generation.run._HELD_OUT", 4)
    whole = run("whole").train()
    with monkeypatch.context() as patch:
        patch.setattr("viq.train.monitor.Journal.log", stop)
        with pytest.raises(InterruptedError):
            run("cut").train()
    cut = run("cut").train()
    given, wanted = (read_weights(path / "model.safetensors") for path in (cut, whole))
    assert given.keys() == wanted.keys() and "head.quantizer.scale" in given
    assert all(torch.equal(value, wanted[name]) for name, value in given.items())
    log = [
        json.loads(line) for line in (tmp_path / "whole/draw/log.jsonl").read_text().splitlines()
    ]
    assert [line["step"] for line in log if "held_out/codes" in line] == [3, 6]
    assert not (tmp_path / "cut/codes.parquet").exists()
    pipeline = TextToImagePipeline.load(tmp_path / "cut")
    (image,) = pipeline.generate(["a red circle"], Sampling(guidance=2), size=(40, 24))
    assert image.size == (24, 40)


def test_recipes() -> None:
    assert transform().uses and transform().tokenizer == "viq-transform"
    with pytest.raises(ViqError, match="uses must be 0 or more"):
        replace(debug(), uses=-1)
