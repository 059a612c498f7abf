"""Models that draw: sequences, drawing as trained, and commands."""

import json
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from typer.testing import CliRunner

from viq.cli import app
from viq.core.codes import Codes
from viq.core.types import IGNORE, IMAGE_TOKEN, ViqError
from viq.data.batching.generation_batches import (
    VISION_END,
    VISION_START,
    CodePair,
    GenerationBatch,
    GenerationStream,
    PairCorpus,
    add_image_tokens,
    encode_description,
    encode_generation,
    generation_prompt,
    instruction_prompt,
    open_pairs,
    pack_generation,
    parse_size,
    size_tokens,
    write_pairs,
)
from viq.data.batching.mixture import Mixture, Part, Position
from viq.data.sources.open import open_source
from viq.data.text.text_tokenizer import train_text_tokenizer
from viq.jobs.encode import encode
from viq.mllm.generation import CodeGenerator, CodeGeneratorConfig, Sampling
from viq.mllm.level_head import LevelHead
from viq.mllm.text_to_image import TextToImagePipeline
from viq.models.language.packed import packed_hidden
from viq.models.language.vision_language import LanguageConfig, build_language
from viq.models.tokenizer.loading import load
from viq.recipes.generation import debug
from viq.store.columns import Extras
from viq.store.rows import CodesWriter, StoreInfo
from viq.train import checkpoints as state
from viq.train.generation.run import GenerationRun
from viq.weights.checkpoint import read_weights

pytest.importorskip("transformers")
CAPTIONS = ["a red circle", "a blue square left of a green ring", "an orange star"]
LIKELIEST = Sampling(temperature=0)


def codes(rows: int, cols: int, seed: int = 0) -> Codes:
    ids = np.random.default_rng(seed).integers(0, 64_000, (rows, cols, 4)).astype(np.uint16)
    return Codes(ids, (16 * rows, 16 * cols))


@pytest.fixture(scope="module")
def words():
    tokenizer = train_text_tokenizer([*CAPTIONS, "Draw. Describe the image. 0123456789x"] * 3, 400)
    add_image_tokens(tokenizer)
    return tokenizer


@pytest.fixture(scope="module")
def model(words) -> CodeGenerator:
    torch.manual_seed(0)
    shape = LanguageConfig(width=32, depth=2, heads=2, mlp_width=64)
    model = CodeGenerator(
        build_language(shape, len(words)),
        CodeGeneratorConfig(levels=(8, 8, 8, 5, 5, 5), head_width=16),
    )
    with torch.no_grad():  # wide enough apart that the likeliest is never a matter of rounding
        for parameter in model.parameters():
            parameter.mul_(4 if parameter.ndim > 1 else 1)
    return model.eval()


# Sequences


def test_labels_by_hand(words) -> None:
    pair = CodePair(caption="a red circle", codes=codes(2, 3))
    written = encode_generation(pair, words)
    scored = [i for i in written.labels if i != IGNORE]
    assert words.decode(scored) == f"2x3{VISION_START}{VISION_END}<|im_end|>"
    assert written.ids.count(IMAGE_TOKEN) == 6
    text = words.decode([i for i in written.ids if i != IMAGE_TOKEN])
    assert text.startswith("<|im_start|>user\nDraw a red circle.<|im_end|>")
    assert written.ids[
        : len(generation_prompt("a red circle", (2, 3), words))
    ] == generation_prompt("a red circle", (2, 3), words)
    assert "red" not in words.decode(encode_generation(pair, words, unconditional=True).ids[:12])
    read = encode_description(pair, words)
    assert words.decode([i for i in read.labels if i != IGNORE]) == "a red circle<|im_end|>"
    at = read.ids.index(IMAGE_TOKEN)
    around = [read.ids[at - 1], read.ids[at + 6]]
    assert words.convert_ids_to_tokens(around) == [VISION_START, VISION_END]
    pack = pack_generation([written, read])
    assert pack.scored_T.tolist() == [True] * 6 + [False] * 6
    assert pack.counts["scored"] == pack.counts["answers"] + 6
    assert pack.targets_L[pack.lengths[0] - 1] == IGNORE  # nothing across two samples


INFO = StoreInfo(model="viq-test", fingerprint="00000000000000ab", levels=(8, 8, 8, 5, 5, 5))


