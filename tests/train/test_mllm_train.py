"""Training on codes: packing, exact resume, no encoder, text beside images, each refusal; chat."""

import importlib
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import chat_formats
import pytest
import tiny_mllm
import torch
from typer.testing import CliRunner

from viq.cli import app
from viq.core.types import ViqError
from viq.data.batching.code_batches import CodeDataConfig, CodeStream, open_stores, open_texts
from viq.data.batching.mixture import Mixture, Part
from viq.data.corpora.synthetic_config import SyntheticConfig
from viq.data.corpora.synthetic_source import SyntheticSource
from viq.data.text.chat_format import ChatConfig
from viq.data.text.text_tokenizer import train_text_tokenizer
from viq.jobs.encode import encode
from viq.mllm.loading import load_mllm
from viq.models.language.vision_language import AdapterConfig, LanguageConfig
from viq.models.tokenizer.encoder import Encoder
from viq.recipes import generation
from viq.recipes.mllm import RECIPES, debug
from viq.recipes.registry import scaled
from viq.train.checkpoints import read_state, write_state
from viq.train.loop import TrainingError
from viq.train.mllm.recipe import MllmRecipe, MllmStage
from viq.train.mllm.run import MllmRun
from viq.weights.checkpoint import read_weights, to_dict


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tokenizer, a store of its codes with conversations, text alone, and a cache."""
    root = tmp_path_factory.mktemp("mllm")
    tokenizer = tiny_mllm.saved_tokenizer(root / "tokenizer")
    drawn = SyntheticConfig(pictures=30, sides=(48, 80), questions=3)
    encode(tokenizer, SyntheticSource(drawn), root / "codes", workers=1)
    talk = [{"from": "human", "value": "What is 1 + 1?"}, {"from": "gpt", "value": "2"}]
    lines = [json.dumps({"id": str(i), "conversations": talk}) for i in range(40)]
    (root / "text.jsonl").write_text("\n".join(lines) + "\n")
    return {"tokenizer": root / "tokenizer", "codes": root / "codes", "cache": root / "cache",
            "text": root / "text.jsonl"}  # fmt: skip


def recipe(places: dict[str, Path], stages: slice = slice(None), **changes: Any) -> MllmRecipe:
    found = debug()
    changes = {"tokenizer": str(places["tokenizer"]), "stages": found.stages[stages]} | changes
    return replace(found, **changes)


def run(places: dict[str, Path], out: Path, recipe: MllmRecipe, **options: Any) -> MllmRun:
    options = {"stores": [places["codes"]], "cache": places["cache"], "hidden": True} | options
    return MllmRun(recipe=recipe, out=out, **options)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return read_weights(folder / "model.safetensors")


def test_stages_train_their_parts_and_resume_to_the_last_bit(
    places: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Text beside codes; the encoder is never built."""

    def refuse(*_: Any) -> None:
        raise AssertionError("the encoder was built")

    monkeypatch.setattr(Encoder, "__init__", refuse)
    options: dict[str, Any] = {"texts": [places["text"]]}
    chosen = recipe(places)
    last = run(places, tmp_path / "whole", chosen, **options).train()
    assert last == tmp_path / "whole" / "3-all" / "model"
    stages = [weights(tmp_path / "whole" / stage.name / "model") for stage in chosen.stages]
    trained = {"projector", "language_model"}
    for before, after, parts in ((0, 1, trained), (1, 2, {"embedder", *trained})):
        a, b = stages[before], stages[after]
        assert a.keys() == b.keys()
        assert {n.split(".")[1] for n in a if not torch.equal(a[n], b[n])} == parts
    assert not any("lora" in name for name in stages[1])

    class Stop(Exception):
        pass

    cut = run(places, tmp_path / "cut", chosen, **options)

    def stop(record: dict[str, Any]) -> None:
        if record["stage"] == "2-adapters" and record["step"] == 3:
            raise Stop

    monkeypatch.setattr("viq.train.monitor.Journal.log", lambda self, record: stop(record))
    with pytest.raises(Stop):
        cut.train()
    monkeypatch.undo()
    shutil.copytree(tmp_path / "cut", tmp_path / "old")
    as_of_release_01(tmp_path / "old" / "2-adapters" / "step-2")
    for name in ("cut", "old"):
        run(places, tmp_path / name, chosen, **options).train()
        for stage, wanted in zip(chosen.stages, stages, strict=True):
            found = weights(tmp_path / name / stage.name / "model")
            assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def as_of_release_01(checkpoint: Path) -> None:
    """Give the weights of a checkpoint the names that they had."""

    def old(name: str) -> str:
        name = name.replace("model.model.language_model.base_model.model.", "@")
        return name.replace("model.model.", "model.").replace(
            "@", "model.language.base_model.model.model."
        )

    values = read_state(checkpoint)
    values["weights"] = {old(name): value for name, value in values["weights"].items()}
    state = values["optimizer"]["state"]
    values["optimizer"]["state"] = {old(name): value for name, value in state.items()}
    for group in values["optimizer"]["param_groups"]:
        group["params"] = [old(name) for name in group["params"]]
    assert any(name.startswith("model.language.") for name in values["weights"])
    write_state(checkpoint, values)


