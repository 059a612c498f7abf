"""Jobs on stores: what lint finds, what stats and diff count, what merge and export keep."""

import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from test_compress import LEVELS, MODEL, STAMP, codes_of
from tiny import tokenizer
from typer.testing import CliRunner

from viq.cli import app
from viq.core.codes import Codes
from viq.core.types import CodesError, ViqError
from viq.jobs.store import near_duplicates
from viq.jobs.store.lint import lint
from viq.jobs.store.merge import export_webdataset, merge
from viq.jobs.store.near_duplicates import by_overlap, by_pooled
from viq.jobs.store.stats import diff, stats
from viq.report.preview import preview
from viq.store.columns import Extras
from viq.store.folder import INDEX, JOB, PARQUET, Index, Store, shard_name
from viq.store.job import SHARD_SIZE, digest, open_job
from viq.store.maker import with_maker
from viq.store.rows import CodeRow, CodesWriter, StoreInfo, schema

INFO = StoreInfo(model="viq-test", fingerprint=STAMP, levels=LEVELS)


def rows_of(keys: list[str], images: int = 1) -> list[list[CodeRow]]:
    return [
        [
            CodeRow(key, codes_of((30, 20 + n), seed=n), image, {"caption": f"of {key}", "n": n})
            for image in range(images)
        ]
        for n, key in enumerate(keys)
    ]