def test_packs_go_on_from_any_step_in_any_number_of_processes(words, tmp_path: Path) -> None:
    pairs = [CodePair(caption=CAPTIONS[i % 3], codes=codes(1, 2, i)) for i in range(11)]
    for part in (0, 1):
        write_pairs(tmp_path / f"{part}.parquet", INFO, pairs[5 * part : 5 + 6 * part])

    def stream(lanes: Sequence[int], positions: Mapping[int, Position]) -> GenerationStream:
        stores = [open_pairs(tmp_path / f"{part}.parquet", tmp_path / "cache") for part in (0, 1)]
        corpus = PairCorpus(stores, caption_ratio=0.3, caption_dropout=0.3)
        assert (corpus.samples, corpus.grids, corpus.captions) == (
            [5, 6], {(1, 2): 11}, set(CAPTIONS),
        )  # fmt: skip
        mixture = Mixture([Part(corpus=corpus, weight=1)], seed=1, lanes=2)
        return GenerationStream(mixture, words, samples=4, lanes=lanes, positions=positions)

    def told(packs: Sequence[GenerationBatch]) -> list[Any]:
        return [(pack.ids_L.tolist(), pack.codes_TS.tolist()) for pack in packs]

    whole = [(told(micros), reached) for micros, reached in stream((0, 1), {}).steps(0, 6)]
    for step in range(1, 6):
        for lane in (0, 1):
            reached = {
                int(k): Position.from_json(v.as_json()) for k, v in whole[step - 1][1].items()
            }
            resumed = [told(micros) for micros, _ in stream((lane,), reached).steps(step, 6)]
            assert resumed == [micros[lane : lane + 1] for micros, _ in whole[step:]]
    packs = [pack for micros, _ in stream((0, 1), {}).steps(0, 11) for pack in micros]
    seen = Counter(str(p) for pack in packs for p in pack.codes_TS.view(-1, 2, 4).tolist())
    assert len(packs) * 4 == 88 and set(seen.values()) == {8}  # 8 epochs of 11 pairs
    assert {p.scored_T.all().item() for p in packs} == {True, False}  # some describe
    lengths = {len(p.ids_L) for p in packs}
    assert len(lengths) > 3


def test_samples_do_not_see_each_other(model: CodeGenerator, words) -> None:
    pairs = [CodePair(caption=c, codes=codes(2, 2, i)) for i, c in enumerate(CAPTIONS)]
    samples = [encode_generation(pairs[0], words), encode_description(pairs[1], words),
               encode_generation(pairs[2], words)]  # fmt: skip

    def nats(chosen) -> torch.Tensor:
        pack = pack_generation(chosen)
        sums = model(
            pack.ids_L, pack.targets_L, pack.lengths, pack.codes_TS, pack.grids_hw, pack.scored_T
        )
        return torch.stack([sums["text"], sums["codes"]])

    alone = torch.stack([nats([sample]) for sample in samples]).sum(0)
    torch.testing.assert_close(nats(samples), alone, rtol=1e-4, atol=1e-3)


def test_mixed_precision(model: CodeGenerator, words) -> None:
    pack = pack_generation(
        [encode_generation(CodePair(caption="a red circle", codes=codes(2, 2)), words)]
    )
    arguments = (
        pack.ids_L, pack.targets_L, pack.lengths, pack.codes_TS, pack.grids_hw, pack.scored_T,
    )  # fmt: skip
    exact = model(*arguments)["next"]
    with torch.autocast("cpu", torch.bfloat16):
        rough = model(*arguments)["next"]
    rough.backward()
    assert rough.dtype == torch.float32 and rough.item() == pytest.approx(exact.item(), rel=0.05)


