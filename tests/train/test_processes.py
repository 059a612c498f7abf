"""Training as a process of its own: killed in the middle of a save, asked to stop, and shared by
two. Each is compared with a run that nothing happened to.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_mllm
import torch

from viq.data.corpora.corpora import open_corpora
from viq.data.corpora.synthetic_config import SyntheticConfig
from viq.data.corpora.synthetic_source import SyntheticSource
from viq.jobs.encode import encode
from viq.metrics.run_log import read_lines
from viq.models.language.vision_language import AdapterConfig
from viq.models.tokenizer.tokenizer import VisualTokenizer
from viq.recipes.mllm import debug
from viq.recipes.tokenizer import train_debug
from viq.train.checkpoints import read_state
from viq.train.mllm.recipe import MllmRecipe, MllmStage
from viq.train.mllm.run import MllmRun
from viq.train.tokenizer.recipe import StageConfig, TokenizerRecipe
from viq.train.tokenizer.run import TokenizerRun, TrainingData
from viq.weights.checkpoint import read_weights, to_dict

TIMES = {"seconds", "patches_per_second", "tokens_per_second"}
PATIENCE = 900  # seconds; of a machine that is busy with other things


def stage(name: str, losses: dict[str, float], steps: int, **changes: Any) -> StageConfig:
    found = next(stage for stage in train_debug().stages if stage.name == name)
    loop = replace(found.loop, losses=losses, steps=steps, save_every=2, **changes)
    return replace(found, loop=loop)


FSQ = stage("2-2-fsq", {"text": 1.0, "rmse": 1.0}, 6)
ONE = replace(train_debug(), stages=(FSQ,))


def train(out: Path, recipe: TokenizerRecipe, data: TrainingData | None = None) -> None:
    """In this process, on one thread like the others."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        TokenizerRun(recipe, data or TrainingData(), out, hidden=True).train()
    finally:
        torch.set_num_threads(threads)


