"""docs/integrations.md works: every block of every section, with the real client.

A section runs in a folder with small stand-ins under the names that it uses: a model, a tokenizer,
photos, a store. What a block needs that is not installed here is told in a skip; the other blocks
of the section have run by then.
"""

import importlib.util
import json
import re
import shutil
import tarfile
from pathlib import Path
from typing import Any, NamedTuple

import chat_formats
import fake_hub
import object_store
import pytest
import tiny
import tiny_mllm
from mllm_parts import said
from tutorials import blocks, run

import viq
from viq.core.remote import RemoteFolder
from viq.data.sources.open import open_source
from viq.jobs.encode import encode
from viq.jobs.pipeline import EncodeOptions
from viq.store.folder import Store

PAGE = Path(viq.__file__).parent.parent.parent / "docs/integrations.md"
if not PAGE.is_file():
    pytest.skip("needs the source tree", allow_module_level=True)
LLAMA = "meta-llama/Llama-3.2-1B-Instruct"


class Section(NamedTuple):
    """Python before and after the blocks of a section, and what is put into its text."""

    before: str = ""
    after: str = ""
    swaps: tuple[tuple[str, str], ...] = ()


OURS = """
import viq, viq.mllm
from PIL import Image
folder = "model"
"""
MODEL = """
model = viq.ViQForConditionalGeneration.from_pretrained(folder)
processor = viq.ViQProcessor.from_pretrained(folder)
"""
TALKS = """
def said(question, answer):
    roles = [("user", question), ("assistant", answer)]
    return [{"role": role, "content": text} for role, text in roles]
talks = [said("What?", "A red cup."), said("How many?", "2")]
images = [[Image.open("photos/0.png")], [Image.open("photos/1.png")]]
"""
# Three epochs of two samples are enough.
TRAINED = """
assert trainer.state.global_step >= 1
assert all(entry.get("loss", 1) > 0 for entry in trainer.state.log_history)
"""
# As the page says of machines without a GPU.
ON_CPU = (('SFTConfig("out", ', 'SFTConfig("out", use_cpu=True, bf16=False, '),)
SECTIONS = {
    "transformers": Section(
        after="assert type(answers) is list and isinstance(answers[0], str)",
        swaps=(("runs/mllm/2-answers/model", "model"), ("photo.jpg", "a.jpg")),
    ),
    "Language models and their formats": Section(
        "from viq.mllm.loading import load_mllm",
        "assert load_mllm('runs/llama')[0].config.text_config.model_type == 'llama'",
        (
            ("--tokenizer MODEL", "--tokenizer tokenizer"),
            ("mllm qwen", "mllm debug"),  # a recipe of a few steps
        ),
    ),
    "TRL": Section(OURS + MODEL + TALKS, TRAINED, ON_CPU),
    "Stored codes in trainers": Section(
        OURS + MODEL,
        "assert inputs['image_grid_hw'].shape == (2, 2)",
        ON_CPU,
    ),
    "PEFT": Section(
        OURS + MODEL,
        "assert type(model) is viq.ViQForConditionalGeneration",
    ),
    "The tokenizer in transformers": Section(
        OURS + """
folder = "tokenizer"
images = [Image.open("photos/0.png"), Image.open("photos/1.png")]
""",
        "assert [picture.size for picture in pictures] == [image.size for image in images]",
    ),
    "Arrays and tensors as images": Section(
        OURS + """
import numpy as np, torch
tok = viq.load("tokenizer")
processor = viq.mllm.ViQImageProcessor()
""",
    ),
    "A quantized language model": Section(
        OURS, "assert type(model) is viq.ViQForConditionalGeneration"
    ),
    "ONNX and torch.export": Section(
        "from pathlib import Path", "assert Path('encoder.onnx').stat().st_size > 1000"
    ),
    "DuckDB, Polars, pandas, pyarrow": Section(
        after="""
for name in ("large", "wide", "frame", "table"):
    assert [sample.key for sample in viq.CodeDataset(f"{name}.parquet")] == [data[0].key], name
"""
    ),
    "Lance": Section(after="assert [sample.codes[0].size[1] for sample in data] == [528]"),
    "datasets and the hub": Section(after="assert len(data) == len(rows) == 4"),
    "S3, Google Cloud, and all that fsspec reads": Section(after="assert len(list(data)) == 4"),
    "torchdata": Section(
        after="assert len(map_style) == 4 and 'num_workers' in str(state)"
    ),
    "Ray": Section(),
}  # fmt: skip


# Modules of blocks by the names that they use; a block whose module is not there is not run.
OPTIONAL = ("datasets", "duckdb", "lance", "onnx", "pandas", "peft", "polars", "torchao",
            "torchdata", "torchvision", "transformers", "trl")  # fmt: skip