@torch.no_grad()
def test_drawing_follows_what_was_trained(model: CodeGenerator, words) -> None:
    """With caches and padded prompts, each patch is the likeliest given those before it, packed."""
    grid = (2, 3)
    prompts = [generation_prompt(caption, grid, words) for caption in CAPTIONS]
    assert len({len(p) for p in prompts}) > 1
    unconditional = generation_prompt(None, grid, words)
    drawn = model.generate(prompts, unconditional, grid, LIKELIEST)
    assert drawn.shape == (3, 2, 3, 4) and int(drawn.max()) < 64_000
    assert isinstance(model.head, LevelHead)
    seen: list[torch.Tensor] = []
    hook = model.head.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    for caption, ids in zip(CAPTIONS, drawn, strict=True):
        item = Codes(ids.numpy().astype(np.uint16), (32, 48))
        pack = pack_generation([encode_generation(CodePair(caption=caption, codes=item), words)])
        model(pack.ids_L, pack.targets_L, pack.lengths, pack.codes_TS, pack.grids_hw, pack.scored_T)
        levels = model.head.sample(seen[-1], None, LIKELIEST, None)
        assert torch.equal(model.head.codes_of(levels), pack.codes_TS)
    hook.remove()
    # A picture does not depend on those drawn beside it, nor guidance on itself.
    assert torch.equal(model.generate(prompts[1:2], unconditional, grid, LIKELIEST), drawn[1:2])
    guided = model.generate(
        [unconditional], unconditional, grid, Sampling(temperature=0, guidance=4)
    )
    assert torch.equal(guided, model.generate([unconditional], unconditional, grid, LIKELIEST))
    assert packed_hidden(model.language, torch.randn(4, 32), (4,)).shape == (4, 32)


@torch.no_grad()
def test_a_size_is_chosen_word_by_word(model: CodeGenerator, words) -> None:
    allowed, end = size_tokens(words)
    assert words.decode(allowed) == "0123456789x" and words.decode([end]) == VISION_START
    prompts = [instruction_prompt(caption, words) for caption in CAPTIONS]
    chosen = model.generate_text(prompts, allowed, end, 3, LIKELIEST)
    embed, head = model.language.get_input_embeddings(), model.language.get_output_embeddings()
    for prompt, said in zip(prompts, chosen, strict=True):
        ids = [*prompt, *said]
        hidden_LE = packed_hidden(model.language, embed(torch.tensor(ids)), (len(ids),))
        logits = head(hidden_LE[len(prompt) - 1 :])[:, [*allowed, end]]
        best = [[*allowed, end][i] for i in logits.argmax(-1)]
        assert best[: len(said)] == said and len(said) <= 3
        assert len(said) == 3 or best[-1] == end
    for text, grid in (("6x8", (6, 8)), ("12x1", (12, 1)), ("0x3", None), ("66", None),
                       ("", None), ("6x", None)):  # fmt: skip
        assert parse_size(words.encode(text, add_special_tokens=False), words) == grid


