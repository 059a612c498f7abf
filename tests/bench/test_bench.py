"""Benchmarks: their statistics by hand, their shape on a tiny tokenizer; no time is asserted."""

import json
import sys
from dataclasses import replace

import pytest
import tiny
import torch
import torch.nn.functional as F

from viq.bench import components, encode
from viq.core.measure import compare, machine, peak_memory, run_command
from viq.image.patches import PatchBatch, lengths_of
from viq.models.tokenizer.encoder import Encoder, EncoderConfig
from viq.models.tokenizer.tokenizer import VisualTokenizer

WORK = encode.EncodeWorkload(
    images=3,
    sides=(20, 48),
    tiled_mp=(0.004, 0.002),
    whole_mp=(0.004,),
    photo=(40, 60),
    memory=(),
    attention_images=3,
    restore_patches=(2, 5),
    restore_models=(),
    base_images=0,
)


@pytest.fixture(scope="module")
def tokenizer() -> VisualTokenizer:
    torch.manual_seed(0)
    return VisualTokenizer(tiny.config(name="viq", tile=48)).eval()


# Measuring


def test_compare_runs_in_turn_and_takes_medians():
    now, calls = 0.0, []
    costs = {"a": iter([9, 1, 5, 2]), "b": iter([9, 4, 4, 10])}  # the first is the warm-up

    def work(name: str):
        def run() -> None:
            nonlocal now
            calls.append(name)
            now += next(costs[name])

        return run

    times = compare({name: work(name) for name in costs}, 3, clock=lambda: now)
    assert "".join(calls) == "ab" + "ababab"
    assert times == {
        "a": {"median_s": 2, "min_s": 1, "max_s": 5, "ratio_to_first": 1},
        "b": {"median_s": 4, "min_s": 4, "max_s": 10, "ratio_to_first": 2},
    }


@pytest.mark.parametrize(("variants", "repeats"), [({}, 1), ({"a": int}, 0)])
def test_compare_refuses_nothing(variants, repeats):
    with pytest.raises(ValueError, match="at least 1"):
        compare(variants, repeats)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not tell")
def test_peak_memory_is_that_of_the_child_alone():
    held = b"1" * (300 * 2**20)  # of this process: Linux would charge a direct child with it
    small = peak_memory([sys.executable, "-c", "pass"])
    large = peak_memory([sys.executable, "-c", "x = b'1' * (200 * 2**20)"])
    assert held and small is not None and large is not None
    assert 1 < small < 100
    assert 190 < large - small < 230


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not tell")
def test_peak_memory_calls_functions_by_name():
    called = peak_memory(json.loads, "[1]")
    assert called is not None and called > 1
    with pytest.raises(RuntimeError, match="JSONDecodeError"):
        peak_memory(json.loads, "no JSON")
    with pytest.raises(ValueError, match="top level"):
        peak_memory(lambda: None)


def test_run_command_reports_the_last_line():
    run_command([sys.executable, "-c", "import viq"])
    with pytest.raises(RuntimeError, match="ended with 1: ValueError: no"):
        run_command([sys.executable, "-c", "raise ValueError('no')"])


def test_machine_is_plain_data():
    found = json.loads(json.dumps(machine()))
    assert found["cores"] >= 1 and found["torch"] == torch.__version__ and found["cpu"]


# The benchmark


def test_mixed_images_are_fixed_and_within_bounds():
    images = encode.mixed_images(8, (64, 120))
    again = encode.mixed_images(8, (64, 120))
    assert all((a == b).all() for a, b in zip(images, again, strict=True))
    for image in images:
        short, long = sorted(image.shape[:2])
        assert 64 <= short <= long <= 120 and long <= 2 * short + 1
    assert encode.picture((800, 2100)).shape == (800, 2100, 3)