def sections() -> dict[str, str]:
    """The text below each heading that has blocks which run, without what installs."""
    parts = re.split(r"^## (.+)\n", PAGE.read_text(), flags=re.MULTILINE)
    texts = (re.sub(r"^pip install .+\n", "", text, flags=re.MULTILINE) for text in parts[2::2])
    found = dict(zip(parts[1::2], texts, strict=True))
    return {name: text for name, text in found.items() if any(b.runs for b in blocks(text))}


def python(text: str) -> str:
    return f"```python\n{text.strip()}\n```\n" if text else ""


def run_section(name: str, folder: Path, *swaps: tuple[str, str], **environment: str) -> None:
    """Run the blocks of a section, with other words in place of some.

    Raises:
        AssertionError: a block failed, or the words are not there.
    """
    section, page, missing = SECTIONS[name], "", set[str]()
    for block in blocks(sections()[name]):
        needs = {m for m in OPTIONAL if re.search(rf"\b{m}\b", block.text)}
        absent = {module for module in needs if not importlib.util.find_spec(module)}
        missing |= absent
        page += "" if absent else f"```{block.kind}\n{block.text}```\n"
    for old, new in (*section.swaps, *swaps):
        assert missing or old in page, f"{old} is not in the section"
        page = page.replace(old, new)
    after = "" if missing else section.after
    if page:
        run(python(section.before) + page + python(after), folder, **environment)
    if missing:
        pytest.skip(f"a block needs what is not installed: {', '.join(sorted(missing))}")


def test_every_section_with_code_is_run() -> None:
    assert set(sections()) == set(SECTIONS)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which sections run."""
    place = tmp_path_factory.mktemp("integrations")
    (place / "photos").mkdir()
    rows = []
    for number, width in enumerate((36, 50, 33, 528)):
        name = f"photos/{number}.png"
        tiny.picture(number, 20, width).save(place / name)
        rows.append({"image": name, "messages": said("<image>What?", "A red cup.")})
    tiny.picture(9, 20, 30).save(place / "a.jpg")
    (place / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    tokenizer = tiny_mllm.saved_tokenizer(place / "tokenizer", tile=64)
    for out in ("codes", "codes.parquet"):
        encode(tokenizer, open_source(str(place / "rows.jsonl")), place / out, EncodeOptions())
    for part in tiny_mllm.model_and_processor(place / "tokenizer"):
        part.save_pretrained(place / "model")
    words = chat_formats.tokenizer("llama")
    words.save_pretrained(place / LLAMA)
    chat_formats.language("llama", len(words)).save_pretrained(place / LLAMA)
    return place


@pytest.fixture
def folder(prepared: Path, tmp_path: Path) -> Path:
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    return tmp_path


SERVED = {"datasets and the hub", "S3, Google Cloud, and all that fsspec reads", "Ray"}


@pytest.mark.parametrize("name", sorted(set(SECTIONS) - SERVED))
def test_a_section_runs(name: str, folder: Path) -> None:
    run_section(name, folder)


def test_the_hub_is_read(folder: Path) -> None:
    """A stand-in for the hub holds the store, uploaded as it is."""
    with fake_hub.hub("owner/name") as server:
        files = sorted((folder / "codes").iterdir())
        server.repos["owner/name"] = {file.name: file.read_bytes() for file in files}
        environment = {"HF_ENDPOINT": server.url, "HF_HUB_OFFLINE": "0", "HF_TOKEN": "hf_test"}
        environment |= {"HF_HOME": str(folder / "hf"), "XDG_CACHE_HOME": str(folder / "cache")}
        run_section("datasets and the hub", folder, **environment)


def test_stores_in_buckets(folder: Path) -> None:
    with object_store.s3() as url:
        bucket = RemoteFolder(url)
        for number in (0, 1):
            path = folder / f"{number:03}.tar"
            with tarfile.open(path, "w") as tar:
                tar.add(folder / f"photos/{number}.png", f"{number}.png")
            bucket.put(path, path.name)
        swaps = ("{000..127}", "{000..001}"), ("s3://bucket", url)
        cache = str(folder / "cache")
        run_section(
            "S3, Google Cloud, and all that fsspec reads", folder, *swaps, XDG_CACHE_HOME=cache
        )


@pytest.mark.slow
def test_ray_encodes_into_a_bucket(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray.data", reason="the cluster engine: pip install 'viq[ray]'")
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with object_store.s3() as url:
        cluster: Any = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
        try:
            run_section("Ray", folder, ("head:6379", cluster.address), ("s3://bucket", url))
        finally:
            cluster.shutdown()
        assert len(list(Store(f"{url}/codes"))) == 4