def test_pictures_of_sizes_of_their_own(
    model: CodeGenerator, words, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each picture has the size its caption chose, and is the one drawn when asked for that size;
    nonsense, and more than was ever seen, become the usual size."""
    config = replace(model.config, grid=(1, 2), most_patches=6)
    monkeypatch.setattr(model, "config", config)
    pipeline = TextToImagePipeline(model, words, load("viq-tiny"))
    marks = ["2x3", "x2x", "3x1", "4x4"]
    said = [words.encode(mark, add_special_tokens=False) for mark in marks]
    monkeypatch.setattr(model, "generate_text", lambda prompts, *_: said[: len(prompts)])
    captions = [*CAPTIONS, "a red ring"]
    drawn = pipeline.generate_codes(captions, LIKELIEST)
    assert [item.grid for item in drawn] == [(2, 3), (1, 2), (3, 1), (1, 2)]
    assert [item.size for item in drawn] == [(32, 48), (16, 32), (48, 16), (16, 32)]
    for caption, item in zip(captions, drawn, strict=True):
        (alone,) = pipeline.generate_codes([caption], LIKELIEST, size=item.size)
        assert np.array_equal(alone.ids, item.ids)
    assert pipeline.generate_codes(captions[:1], LIKELIEST, size=(20, 40))[0].size == (20, 40)
    parts: list[np.ndarray] = []
    (told,) = pipeline.generate_codes(
        captions[:1], LIKELIEST, written=lambda ids_BTS, grid: parts.append(ids_BTS)
    )
    assert [part.shape for part in parts] == [(1, n, 4) for n in range(1, 7)]
    for part in parts:  # what was written stays
        assert np.array_equal(part[0], told.ids.reshape(6, 4)[: part.shape[1]])


@torch.no_grad()
def test_of_several_pictures_the_best_described_is_kept(
    model: CodeGenerator, words, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = TextToImagePipeline(model, words, load("viq-tiny"))
    seen: list[tuple[str, list[Codes]]] = []
    best = pipeline._best

    def recorded(caption: str, candidates: list[Codes]) -> Codes:
        seen.append((caption, candidates))
        return best(caption, candidates)

    monkeypatch.setattr(pipeline, "_best", recorded)
    kept = pipeline.generate_codes(CAPTIONS, Sampling(candidates=3), size=(32, 16))
    assert [caption for caption, _ in seen] == CAPTIONS
    for chosen, (caption, candidates) in zip(kept, seen, strict=True):
        assert len({codes.ids.tobytes() for codes in candidates}) == 3
        nats = []
        for codes in candidates:
            pack = pack_generation(
                [encode_description(CodePair(caption=caption, codes=codes), words)]
            )
            losses = model(
                pack.ids_L, pack.targets_L, pack.lengths, pack.codes_TS, pack.grids_hw,
                pack.scored_T,
            )  # fmt: skip
            nats.append(float(losses["text"]))
        assert chosen is candidates[int(np.argmin(nats))] and len(set(nats)) == 3
    with pytest.raises(ViqError, match="use 1 or more"):
        Sampling(candidates=0)


@torch.no_grad()
def test_a_model_from_before_there_were_other_codes_is_read(
    model: CodeGenerator, words, tmp_path: Path
) -> None:
    model.save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    old = {"format", "levels", "tokenizer", "fingerprint", "grid", "most_patches",
           "head_width", "digest"}  # fmt: skip
    new = {"transform": None, "semantic": None, "detail_width": 0}
    assert {name: values.pop(name) for name in new} == new and values.keys() <= old, values.keys()
    (tmp_path / "config.json").write_text(json.dumps(values))
    again = CodeGenerator.from_pretrained(tmp_path)
    names = {name.split(".")[0] for name in read_weights(tmp_path / "model.safetensors")}
    assert names == {"read", "ahead", "head"}
    prompt, free = (generation_prompt(caption, (2, 2), words) for caption in (CAPTIONS[0], None))
    drawn = [each.generate([prompt], free, (2, 2), LIKELIEST) for each in (model, again)]
    assert torch.equal(*drawn)


# Commands


def test_a_store_is_drawn_from_as_a_file_is(tmp_path: Path) -> None:
    """Two sizes: the frequent one is the usual one, the larger one bounds what is chosen."""
    tokenizer = load("viq-tiny")
    lines = []
    for number, (height, width) in enumerate([(32, 32), (32, 48), (32, 32)]):
        tiny.picture(number, height, width).save(tmp_path / f"{number}.png")
        lines.append(json.dumps({"image": f"{number}.png", "caption": CAPTIONS[number]}))
    (tmp_path / "data.jsonl").write_text("\n".join(lines) + "\n")
    for out in ("codes", "codes.parquet"):
        encode(tokenizer, open_source(tmp_path / "data.jsonl"), tmp_path / out, workers=1)
    stores = [open_pairs(tmp_path / name, tmp_path / "c") for name in ("codes", "codes.parquet")]
    for store in stores:
        assert store.data.info.fingerprint == tokenizer.fingerprint
    store, file = (PairCorpus([found]) for found in stores)
    assert [store.pair(number).caption for number in range(store.length)] == CAPTIONS
    assert [store.pair(number) for number in range(3)] == [file.pair(number) for number in range(3)]
    recipe = replace(debug(), loop=replace(debug().loop, steps=1))
    model = GenerationRun(
        recipe=recipe, out=tmp_path / "run", stores=[tmp_path / "codes"], hidden=True
    ).train()
    config = json.loads((model / "config.json").read_text())
    assert (config["grid"], config["most_patches"]) == ([2, 2], 6)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ViqError):
        open_pairs(tmp_path / "empty")
    write_pairs(tmp_path / "mute.parquet", INFO, [CodePair(caption="", codes=codes(1, 1))])
    with pytest.raises(ViqError, match=r"mute\.parquet: no row has codes and a caption"):
        PairCorpus([*stores, open_pairs(tmp_path / "mute.parquet", tmp_path / "c")])


def test_every_picture_of_a_sample_is_a_pair(tmp_path: Path) -> None:
    extras = Extras.inferred([{"caption": "two rings"}])
    with CodesWriter(tmp_path / "a.parquet", INFO, extras) as file:
        for number, caption in enumerate(("two rings", None, "a star")):
            for image in range(2):
                file.add(f"{number}", codes(1, 1, 2 * number + image), image, {"caption": caption})
    corpus = PairCorpus([open_pairs(tmp_path / "a.parquet", tmp_path / "c")])
    found = [corpus.pair(number) for number in range(corpus.length)]
    assert [pair.caption for pair in found] == ["two rings"] * 2 + ["a star"] * 2
    for pair, number in zip(found, (0, 1, 4, 5), strict=True):
        assert np.array_equal(pair.codes.ids, codes(1, 1, number).ids)


def test_a_run_that_was_cut_has_the_weights_of_one_that_was_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also from the middle of an epoch; and one of release 0.1 goes on, in an order of its own."""
    pytest.importorskip("accelerate")
    recipe = replace(debug(), samples=5, gradient_accumulation=2)

    def run(name: str) -> GenerationRun:
        return GenerationRun(recipe=recipe, out=tmp_path / name, hidden=True)

    def weights(name: str) -> dict[str, torch.Tensor]:
        return read_weights(tmp_path / name / "model" / "model.safetensors")

    def stop(self: object, record: dict[str, Any]) -> None:
        if record["step"] == 4:
            raise InterruptedError

    whole = run("whole").train()
    with monkeypatch.context() as patch:
        patch.setattr("viq.train.monitor.Journal.log", stop)
        with pytest.raises(InterruptedError):
            run("cut").train()
    for name in ("cut", "old"):
        if name == "cut":
            shutil.copytree(tmp_path / "cut", tmp_path / "old")
        else:
            saved = tmp_path / "old" / "draw" / "step-3"
            values = state.read_state(saved)
            assert values["positions"]["1"]["taken"] == [15]
            values["positions"] = {lane: {"drawn": 0, "taken": []} for lane in "01"}
            state.write_state(saved, values)
        run(name).train()
        said = capsys.readouterr().err
        assert said.count("data come in another order") == (name == "old")
    assert whole.is_dir() and weights("cut").keys() == weights("old").keys()
    assert all(torch.equal(value, weights("whole")[key]) for key, value in weights("cut").items())
    assert not all(
        torch.equal(value, weights("whole")[key]) for key, value in weights("old").items()
    )


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_commands(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    run, out = tmp_path / "run", tmp_path / "out.png"

    def call(*options: object):
        return CliRunner().invoke(app, [str(option) for option in options])

    done = call("train", "generation", "debug", "-o", run, "--json")
    assert done.exit_code == 0, done.output
    log = [json.loads(line) for line in (run / "draw/log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log if "loss" in line] == [1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in log if "held_out/codes" in line] == [3, 6]
    assert {"loss", "loss/text", "loss/codes", "loss/next"} <= log[0].keys()
    caption = "a red circle left of a blue square"
    assert call("generate", caption, "-o", out, "--model", run, "--json").exit_code == 0
    first = out.read_bytes()
    assert size_of(out)[0] * size_of(out)[1] <= 32 * 48  # a size of its choosing
    assert call("generate", caption, "-o", out, "--model", run, "--overwrite").exit_code == 0
    assert out.read_bytes() == first
    other = call("generate", caption, "-o", tmp_path / "b.png", "--model", run, "--size", "16x64")
    assert other.exit_code == 0 and size_of(tmp_path / "b.png") == (64, 16)
    judged = call("eval", "generation", "--model", run, "--pictures", 3, "--json",
                  "--sheet", tmp_path / "sheet.png")  # fmt: skip
    result = json.loads(judged.stdout.splitlines()[-1])
    assert result["kept"]["true"]["caption"]["percent"] == 100
    assert result["loss"]["bits_per_code"] > 1
    for arguments, message in (
        (("generate", caption, "-o", out, "--model", run), "exists"),
        (("generate", caption, "-o", tmp_path / "c.png", "--model", tmp_path), "no finished model"),
        (
            ("generate", caption, "-o", tmp_path / "c.png", "--model", run, "--size", "9"),
            "--size 9",
        ),
        (("generate", caption, "-o", tmp_path / "c.png", "--model", run, "--top-p", 2), "top-p"),
        (("generate", caption, caption, "-o", tmp_path / "c.png", "--model", run), "need a folder"),
        (("train", "generation", "tiny", "-o", run), "begun with another recipe"),
        (("train", "generation", "nothing", "-o", run), "no recipe nothing"),
        (("train", "generation", "debug", "-o", tmp_path / "x", "--codes", tmp_path / "a.parquet"),
         "no such file"),
    ):  # fmt: skip
        done = call(*arguments)
        assert done.exit_code == 2 and message in done.output, done.output