def test_language_models_with_a_format_of_their_own(
    places: dict[str, Path], tmp_path: Path
) -> None:
    """They learn in their own format, or are refused by one line before training."""
    for name, changes in (("llama", {}), ("gemma", {}), ("mistral", {"sliding_window": 64})):
        words = chat_formats.tokenizer(name)
        words.save_pretrained(tmp_path / name)
        chat_formats.language(name, len(words), **changes).save_pretrained(tmp_path / name)

    def trained(name: str) -> Path:
        language = replace(debug().language, name=str(tmp_path / name))
        chosen = recipe(places, slice(1), language=language)
        return run(places, tmp_path / f"run-{name}", chosen).train()

    model, processor = load_mllm(trained("llama"))
    assert processor.chat_format == "own"
    inputs = processor(text="What?")
    text = "<|start_header_id|>user<|end_header_id|>\n\nWhat?<|eot_id|>"
    assert text in processor.decode(inputs["input_ids"][0])
    ends = ["<|eot_id|>", "<|end_of_text|>"]
    wanted = processor.tokenizer.convert_tokens_to_ids(ends)
    assert model.generation_config.eos_token_id == wanted
    with pytest.raises(ViqError, match="mistral: sees only 64 tokens back"):
        trained("mistral")
    with pytest.raises(ViqError, match="gemma2: its attention cannot be packed"):
        trained("gemma")