def start(*arguments: object, prefix: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *prefix, *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(what: Callable[[], object], process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + PATIENCE
    while not what():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end, "the run did not get there in time"
        time.sleep(0.02)


def recipe_file(folder: Path, recipe: TokenizerRecipe | MllmRecipe) -> Path:
    path = folder / "recipe.json"
    path.write_text(json.dumps(to_dict(recipe)))
    return path


def log(out: Path, stage: StageConfig | MllmStage) -> list[dict[str, Any]]:
    lines = read_lines(out / stage.name / "log.jsonl")
    return [{k: v for k, v in line.items() if k not in TIMES} for line in lines]


def weights(out: Path, stage: StageConfig | MllmStage) -> dict[str, torch.Tensor]:
    return read_weights(out / stage.name / "model" / "model.safetensors")


def assert_equal_runs(a: Path, b: Path) -> None:
    assert log(a, FSQ) == log(b, FSQ)
    one, other = weights(a, FSQ), weights(b, FSQ)
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run to the end, in this process, by the library."""
    out = tmp_path_factory.mktemp("whole")
    train(out, ONE)
    return out


SLOW_SAVES = """
import os, sys, time
from viq.train import state

whole = state.save_file

def half(tensors, path, metadata):
    if not os.path.exists(sys.argv[-1]):  # the first checkpoint
        return whole(tensors, path, metadata)
    path.write_bytes(b"half")
    time.sleep(600)

state.save_file = half
from viq.cli import app
app(sys.argv[1:-1])
"""


def test_killed_in_the_middle_of_a_save(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    first = out / FSQ.name / "step-2"

    def torn() -> list[bytes]:
        return [path.read_bytes() for path in out.glob("*/.step-4.*.part/state.safetensors")]

    process = start(
        "-c", SLOW_SAVES, "train", recipe_file(tmp_path, ONE), "--out", out, "--threads", 1, first
    )
    try:
        wait_for(lambda: torn() == [b"half"], process)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert torn() and first.is_dir() and len(list(out.glob("*/*step-*"))) == 2
    assert [record["step"] for record in log(out, FSQ)] == [1, 2, 3, 4]
    train(out, ONE)
    assert_equal_runs(out, whole)
    assert sorted(p.name for p in out.glob("*/*step-*")) == ["step-4", "step-6"]


def test_asked_to_stop_it_saves_and_says_so_in_a_line(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    line = ("-m", "viq.cli", "train", recipe_file(tmp_path, ONE), "--out", out, "--threads", 1)
    process = start(*line)
    journal = out / FSQ.name / "log.jsonl"
    wait_for(lambda: journal.exists() and read_lines(journal), process)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=PATIENCE)
    (message,) = [text for text in errors.splitlines() if text.startswith("viq:")]
    step = log(out, FSQ)[-1]["step"]
    assert process.returncode == 143
    assert message == (
        f"viq: 2-2-fsq: asked to stop; saved at step {step} of 6: run the same command to go on"
    )
    assert "Traceback" not in errors
    assert (out / FSQ.name / f"step-{step}").exists() and not (out / FSQ.name / "model").exists()
    train(out, ONE)
    assert_equal_runs(out, whole)


# accelerate spreads weights (FSDP) over GPUs only; PyTorch itself can do so over CPUs.
FSDP_ON_CPUS = """
import sys
import accelerate
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

whole = accelerate.Accelerator

def spread(*arguments, **options):
    accelerator = whole(*arguments, **options)
    for state in (AcceleratorState, PartialState):
        state._shared_state["distributed_type"] = DistributedType.FSDP
    accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2, cpu_ram_efficient_loading=False
    )
    return accelerator

accelerate.Accelerator = spread
from viq.cli import app
app(sys.argv[1:])
"""


def program(way: str, folder: Path) -> tuple[object, ...]:
    """What torchrun starts, to share out the model by DDP or FSDP."""
    script = folder / "fsdp.py"
    script.write_text(FSDP_ON_CPUS)
    return (script,) if way == "FSDP" else ("-m", "viq.cli")


@pytest.mark.parametrize("way", ["DDP", "FSDP"])
def test_two_processes_train_as_one(way: str, tmp_path: Path) -> None:
    """Text, reconstruction, an adversary, a moving average and bad samples, over two lanes."""
    talk = [(2, ("<image>q", "a")) if i % 3 else (1, ("<image>What?", "It.")) for i in range(30)]
    tiny.write_chats(tmp_path / "talk.jsonl", talk)
    contest = {"rmse": 1.0, "adversarial": 0.1, "discriminator": 1.0}
    decoder = stage("3-decoder", contest, 2, ema_decay=0.5)
    fsq = replace(FSQ, loop=replace(FSQ.loop, steps=4))
    adapted = replace(tiny.LANGUAGE, vocabulary=320, adapter=AdapterConfig(rank=2))
    recipe = replace(train_debug(), language=adapted, stages=(fsq, decoder))
    process = start(
        *("--standalone", "--nproc-per-node", 2, *program(way, tmp_path)),
        *("train", recipe_file(tmp_path, recipe), "--data", tmp_path / "talk.jsonl"),
        *("--out", tmp_path / "two", "--threads", 1),
        prefix=("-m", "torch.distributed.run"),
    )
    try:
        data = TrainingData.of(open_corpora([tmp_path / "talk.jsonl"], "train"))
        train(tmp_path / "one", recipe, data)
        _, errors = process.communicate(timeout=PATIENCE)
    finally:
        process.terminate()  # the launcher takes its workers along
    assert process.returncode == 0, errors
    for part in (fsq, decoder):
        one, two = log(tmp_path / "one", part), log(tmp_path / "two", part)
        assert [record["step"] for record in two] == list(range(1, part.loop.steps + 1))
        for a, b in zip(one, two, strict=True):
            assert a.pop("stage") == b.pop("stage")
            assert b == pytest.approx(a, rel=1e-5)
        before, after = weights(tmp_path / "one", part), weights(tmp_path / "two", part)
        for name in before:
            torch.testing.assert_close(after[name], before[name], atol=1e-4, rtol=1e-3)
    skipped = [
        {line["key"] for line in read_lines(tmp_path / out / fsq.name / "skipped.jsonl")}
        for out in ("one", "two")
    ]
    assert skipped[0] == skipped[1] and len(skipped[0]) > 2
    saved = [read_state(tmp_path / out / fsq.name / "step-4") for out in ("one", "two")]
    assert saved[0]["positions"] == saved[1]["positions"] and set(saved[0]["positions"]) == {
        "0",
        "1",
    }
    assert {k: v.shape for k, v in saved[0]["weights"].items()} == {
        k: v.shape for k, v in saved[1]["weights"].items()
    }
    assert (tmp_path / "two" / fsq.name / "grids" / "step-000004.png").is_file()


@pytest.mark.parametrize("way", ["DDP", "FSDP"])
def test_two_processes_train_a_language_model_as_one(way: str, tmp_path: Path) -> None:
    """On codes and on text alone, with adapters and without, over the same two lanes."""
    tokenizer, codes, text = (tmp_path / name for name in ("tokenizer", "codes", "text.jsonl"))
    tiny_mllm.saved_tokenizer(tokenizer)
    drawn = SyntheticSource(SyntheticConfig(pictures=20, sides=(48, 64), questions=2))
    encode(VisualTokenizer.from_pretrained(tokenizer), drawn, codes, workers=1)
    talk = [{"from": "human", "value": "What is 1 + 1?"}, {"from": "gpt", "value": "2"}]
    lines = [json.dumps({"id": str(i), "conversations": talk}) for i in range(20)]
    text.write_text("\n".join(lines) + "\n")
    adapters, whole = debug().stages[1:]
    stages = tuple(
        replace(found, data=replace(found.data, text_share=0.5), loop=replace(found.loop, steps=2))
        for found in (adapters, whole)
    )
    recipe = replace(debug(), tokenizer=str(tokenizer), stages=stages)
    process = start(
        *("--standalone", "--nproc-per-node", 2, *program(way, tmp_path), "train", "mllm"),
        *(recipe_file(tmp_path, recipe), "--codes", codes, "--text", text),
        *("--out", tmp_path / "two", "--threads", 1),
        prefix=("-m", "torch.distributed.run"),
    )
    try:
        run = MllmRun(recipe=recipe, out=tmp_path / "one", stores=[codes], texts=[text],
                      hidden=True)  # fmt: skip
        run.train()
        _, errors = process.communicate(timeout=PATIENCE)
    finally:
        process.terminate()
    assert process.returncode == 0, errors
    for part in stages:
        one, two = log(tmp_path / "one", part), log(tmp_path / "two", part)
        assert [record["step"] for record in two] == [1, 2]
        for a, b in zip(one, two, strict=True):
            assert a.pop("stage") == b.pop("stage")
            assert b == pytest.approx(a, rel=1e-4)
        before, after = weights(tmp_path / "one", part), weights(tmp_path / "two", part)
        assert before.keys() == after.keys()
        for name in before:
            torch.testing.assert_close(after[name], before[name], atol=1e-4, rtol=1e-3)