def write(folder: Path, samples: list[list[CodeRow]], shard_size: int = 4) -> Path:
    extras = Extras.inferred([sample[0].extras for sample in samples])
    count, keys = digest(sample[0].key for sample in samples)
    columns = {f.name: str(f.type) for f in extras.fields}
    index = Index(
        info=INFO, options={SHARD_SIZE: shard_size}, columns=columns, inputs=count, keys=keys
    )
    with open_job(folder, index, extras) as job:
        for start in range(0, count, shard_size):
            with job.writing(start // shard_size) as shard:
                for sample in samples[start : start + shard_size]:
                    shard.add([replace(r, extras=extras.pack(r.extras)) for r in sample])
        job.finish()
    return folder


def keys(count: int, first: int = 0) -> list[str]:
    return [f"k{i}" for i in range(first, first + count)]


def problems(path: Path) -> str:
    return "\n".join(f"{item['where']}: {item['problem']}" for item in lint(path)["listed"])


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return write(tmp_path / "store", rows_of(keys(10)))


def test_a_sound_store(store: Path) -> None:
    result = lint(store)
    assert (result["problems"], result["rows"], result["shards"]) == (0, 10, 3)
    assert lint(store / shard_name(0))["problems"] == 0


def test_missing_unlisted_and_damaged_shards(store: Path) -> None:
    (store / "part-00009.parquet").write_bytes((store / shard_name(0)).read_bytes())
    (store / shard_name(1)).unlink()
    data = bytearray((store / shard_name(2)).read_bytes())
    data[200] ^= 1
    (store / shard_name(2)).write_bytes(data)
    found = problems(store)
    assert "part-00009.parquet: is not in the index" in found
    assert "part-00001.parquet: missing" in found
    assert "part-00002.parquet: its checksum is not that of the index" in found


def test_unfinished_store(store: Path) -> None:
    (store / INDEX).unlink()
    (store / shard_name(1)).unlink()
    assert "unfinished" in problems(store)
    assert "part-00001.parquet: missing" in problems(store)


def test_no_store(tmp_path: Path) -> None:
    assert "does not exist" in problems(tmp_path / "nothing")


def test_bad_rows(tmp_path: Path) -> None:
    path = tmp_path / "codes.parquet"
    with CodesWriter(path, INFO) as writer:
        writer.add("a", codes_of((20, 20)))
        writer.add("a", codes_of((20, 20)))
        writer.add("b", Codes(np.full((1, 1, 4), 60, np.uint16), (9, 9), 7, STAMP))
        writer.add("c", codes_of((20, 20)), image_index=1)
    assert problems(path).splitlines() == [
        f"{path}: row 'a': its key was there before",
        f"{path}: row 'b': code 60 is outside the codebook of 60",
        f"{path}: row 'b': tile 7 is no multiple of 16 px",
        f"{path}: row 'c': is image 1 of its sample, expected 0",
    ]
    table = pq.read_table(path)
    taller = table.set_column(2, "height", [[200, 20, 9, 20]]).cast(with_maker(schema(INFO)))
    pq.write_table(taller, path)
    assert "row 'a' is 200x20 px, which takes" in problems(path)


def test_stats(store: Path, tmp_path: Path) -> None:
    facts = stats(store)
    assert (facts["samples"], facts["rows"], facts["images"], facts["shards"]) == (10, 10, 10, 3)
    assert facts["width"] == {"least": 20, "median": 24, "greatest": 29}
    assert facts["codes"] == 10 * 2 * 2 * 4 == facts["code_use"]["codes"]
    assert facts["columns"]["caption"] == "string"
    several = stats(write(tmp_path / "several", rows_of(keys(3), images=2)))
    assert (several["samples"], several["rows"]) == (3, 6)


def test_bits_of_codes_without_what_rides_along(tmp_path: Path) -> None:
    alone = [[CodeRow(f"k{i}", codes_of((60, 80), seed=i))] for i in range(8)]
    noise = np.random.default_rng(0).bytes(5000).hex()
    talked = [[replace(row, extras={"talk": noise + row.key}) for row in rows] for rows in alone]
    a, b = stats(write(tmp_path / "a", alone)), stats(write(tmp_path / "b", talked))
    assert b["bytes"] > a["bytes"] + 5000
    assert a["bytes_of_codes"] == b["bytes_of_codes"] < a["bytes"]
    assert b["bits_per_code"] == round(8 * b["bytes_of_codes"] / b["codes"], 3)


def test_diff(store: Path, tmp_path: Path) -> None:
    other = write(tmp_path / "other", rows_of(keys(10))[::-1], shard_size=3)
    assert diff(store, other)["equal"]
    samples = rows_of(keys(11))[1:]
    samples[3][0] = replace(samples[3][0], codes=codes_of((30, 24), seed=99))
    samples[5][0] = replace(samples[5][0], extras={"caption": "another", "n": 6})
    result = diff(store, write(tmp_path / "third", samples))
    assert not result["equal"]
    assert result["examples"] == {
        "only_in_first": ["k0"], "only_in_second": ["k10"], "codes_differ": ["k4"],
        "extras_differ": ["k6"],
    }  # fmt: skip
    assert result["same"] == 7


def test_merge(store: Path, tmp_path: Path) -> None:
    samples = rows_of(keys(12, first=8), images=2)
    for sample in samples:
        sample[:] = [replace(row, extras={"label": 5, "n": "text"}) for row in sample]
    other = write(tmp_path / "other", samples)
    with pytest.raises(CodesError, match="'k8' was there before"):
        merge([store, other], tmp_path / "m")
    result = merge([store, other], tmp_path / "m", skip_duplicates=True, shard_size=7)
    assert (result["rows"], result["skipped"]) == (10 + 2 * 10, 2)
    merged = Store(tmp_path / "m")
    rows = list(merged.rows())
    assert [row.key for row in rows] == keys(10) + [k for k in keys(10, first=10) for _ in range(2)]
    assert rows[3].extras == {"caption": "of k3", "n": 3, "label": None}
    assert rows[-1].extras == {"caption": None, "n": "text", "label": 5}
    assert lint(tmp_path / "m")["problems"] == 0
    again = tmp_path / "again"
    merge([store, other], again, skip_duplicates=True, shard_size=7)
    (again / shard_name(1)).unlink()
    merge([store, other], again, skip_duplicates=True, shard_size=7)  # resumed
    assert (again / INDEX).read_bytes() == (tmp_path / "m" / INDEX).read_bytes()


def test_merge_compresses_and_back(store: Path, tmp_path: Path) -> None:
    merge([store], tmp_path / "small", entropy=MODEL)
    small = Store(tmp_path / "small")
    assert small.info.entropy == MODEL.digest
    assert lint(tmp_path / "small")["problems"] == 0
    merge([tmp_path / "small"], tmp_path / "plain", shard_size=4)
    for other in ("small", "plain"):
        assert diff(store, tmp_path / other)["equal"]
    shard = small.file(small.shards[0])
    assert shard.suffix == PARQUET
    for beside in (tmp_path / "small").glob("_entropy-*"):
        beside.unlink()
    with pytest.raises(ViqError, match="which is missing; copy"):
        list(Store(tmp_path / "small"))


def test_stores_of_other_tokenizers_do_not_merge(store: Path, tmp_path: Path) -> None:
    other = tmp_path / "b.parquet"
    with CodesWriter(other, replace(INFO, fingerprint="00000000000000bb")) as writer:
        writer.add("z", replace(codes_of((9, 9)), fingerprint=""))
    with pytest.raises(CodesError, match="encode one of them again"):
        merge([store, other], tmp_path / "m")


def test_export(tmp_path: Path) -> None:
    store = write(tmp_path / "store", [*rows_of(keys(4)), *rows_of(["m/1.x"], images=2)])
    result = export_webdataset(store, tmp_path / "tars", shard_size=3)
    assert result["samples"] == 5
    members = {}
    for path in result["tars"]:
        with tarfile.open(path) as tar:
            members |= {m.name: tar.extractfile(m).read() for m in tar}  # type: ignore[union-attr]
    assert sorted(members)[-3:] == ["000000004.0.viq", "000000004.1.viq", "000000004.json"]
    assert Codes.from_bytes(members["000000002.viq"]) == codes_of((30, 22), seed=2)
    assert json.loads(members["000000004.json"]) == {"key": "m/1.x", "caption": "of m/1.x", "n": 0}
    with pytest.raises(ViqError, match="not empty"):
        export_webdataset(store, tmp_path / "tars")


def test_near_duplicates(tmp_path: Path) -> None:
    path = tmp_path / "codes.parquet"
    whole = codes_of((160, 160), seed=1)
    partly = Codes(whole.ids.copy(), whole.size, 0, STAMP)
    partly.ids[:2] = 0
    info = replace(INFO, levels=(8, 8, 8, 5, 5, 5))
    other = [np.random.default_rng(i).integers(0, 64000, (10, 10, 4)) for i in range(3)]
    with CodesWriter(path, info) as writer:
        for name, ids in zip("abc", other, strict=True):
            writer.add(name, Codes(ids.astype(np.uint16), (160, 160), 0, STAMP))
        ids = other[1].astype(np.uint16)
        ids[:1] = 7
        writer.add("b2", Codes(ids, (160, 160), 0, STAMP))
        writer.add("a2", Codes(other[0].astype(np.uint16), (160, 160), 0, STAMP))
    result = by_overlap(path)
    assert [(p["a"], p["b"]) for p in result["pairs"]] == [("a", "a2"), ("b", "b2")]
    assert result["pairs"][0]["similarity"] == 1
    assert 0.7 < result["pairs"][1]["similarity"] < 0.9


@pytest.fixture(scope="module")
def encoded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A store of real codes, and the folder of the model that made them."""
    folder = tmp_path_factory.mktemp("encoded")
    model = tokenizer()
    model.save_pretrained(folder / "model")
    info = StoreInfo(model="debug", fingerprint=model.fingerprint, levels=model.levels)
    draw = np.random.default_rng(0)
    with CodesWriter(folder / "codes.parquet", info, Extras.inferred([{"caption": "x"}])) as writer:
        images = [draw.integers(0, 256, (20 + 10 * i, 50, 3)).astype(np.uint8) for i in range(7)]
        found = [model.encode(image)[0] for image in images]
        for i, codes in enumerate(found):
            writer.add(f"images/{i}.png", codes, extras={"caption": f"<{i}>"})
        writer.add("again", found[-1], extras={})
    return folder / "codes.parquet", folder / "model"


def test_by_pooled(encoded: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = by_pooled(tokenizer(), encoded[0], threshold=0.999999)["pairs"]
    assert {"a": "images/6.png", "b": "again", "similarity": 1.0} in pairs
    every = by_pooled(tokenizer(), encoded[0], threshold=0)["pairs"]
    monkeypatch.setattr(near_duplicates, "_BLOCK", 3)  # of 8 images: blocks of two kinds
    few = by_pooled(tokenizer(), encoded[0], threshold=0)["pairs"]
    assert len(every) > 20 and {(p["a"], p["b"]) for p in few} == {(p["a"], p["b"]) for p in every}


def test_preview(encoded: tuple[Path, Path], tmp_path: Path) -> None:
    store, model = encoded
    result = preview(tokenizer(), store, tmp_path / "sheet.png", count=5)
    assert result["shown"] == 5
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (5 * 236 + 12, 254 + 12)
    preview(tokenizer(), store, tmp_path / "page.html", count=3, seed=1)
    page = (tmp_path / "page.html").read_text()
    assert page.count("<figure>") == 3 and "&lt;" in page
    assert "http:" not in page and "https:" not in page and "default-src 'none'" in page
    with pytest.raises(ViqError, match="NAME.png or NAME.html"):
        preview(tokenizer(), store, tmp_path / "sheet.gif")
    with pytest.raises(CodesError, match="load the tokenizer that made them"):
        preview(tokenizer(seed=1), store, tmp_path / "sheet.png")


def test_command_line(encoded: tuple[Path, Path], store: Path, tmp_path: Path) -> None:
    codes, model = map(str, encoded)
    out = str(tmp_path)

    def run(*words: str) -> tuple[int, str]:
        done = CliRunner().invoke(app, ["store", *words])
        return done.exit_code, done.output

    for words in (
        ["lint", codes], ["stats", codes], ["diff", codes, codes], ["near-duplicates", codes],
        ["near-duplicates", codes, "--by", "pooled", "--model", model],
        ["merge", str(store), "-o", f"{out}/m"],
        ["export", codes, "-o", f"{out}/tars", "--webdataset"],
        ["preview", codes, "-o", f"{out}/p.png", "--model", model, "--rows", "2"],
    ):  # fmt: skip
        code, text = run(*words, *(["--json"] if "diff" in words or "stats" in words else []))
        assert code == 0, (words, text)
    code, text = run("lint", str(store / JOB))
    assert code == 3 and "1 problems" in text
    code, text = run("diff", codes, str(store), "--json")
    assert code == 3 and json.load(io.StringIO(text))["only_in_second"] == 10
    for words, line in (
        (["export", codes, "-o", f"{out}/x"], "export: say into what: --webdataset"),
        (["near-duplicates", codes, "--by", "eye"], "--by eye: give codes or pooled"),
        (["merge", codes, "-o", f"{out}/c", "--compress", "--model", model], "viq train entropy"),
    ):
        code, text = run(*words)
        assert code == 2 and line in text and text.strip().count("\n") == 0
