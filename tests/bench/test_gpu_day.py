"""What is measured on a machine with one GPU, here on the CPU in tiny shapes: every part runs to
its end, and what it compares is the same; what fails or hangs takes nothing else along."""

import itertools
import json
import shutil
import subprocess
import sys
import textwrap
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from viq.bench.gpu import (
    chat_cells,
    draw_cells,
    encode_cells,
    mllm_cells,
    parity,
    tables,
    tiny,
    train_cells,
)
from viq.bench.gpu.cells import RESULTS, Cells, read_results, supervised
from viq.bench.gpu.kept import KeptSamples
from viq.bench.mllm_work import pack_samples, tokenizer_shape
from viq.core.measure import environment, machine
from viq.core.types import IMAGE_TOKEN, ViqError, language_tokens
from viq.data.corpora.corpora import split_of
from viq.data.synthetic.draw import draw
from viq.mllm.generation import CodeGenerator
from viq.mllm.loading import load_mllm
from viq.models.tokenizer.embedder import CodeEmbedder
from viq.models.tokenizer.presets import g
from viq.models.tokenizer.tokenizer import VisualTokenizer
from viq.recipes import generation as generation_recipes
from viq.recipes import mllm as mllm_recipes
from viq.recipes.tokenizer import train_small
from viq.train.distributed import make_accelerator
from viq.train.mllm.run import MllmRun
from viq.train.tokenizer.objectives import DecoderObjective

pytest.importorskip("transformers")
pytest.importorskip("accelerate")
CPU = torch.device("cpu")
ROOT = Path(__file__).parents[2]