def test_words_and_pictures_are_made_once_a_run(
    places: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By whichever of its stages or resumptions comes first."""
    made = []
    for module, name in (
        ("viq.train.observer", "train_text_tokenizer"),
        ("viq.train.mllm.run", "encode"),
    ):
        found = getattr(importlib.import_module(module), name)

        def counted(*args: Any, found: Any = found, name: str = name, **options: Any) -> Any:
            made.append(name)
            return found(*args, **options)

        monkeypatch.setattr(f"{module}.{name}", counted)
    chosen = recipe(places, synthetic=SyntheticConfig(pictures=12, sides=(48, 64), questions=2))
    for stages in (chosen.stages[:1], chosen.stages):
        (tmp_path / "recipe.json").unlink(missing_ok=True)  # one stage more
        run(places, tmp_path, replace(chosen, stages=stages), stores=[]).train()
    shutil.rmtree(tmp_path / "1-projector")
    run(places, tmp_path, chosen, stores=[]).train()
    assert sorted(made) == ["encode", "train_text_tokenizer"]


def test_drawn_pictures_beside_a_store(places: dict[str, Path], tmp_path: Path) -> None:
    drawn = SyntheticConfig(pictures=20, sides=(48, 64), questions=1)
    chosen = recipe(places, slice(0, 1), synthetic=drawn)
    with pytest.raises(ViqError, match="no train sample has licence=free"):
        run(places, tmp_path, chosen, synthetic=True, where={"licence": "free"}).train()
    assert not (tmp_path / "codes").exists()  # what is given is looked at before anything is drawn
    talk = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "noise"}]
    rows = [{"conversations": talk, "licence": "free" if i % 2 else "none"} for i in range(12)]
    mine = store_of(places, tmp_path / "mine", rows)
    both = run(
        places, tmp_path, chosen, stores=[mine], synthetic=True, where={"licence": "free"}
    )  # fmt: skip
    model = both.train()
    given, made = both.corpora[0]
    assert given.row(0).where.startswith(str(mine))
    assert made.row(0).where.startswith(str(tmp_path / "codes"))
    assert given.length <= 6 < made.length  # the filter is for what is given
    # Of the given store no limit is known, so images keep the usual one.
    assert load_mllm(model)[1].max_pixels == 768**2
    assert {"kinds", "conversations"} <= made.row(0).extras.keys()


def test_training_goes_on_from_a_trained_model(places: dict[str, Path], tmp_path: Path) -> None:
    """Its words, whitening and weights are kept; a model of other codes is refused."""
    first = run(places, tmp_path / "first", recipe(places, slice(1))).train()
    still = debug().stages[0]
    optim = replace(still.loop.optim, learning_rate=0.0)
    still = replace(still, loop=replace(still.loop, optim=optim))
    further = replace(recipe(places, start=str(tmp_path / "first")), stages=(still,))
    out = run(places, tmp_path / "further", further).train()
    old, new = weights(first), weights(out)
    assert old.keys() == new.keys()
    assert all(torch.equal(old[name], new[name]) for name in old)
    assert not (tmp_path / "further" / "words").exists()
    assert load_mllm(out)[1].tokenizer.get_vocab() == load_mllm(first)[1].tokenizer.get_vocab()

    with pytest.raises(
        ViqError, match="viq-tiny-chat: reads the codes of tokenizer .* --tokenizer"
    ):
        run(places, tmp_path / "other", recipe(places, start="viq-tiny-chat")).train()
    with pytest.raises(ViqError, match="has a language model of its own"):
        recipe(places, start="viq-tiny-chat", language=LanguageConfig(name="gpt2"))


def test_the_loss_goes_down(places: dict[str, Path], tmp_path: Path) -> None:
    chosen = recipe(places, slice(2, 3))
    stage = chosen.stages[0]
    loop = replace(stage.loop, steps=40, log_every=10, save_every=40)
    chosen = replace(chosen, stages=(replace(stage, loop=loop),))
    run(places, tmp_path, chosen).train()
    lines = (tmp_path / stage.name / "log.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in lines]
    assert losses[-1] < losses[0] - 0.4
    assert json.loads(lines[-1])["tokens_per_second"] > 0


def stream(places: dict[str, Path], config: CodeDataConfig, **files: Any) -> CodeStream:
    corpora = open_stores(files.get("stores", [places["codes"]]), "train", cache=places["cache"])
    corpora += open_texts(files.get("texts", []), "train")
    words = train_text_tokenizer(tiny_mllm.TEXTS * 3, 300)
    mixture = Mixture(
        [Part(corpus=c, weight=1.0) for c in corpora], seed=0, lanes=config.gradient_accumulation
    )
    return CodeStream(config, mixture, lanes=range(config.gradient_accumulation), tokenizer=words)


def test_sequences_are_packed_to_their_length(places: dict[str, Path]) -> None:
    config = CodeDataConfig(
        gradient_accumulation=2, tokens=512, chat=ChatConfig(system="", max_length=400)
    )
    made = stream(places, config, texts=[places["text"]])
    batches = [micro for micros, _ in made.steps(0, 6) for micro in micros]
    for micro in batches:
        assert 100 < len(micro.text.ids_L) == sum(micro.text.lengths) <= 512
        assert len(micro.codes_TS) == sum(rows * cols for rows, cols in micro.grids_hw)
    assert any(len(m.grids_hw) < len(m.text.lengths) for m in batches)  # text alone among them
    assert sum(len(m.text.lengths) for m in batches) > 2 * len(batches)


def test_long_samples_are_cut_and_counted(places: dict[str, Path]) -> None:
    config = CodeDataConfig(tokens=128, chat=ChatConfig(system="", max_length=128))
    made = stream(places, config)
    for _ in made.steps(0, 20):
        pass
    cut = {key: reason for key, reason in made.skipped.reasons.items() if key.endswith("(cut)")}
    assert cut
    assert all("do not fit into 128" in reason for reason in cut.values())


def store_of(places: dict[str, Path], out: Path, rows: list[dict[str, Any]]) -> Path:
    """A store of one picture a row, with these columns."""
    from viq.data.sources.open import open_source
    from viq.models.tokenizer.tokenizer import VisualTokenizer

    out.mkdir()
    from PIL import Image

    for number, row in enumerate(rows):
        Image.fromarray(tiny_mllm.picture(20, 20, number)).save(out / f"{number}.png")
        row["image"] = f"{number}.png"
    (out / "data.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    tokenizer = VisualTokenizer.from_pretrained(places["tokenizer"])
    encode(tokenizer, open_source(out / "data.jsonl"), out / "codes", workers=1)
    return out / "codes"


def test_bad_samples_are_listed_and_bad_stores_refused(
    places: dict[str, Path], tmp_path: Path
) -> None:
    def talk(question: str, answer: str) -> dict[str, Any]:
        return {"conversations": [{"from": "human", "value": question},
                                  {"from": "gpt", "value": answer}]}  # fmt: skip

    rows = [talk("What?", "cup")] * 8 + [talk("What?", " "), talk("<image><image>", "two")]
    mixed = store_of(places, tmp_path / "mixed", [dict(row) for row in rows])
    config = CodeDataConfig(tokens=128, chat=ChatConfig(system="", max_length=64))
    made = stream(places, config, stores=[mixed])
    for _ in made.steps(0, 12):
        pass
    reasons = sorted(made.skipped.reasons.values())
    assert any("a turn of assistant is empty" in reason for reason in reasons)
    assert any(
        "has more <image> placeholders than images (2 placeholders, 1 images)" in r for r in reasons
    )
    assert all(reason.startswith(str(mixed)) for reason in reasons)  # the sample is named

    mute = store_of(places, tmp_path / "mute", [{"size": i} for i in range(10)])
    with pytest.raises(ViqError, match="have no conversations, pairs, captions or labels"):
        run(places, tmp_path / "a", recipe(places), stores=[mute]).train()
    with pytest.raises(ViqError, match="made by .* but the model reads those of"):
        other = tmp_path / "other"
        tiny_mllm.saved_tokenizer(other, seed=1)
        run(places, tmp_path / "b", replace(recipe(places), tokenizer=str(other))).train()
    with pytest.raises(ViqError, match="no causal language model can be loaded|no text tokenizer"):
        language = replace(debug().language, name=str(tmp_path))
        run(places, tmp_path / "c", recipe(places, language=language)).train()
    with pytest.raises(ViqError, match="give a store of codes"):
        run(places, tmp_path / "d", replace(recipe(places), synthetic=None), stores=[]).train()
    pictures = tmp_path / "mixed" / "data.jsonl"
    with pytest.raises(ViqError, match="no sample falls|has pictures where codes are wanted"):
        found = open_texts([pictures], "train")
        found[0].example(0, __import__("random").Random(0))


def test_recipes_are_checked(
    places: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = debug().stages[0]
    with pytest.raises(ViqError, match="no parts"):
        replace(stage, parts=("encoder",))
    with pytest.raises(ViqError, match="add it to parts"):
        MllmStage(name="x", parts=("projector",), adapter=debug().stages[1].adapter,
                  data=stage.data, loop=stage.loop)  # fmt: skip
    for language in (
        LanguageConfig(adapter=AdapterConfig()),
        LanguageConfig(gradient_checkpointing=True),
    ):
        for of_another_kind in (debug(), generation.debug()):
            with pytest.raises(ViqError, match="belong to recipes of tokenizers"):
                replace(of_another_kind, language=language)
    with pytest.raises(ViqError, match="chat.max_length is 4096, but a sequence has only 512"):
        CodeDataConfig(tokens=512)
    for make in RECIPES.values():
        assert scaled(make(), 0.5).stages[-1].loop.steps < make().stages[-1].loop.steps
        assert json.dumps(to_dict(make()))
    run(places, tmp_path, recipe(places, slice(0, 1))).train()
    with pytest.raises(TrainingError, match="begun with another recipe"):
        run(places, tmp_path, recipe(places)).train()
    monkeypatch.setitem(sys.modules, "peft", None)  # not installed
    with pytest.raises(ViqError, match="needs peft: pip install"):
        run(places, tmp_path / "late", recipe(places)).train()
    assert not (tmp_path / "late").exists()  # though only the second stage has adapters


def test_the_command_line_from_nothing_to_an_answer(
    places: dict[str, Path], tmp_path: Path
) -> None:
    from PIL import Image

    out, answers = tmp_path / "run", tmp_path / "answers.jsonl"
    shape = debug()
    chosen = replace(
        shape, tokenizer=str(places["tokenizer"]), stages=shape.stages[2:],
        synthetic=SyntheticConfig(pictures=12, sides=(48, 64), questions=2),
    )  # fmt: skip
    (tmp_path / "recipe.json").write_text(json.dumps(to_dict(chosen)))

    def call(*arguments: str | Path) -> Any:
        done = CliRunner().invoke(app, [*map(str, arguments), "--json"])
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout.splitlines()[-1])

    trained = call("train", "mllm", tmp_path / "recipe.json", "-o", out)
    assert trained["model"] == str(out / "3-all" / "model")
    assert trained["skipped"] == 0
    (out / "plain").touch()
    assert {f.stat().st_mode for f in (out / "3-all" / "model").iterdir()} == {
        (out / "plain").stat().st_mode
    }
    Image.fromarray(tiny_mllm.picture(40, 50)).save(tmp_path / "a.png")
    asked = ["--model", out, "--max-tokens", "4"]
    pixels = call("chat", tmp_path / "a.png", "What is this?", *asked)
    model, processor = load_mllm(out)
    assert processor.max_pixels == 64**2  # as what it was trained on
    codes = model.config.embedder.tokenizer
    facts = call("info", out / "3-all" / "model")
    assert facts["kind"] == "language model on codes" and facts["tokenizer"] == codes
    stored = {tensor.data_ptr(): tensor.numel() for tensor in model.state_dict().values()}
    assert sum(facts["parameters"].values()) == sum(stored.values())
    mistaken = CliRunner().invoke(
        app, ["encode", str(tmp_path / "a.png"), "-o", str(tmp_path / "b.viq"), "--model",
              str(out / "3-all" / "model")],
    )  # fmt: skip
    assert mistaken.exit_code == 2 and "give its tokenizer" in mistaken.output
    call("encode", tmp_path / "a.png", "-o", tmp_path / "a.viq", "--model", codes)
    assert call("chat", tmp_path / "a.viq", "What is this?", *asked)["answer"] == pixels["answer"]
    typed = CliRunner().invoke(
        app, ["chat", str(tmp_path / "a.viq"), *map(str, asked), "--json"],
        input="What is this?\n\nAnd in short?\n",
    )  # fmt: skip
    lines = [json.loads(line) for line in typed.stdout.splitlines()]
    assert [line["question"] for line in lines] == ["What is this?", "And in short?"]
    assert lines[0]["answer"] == pixels["answer"]  # a conversation begins as one question does
    told = [{"role": "user", "content": "What is this?"},
            {"role": "assistant", "content": pixels["answer"]},
            {"role": "user", "content": "And in short?"}]  # fmt: skip
    inputs = processor(text=told if pixels["answer"] else told[2:], images=tmp_path / "a.png")
    second = processor.answers(model.generate(**inputs, max_new_tokens=4), inputs)[0]
    assert lines[1]["answer"] == second
    first = call("caption", out / "codes", "-o", answers, *asked, "--limit", "5", "--batch", "2")
    assert (first["answered"], first["known"]) == (5, 0)
    with answers.open("a") as file:
        file.write('{"key": "torn')
    rest = call("caption", out / "codes", "-o", answers, *asked)
    assert (rest["answered"], rest["known"]) == (7, 5)
    keys = [json.loads(line)["key"] for line in answers.read_text().splitlines()]
    assert len(keys) == len(set(keys)) == 12
    asked_of = call("eval", "mllm", out, "--max-tokens", "4", "-o", tmp_path / "held.json")
    assert json.loads((tmp_path / "held.json").read_text()) == asked_of
    assert 0 < asked_of["questions"] == asked_of["kinds"]["all"]["questions"]
    report = call("eval", "features", "--model", codes, "--seeds", "1", "--steps", "4",
                  "--pictures", "12")  # fmt: skip
    for kind in ("codes", "continuous", "blind"):
        found = report["kinds"][kind]
        assert 0 <= found["answers"]["all"]["mean"] <= 100
        assert found["steps_per_second"]["mean"] > 0 < found["peak_mib"]["mean"]
    right = {kind: found["answers"]["all"]["mean"] for kind, found in report["kinds"].items()}
    for kind, found in report["differences"].items():
        assert found["all"]["mean"] == pytest.approx(right["codes"] - right[kind], abs=0.02)
    gone = CliRunner().invoke(app, ["chat", "gone.png", "What?", "--model", str(out)])
    assert gone.exit_code == 2 and "viq: gone.png: does not exist" in gone.output
    wrong = CliRunner().invoke(app, ["chat", "x.png", "What?", "--model", str(tmp_path)])
    assert wrong.exit_code == 2