def test_run_without_processes(tokenizer):
    pytest.importorskip("transformers")
    seen: list[str] = []
    names = [name for name in encode.SECTIONS if name not in ("size", "cold")]
    result = encode.run(
        tokenizer, repeats=1, quick=True, work=WORK, sections=names, progress=seen.append
    )
    assert seen == names
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    throughput = result["throughput"]
    assert throughput["times"]["one_by_one"]["ratio_to_first"] == 1
    rates = throughput["rates"]["packed"]
    assert rates["codes_per_s"] == pytest.approx(4 * rates["patches_per_s"])
    assert max(result["attention"]["max_difference"].values()) < 1e-5
    assert set(result["attention"]["forward"]) == {"looped", "padded", "block_diagonal"}
    folding = result["folding"]["viq"]
    assert set(folding["patches"]) == {"2", "5"} and folding["max_difference"] < 1e-4
    assert folding["flops_ratio"] > 1.5
    trunk = result["trunk_vs_naflex"]["viq"]
    assert trunk["max_difference"]["naflex"] < 1e-4
    work = trunk["work"]
    assert work["viq"]["patches"] == work["naflex"]["patches"] == work["naflex_bucketed"]["patches"]
    assert work["naflex"]["patches_computed"] > work["viq"]["patches_computed"]
    assert trunk["parameters"]["naflex"] == trunk["parameters"]["viq"] + 2 * 32  # the final norm
    text = encode.as_text(result)
    assert "naflex_bucketed" in text and "block_diagonal" in text and "MFLOP/patch" in text


def test_sections_about_size(tokenizer):
    result = encode.run(tokenizer, repeats=1, work=WORK, sections=["size"])
    rows = result["size"]["encode"]
    assert [(row["size"], row["tile"]) for row in rows] == [
        ([55, 73], 48),
        ([39, 52], 48),
        ([55, 73], 0),
    ]
    assert rows[0]["ratio_to_first"] == 1 and rows[0]["megapixels"] == 55 * 73 / 1e6
    assert set(result["size"]["photo"]["times"]) == {"encode", "decode"}
    assert set(result["size"]["memory_mib"]) == {"loaded"}
    assert "tiles of 48" in encode.as_text(result)


def test_cold_reports_commands_that_fail(tokenizer, monkeypatch):
    ran: list[list[str]] = []

    def pretend(command: list[str]) -> None:
        ran.append(command[1:])
        if "--help" in command:
            raise RuntimeError("ended with 1: no help")

    monkeypatch.setattr(encode, "run_command", pretend)
    result = encode.run(tokenizer, repeats=2, work=WORK, sections=["cold"])
    names = ["python", "import viq", "import torch", "viq encode 768x512.jpg"]
    assert list(result["cold"]["times"]) == names
    assert result["cold"]["failed"] == {"viq --help": "ended with 1: no help"}
    assert ran.count(["-c", "pass"]) == 4  # tried, warmed up, timed twice
    assert "viq --help: failed, ended with 1: no help" in encode.as_text(result)


def test_run_refuses_unknown_sections(tokenizer):
    with pytest.raises(ValueError, match="'speed'.*choose from throughput"):
        encode.run(tokenizer, sections=["speed"])


def test_a_model_without_decoder_is_not_decoded(tokenizer):
    bare = VisualTokenizer(replace(tokenizer.config, decoder=None)).eval()
    result = encode.run(bare, repeats=1, work=WORK, sections=["decode"])
    assert "no pixel decoder" in encode.as_text(result)


def test_trunk_equals_naflex():
    pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = EncoderConfig(width=32, depth=2, heads=2, mlp_width=48, position_grid=3)
    encoder = Encoder(config).eval()
    for parameter in encoder.parameters():  # biases and norms too, lest a swap go unseen
        torch.nn.init.normal_(parameter, std=0.3)
    # Neither below the position table: there the tower smooths it and ours does not.
    grids = ((3, 5), (4, 7))
    patches = torch.randn(sum(lengths_of(grids)), 768)
    tower = components.naflex_twin(encoder)
    inputs = components.naflex_inputs(PatchBatch(patches_TD=patches, grids_hw=grids))
    with torch.inference_mode():
        ours = F.layer_norm(
            encoder(PatchBatch(patches_TD=patches, grids_hw=grids)), (32,), eps=1e-6
        )
        theirs = tower(**inputs).last_hidden_state
    mask = inputs["pixel_attention_mask"].bool()
    assert mask.sum(1).tolist() == [15, 28] and inputs["pixel_values"].shape == (2, 28, 768)
    torch.testing.assert_close(theirs[mask], ours, rtol=1e-4, atol=1e-4)