def cells_in(folder: Path, seconds: float = 600) -> Cells:
    return Cells(folder, seconds=seconds, device=CPU)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All parts but what is compiled."""
    folder = tmp_path_factory.mktemp("day")
    cells = cells_in(folder)
    cells.note("machine", "machine", {**machine(), "device": "cpu", "tiny": True})
    parity.measure(cells, ROOT / "tests" / "golden", lengths=(1, 7, 7), side=48)
    options = {**tiny.MLLM_OPTIONS, "compiled": (), "lengths": ("4k",)}
    mllm_cells.measure(cells, tiny.MLLM, **options)
    encode_cells.measure(cells, tiny.ENCODE, compiled=False)
    train_cells.measure(cells, train_small(), None, replace(tiny.SMALL, steps=2))
    return folder


def test_every_part_ends_and_nothing_fails(measured: Path) -> None:
    lines = read_results(measured)
    assert [line for line in lines if "failed" in line or "skipped" in line] == []
    cells = tables.by_part(lines)
    golden = cells["parity"]["golden, float32"]
    assert golden["flips"] == 0 and max(golden["errors"].values()) < 5e-5
    attention = cells["parity"]["attention, 16 heads of 96, causal"]
    assert max(attention["errors"]["looped"].values()) < 1e-5
    for model in parity.MODELS:
        assert set(cells["parity"][f"codes of {model}, float32"]["flips"].values()) == {0}
    # On a CPU half precision is another rounding: some codes flip, or nothing was compared.
    assert cells["parity"]["codes of viq-tiny, bfloat16"]["flips"]["to_cpu"] > 0
    assert list(cells["mllm"]["0.5b 4k step"]["step"]) == list(mllm_cells.WAYS)
    assert cells["encode"]["codes"]["same_codes_official"] == 1
    assert cells["encode"]["trunk"]["max_difference_official"] < 1e-4
    assert cells["train"]["small"]["psnr_db"]["small"] > 10


def test_tables_and_plots(measured: Path) -> None:
    files = tables.write_page(measured, train_small())
    assert [file.name for file in files] == [
        "page.md", "gpu-encode.svg", "gpu-mllm.svg", "gpu-train.svg",
    ]  # fmt: skip
    text = files[0].read_text()
    assert "| 0.5b 4k |" in text and "| 50% |" in text  # the paper's saving, in a step
    assert "no figures" in text and "Not measured" not in text
    for row in (line for line in text.splitlines() if line.startswith("| 0.5b")):
        assert row.count("|") == 10
    with pytest.raises(ViqError, match="has no results.jsonl: measure first"):
        tables.write_page(measured / "nothing", train_small())


def test_the_trained_decoder_comes_back_whole(measured: Path, tmp_path: Path) -> None:
    again = train_cells.assemble(measured, train_small(), tiny.SMALL.decoder)
    base = train_cells.small(train_small(), tiny.SMALL.decoder)
    assert again.fingerprint == base.fingerprint  # codes of the bundled model are its own
    assert base.decoder is not None and again.decoder is not None
    before, after = base.decoder.state_dict(), again.decoder.state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    names = train_cells.save_decoder(again, tmp_path, limit=20_000)
    assert len(names) > 2
    whole = train_cells.assemble(tmp_path, train_small(), tiny.SMALL.decoder)
    assert whole.decoder is not None
    parts = whole.decoder.state_dict()
    assert all(torch.equal(parts[name], after[name].bfloat16().float()) for name in after)
    (tmp_path / names[1]).unlink()
    with pytest.raises(ViqError, match="decoder"):
        train_cells.assemble(tmp_path, train_small(), tiny.SMALL.decoder)
    with pytest.raises(ViqError, match="holds no decoder-0"):
        train_cells.assemble(tmp_path / "nothing", train_small())


def test_a_model_that_answers_goes_on_from_kept_samples(tmp_path: Path) -> None:
    recipe = mllm_recipes.debug()
    first = replace(recipe.stages[0], loop=replace(recipe.stages[0].loop, steps=1))
    last = replace(first, name="2-answers", parts=("projector", "language"))
    recipe = replace(recipe, stages=(first, last))
    run = MllmRun(
        recipe=recipe, out=tmp_path / "run", accelerator=make_accelerator("float32"), hidden=True
    )
    run.train()
    shutil.rmtree(run.out / "2-answers")
    count = chat_cells.keep(run.out, [], None, run.out / chat_cells.KEPT)
    kept = KeptSamples.load(run.out / chat_cells.KEPT)
    assert count == len(kept.groups) > 20

    embedder = CodeEmbedder.from_tokenizer(recipe.tokenizer)
    ids = torch.from_numpy(kept.codes_TS.astype("int64"))
    grids = [(int(rows), int(cols)) for rows, cols in kept.grids]
    with torch.inference_mode():
        expected = embedder(ids, grids)
    assert torch.allclose(chat_cells.kept_features(embedder, kept, CPU), expected, atol=1e-5)

    # What is packed is what the run's own stream would pack of these samples.
    packed = kept.packed([3, 1])
    assert packed.lengths == tuple(int(kept.starts[i + 1] - kept.starts[i]) for i in (3, 1))
    assert packed.grids_hw == (grids[kept.pictures[3]], grids[kept.pictures[1]])
    assert int((packed.ids_L == IMAGE_TOKEN).sum()) == sum(map(language_tokens, packed.grids_hw))

    cells = cells_in(tmp_path)
    chat_cells.measure(cells, run.out, seconds=0.5)
    (line,) = [each for each in read_results(tmp_path) if each["cell"] == "answers"]
    assert line["steps"] >= 1 and "failed" not in line
    folder = chat_cells.assemble(tmp_path, run.out)
    before, _ = load_mllm(run.out / "1-projector" / "model")
    after, _ = load_mllm(folder)
    old, new = before.state_dict(), after.state_dict()
    moved = {
        name
        for name in old
        if not torch.equal(old[name], new[name])
        and not torch.equal(old[name].half(), new[name].half())
    }
    assert any("language_model" in name for name in moved)
    assert not any("embedder" in name or "whitener" in name for name in moved)
    (tmp_path / "answers-0.safetensors").unlink()
    with pytest.raises(ViqError, match="holds no answers-0"):
        chat_cells.assemble(tmp_path, run.out)
    with pytest.raises(ViqError, match="holds no samples"):
        KeptSamples.load(tmp_path / RESULTS)


def test_a_model_that_draws_goes_on_from_kept_samples(tmp_path: Path) -> None:
    run, recipe = tmp_path / "run", generation_recipes.debug()
    run.mkdir()
    (run / "recipe.json").write_text(json.dumps(asdict(recipe)))
    assert draw_cells.keep(run, run / draw_cells.KEPT) == recipe.pictures
    kept = KeptSamples.load(run / draw_cells.KEPT)
    cells = cells_in(tmp_path)
    draw_cells.measure(cells, run, seconds=0.5)
    (line,) = [each for each in read_results(tmp_path) if each["cell"] == "drawing"]
    assert line["steps"] >= 1 and "failed" not in line
    model = CodeGenerator.from_pretrained(draw_cells.assemble(tmp_path, run))
    assert model.config.most_patches == int(kept.grids.prod(1).max())


def test_all_of_a_group_come_before_any_comes_again() -> None:
    samples = [([1, 2], [-100, 2], -1, number % 3) for number in range(30)]
    kept = KeptSamples.of(samples, [np.zeros((1, 1, 4), np.uint16)])
    drawn = list(itertools.islice(kept.drawn({0: 3.0, 1: 1.0, 2: 0.0}, seed=0), 400))
    first = [number for number in drawn if number % 3 == 0]
    assert len(set(first[:10])) == 10 and first[:10] != first[10:20]
    assert {number % 3 for number in drawn} == {0, 1}
    assert 250 < len(first) < 350


def test_known_codes_train_as_codes_that_are_made() -> None:
    tokenizer = train_cells.small(train_small(), tiny.SMALL.decoder)
    work = replace(tiny.SMALL, scales=(1.0, 0.5))
    pictures = [draw("scene", (64, 96), 0).image, draw("chart", (96, 64), 1).image]
    data = train_cells.CodedPictures.of(tokenizer, pictures, work, CPU)
    assert data.grids == ((4, 6), (6, 4), (2, 3), (3, 2))
    micro = train_cells._Endless(data, 40).batch()
    assert micro.ids_TS is not None and len(micro.ids_TS) == len(micro.mask_TD) >= 40
    objective = DecoderObjective(tokenizer)
    known = objective(micro)["rmse"].item()
    assert objective(replace(micro, ids_TS=None))["rmse"].item() == pytest.approx(known, rel=1e-6)


def test_operations_are_those_that_pytorch_counts() -> None:
    torch.manual_seed(0)
    tokenizer = VisualTokenizer(tokenizer_shape(g(), tiny.ENCODE.scale)).eval()
    batch = pack_samples(4096, tiny.MLLM, CPU, torch.float32).batch
    with torch.no_grad(), FlopCounterMode(display=False) as counted:
        tokenizer.ids(batch)
    ours = encode_cells.encode_flops(tokenizer.config, batch.grids_hw)
    assert sum(ours.values()) == pytest.approx(counted.get_total_flops(), rel=0.01)


def test_photos_for_a_machine_to_which_little_is_carried(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(40):
        draw("scene", (120, 160), number).image.save(folder / f"{number}.png")
    out = tmp_path / "photos.parquet"
    count = train_cells.pack_photos([str(folder)], out, mib=0.05)
    assert 2 < count < 40 and out.stat().st_size <= 0.05 * 2**20
    found, held = train_cells._pictures(out, replace(tiny.SMALL, drawn=0, photos=None, judged=99))
    assert len(found) + len(held) - 6 == count and max(found[0].size) == tiny.SMALL.side
    # Held out are those that are where they come from: of few photos, it may be none.
    there = {path.name for path in folder.iterdir() if split_of(path.name) == "held-out"}
    assert {name for name, _ in held[6:]} <= there
    for name in there:
        (folder / name).unlink()
    train_cells.pack_photos([str(folder)], tmp_path / "train.parquet", mib=0.05)
    found, held = train_cells._pictures(tmp_path / "train.parquet", replace(tiny.SMALL, drawn=0))
    assert found and len(held) == min(6, tiny.SMALL.judged)
    with pytest.raises(ViqError, match="is there: give another name"):
        train_cells.pack_photos([str(folder)], out, mib=1)
    with pytest.raises(ViqError, match="no photo fits into 0 MiB"):
        train_cells.pack_photos([str(folder)], tmp_path / "none.parquet", mib=0)


# Cells that fail


def test_a_cell_that_fails_is_one_line(tmp_path: Path) -> None:
    said: list[str] = []
    cells = Cells(tmp_path, seconds=60, device=CPU, echo=said.append)

    def broken() -> dict:
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 99 GiB")

    assert cells.run("a", "large", broken, expected=1) is None
    assert cells.run("a", "good", lambda: {"x": 1}, expected=1) == {"x": 1}
    assert cells.run("a", "good", lambda: {"x": 2}, expected=1) is None  # is done
    cells.reserve(59)
    assert cells.run("a", "late", lambda: {"x": 3}, expected=30) is None
    large, good, late = read_results(tmp_path)
    assert large["failed"] == "out of memory" and good["x"] == 1
    assert late["skipped"].startswith("takes about 30 s, ")
    assert said[0] == "a: large: out of memory"
    # In a later call there is time for what was left out, and nothing is done twice.
    again = cells_in(tmp_path)
    assert again.run("a", "late", lambda: {"x": 3}, expected=30) == {"x": 3}
    assert again.run("a", "good", lambda: {"x": 4}, expected=1) is None
    assert tables.by_part(read_results(tmp_path))["a"]["late"]["x"] == 3


def test_results_of_others_are_refused(tmp_path: Path) -> None:
    (tmp_path / RESULTS).write_text('{"part": "a", "cell": "b"}\n{"part": "a", "ce')
    assert read_results(tmp_path) == [{"part": "a", "cell": "b"}]  # the last was cut off
    (tmp_path / RESULTS).write_text("[]\n")
    with pytest.raises(ViqError, match=r"results.jsonl line 1: no result of a cell"):
        read_results(tmp_path)
    (tmp_path / RESULTS).write_text("{\n")
    with pytest.raises(ViqError, match=r"results.jsonl line 1: is not JSON"):
        read_results(tmp_path)


CHILD = """
import os, sys, time
from pathlib import Path
from types import SimpleNamespace
from viq.bench.gpu.cells import Cells
cells = Cells(Path(sys.argv[1]), seconds=float(sys.argv[2]), device=SimpleNamespace(type="cpu"))
cells.run("a", "one", lambda: {}, expected=1)
cells.run("a", "dies", lambda: os._exit(9), expected=1)
cells.run("a", "hangs", lambda: time.sleep(999), expected=-8.0)
cells.run("a", "last", lambda: {"x": 1}, expected=1)
"""


def test_what_dies_or_hangs_takes_nothing_along(tmp_path: Path) -> None:
    """`expected` below zero makes its limit, twice that and 20 s, one of 4 s."""

    def command(seconds: float) -> list[str]:
        return [sys.executable, "-c", textwrap.dedent(CHILD), str(tmp_path), str(seconds)]

    supervised(command, tmp_path, seconds=60, environment=environment())
    lines = {line["cell"]: line for line in read_results(tmp_path)}
    assert list(lines) == ["one", "dies", "hangs", "last"] and lines["last"]["x"] == 1
    assert lines["dies"]["failed"] == "ended its process with 9"
    assert lines["hangs"]["failed"] == "stopped after 4 s"


def test_the_command_says_what_is_missing(tmp_path: Path) -> None:
    def called(*options: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(ROOT / "scripts" / "gpu_day.py"), *options]
        return subprocess.run(command, capture_output=True, text=True, env=environment())

    done = called("--page", str(tmp_path))
    assert done.returncode == 2 and done.stderr.startswith("gpu_day: ")
    assert "--only speed: choose from parity, mllm" in called("--only", "speed").stderr
    if not torch.cuda.is_available():
        done = called("--out", str(tmp_path), "--minutes", "1")
        assert done.returncode == 0 and "no CUDA device: give --device cpu --tiny" in done.stderr
        (line,) = [json.loads(x) for x in (tmp_path / RESULTS).read_text().splitlines()]
        assert line["failed"] == "ended with 2"
