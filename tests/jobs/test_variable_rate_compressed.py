"""Variable rate with `--compress`: ids beyond the counts are not stored, and come back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from refined import page, pictures, plain_tokenizer, refined_tokenizer, saved_pictures

from viq.codec import CountedTables, EntropyModel
from viq.core.codes import Codes
from viq.core.types import CodesError, ViqError
from viq.data.sources.open import open_source
from viq.eval.compare.tokenizers import TokenizerRow
from viq.jobs.encode import encode
from viq.jobs.pipeline import EncodeOptions
from viq.jobs.store.lint import lint
from viq.jobs.store.merge import merge
from viq.models.tokenizer.counted import parts_of
from viq.models.tokenizer.tokenizer import VisualTokenizer
from viq.store.dataset import CodeDataset
from viq.store.folder import Store
from viq.store.rows import CodesReader
from viq.store.salvage import rows_or_reasons
from viq.train.class_tables import fit_class_tables
from viq.train.counted_tables import fit_counted_tables
from viq.train.entropy import train_entropy

pytest.importorskip("constriction")
BPP = 0.6


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_pictures(tmp_path_factory.mktemp("photos"), 21, 70)


@pytest.fixture(scope="module")
def model(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> VisualTokenizer:
    """With an entropy model, fitted to pictures by the command's own function."""
    folder = tmp_path_factory.mktemp("model")
    refined_tokenizer().save_pretrained(folder)
    found = train_entropy(VisualTokenizer.from_pretrained(folder), [str(photos)])
    assert found["images"] > 21  # some of them at other rates as well
    return VisualTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def store(model: VisualTokenizer, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "store"
    options = EncodeOptions(bpp=BPP, shard_size=8, compress=True)
    report = encode(model, open_source(str(photos)), out, options)
    assert not report.failures and report.images == 21
    return out


def codes_in(store: Path) -> list[Codes]:
    return [row.codes for row in Store(store).rows() if row.codes is not None]


def test_what_is_read_is_what_encode_gives(
    model: VisualTokenizer, photos: Path, store: Path, tmp_path: Path
) -> None:
    """Every id, those too that are not stored; also by a reader of four, and plain again."""
    wanted = model.encode(sorted(photos.iterdir()), bpp=BPP, compress=True)
    found = codes_in(store)
    assert found == wanted
    assert any((~codes.kept).any() for codes in wanted)
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(one.ids, other.ids)
    data = CodeDataset(store, cache=tmp_path / "cache")
    np.testing.assert_array_equal(data[5].codes[0].ids, wanted[5].ids)
    merge([store], tmp_path / "plain")
    assert codes_in(tmp_path / "plain") == wanted and lint(store)["problems"] == 0
    assert model.decode(found[3])[0].tobytes() == model.decode(wanted[3])[0].tobytes()


def test_rates_are_of_what_is_stored(model: VisualTokenizer, photos: Path, store: Path) -> None:
    paths, entropy = sorted(photos.iterdir())[:6], model.entropy
    assert isinstance(entropy, CountedTables)
    plain = model.encode(paths, bpp=BPP)
    packed = model.encode(paths, bpp=BPP, compress=True)
    room = BPP * 96 * 128 / 8
    for before, after in zip(plain, packed, strict=True):
        assert entropy.stored_bytes(after) <= room < entropy.stored_bytes(after) + 8
        assert after.total > before.total
    (small,) = model.encode(paths[0], nbytes=500, compress=True)
    assert entropy.stored_bytes(small) <= 500 < len(small.to_bytes())
    row = TokenizerRow("m", model, bpp=BPP, compress=True)
    encoded = row.encode(row.prepare(pictures(1, 70)[0]), None)
    assert encoded.bits == 8 * entropy.stored_bytes(packed[0])
    assert encoded.data == packed[0] and "entropy coded" in row.note


def test_a_row_is_read_alone(store: Path) -> None:
    wanted = codes_in(store)
    with CodesReader(sorted(store.glob("part-*.parquet"))[1]) as reader:
        (row,) = reader.rows(only=3)
    assert row.codes is not None and row.codes == wanted[8 + 3]
    np.testing.assert_array_equal(row.codes.ids, wanted[8 + 3].ids)


def test_damage_is_named(store: Path, tmp_path: Path) -> None:
    """Of payloads and of counts, each in a file that is otherwise whole."""
    part, wanted = sorted(store.glob("part-*.parquet"))[0], codes_in(store)[:8]
    for entropy in store.glob("_entropy*"):
        (tmp_path / entropy.name).write_bytes(entropy.read_bytes())
    table = pq.read_table(part)
    for name in ("codes", "code_counts"):
        values = table[name].to_pylist()
        broken = bytearray(values[2])
        broken[len(broken) // 2] ^= 0x55
        values[2] = bytes(broken)
        place = table.schema.get_field_index(name)
        other = table.set_column(place, table.schema.field(name), pa.array(values, pa.binary()))
        metadata = {k: v for k, v in table.schema.metadata.items() if k != b"viq.sums"}
        path = tmp_path / f"{name}.parquet"
        pq.write_table(other.replace_schema_metadata(metadata), path)
        with CodesReader(path) as reader, pytest.raises(CodesError, match="02.png': ") as told:
            list(reader.rows())
        assert "\n" not in str(told.value)
        with CodesReader(path) as reader:
            rows = list(rows_or_reasons(reader))
        kept = [row.codes for row in rows if not isinstance(row, CodesError)]
        assert kept == wanted[:2] + wanted[3:]


def test_tables_of_four_codes_still_compress_counted_ones(
    model: VisualTokenizer, photos: Path, tmp_path: Path
) -> None:
    """What an entropy model from before counts has written is read, four ids a patch."""
    paths = sorted(photos.iterdir())
    old = fit_class_tables(model.encode(paths), model.quantizer, model.fingerprint)
    model.save_pretrained(tmp_path / "old")
    old.save(tmp_path / "old")
    tokenizer = VisualTokenizer.from_pretrained(tmp_path / "old")
    assert not EntropyModel.load(tmp_path / "old").counted
    options = EncodeOptions(bpp=BPP, compress=True)
    encode(tokenizer, open_source(str(photos)), tmp_path / "store", options)
    wanted = tokenizer.encode(paths, bpp=BPP, compress=True)
    found = codes_in(tmp_path / "store")
    assert found == wanted
    np.testing.assert_array_equal(found[0].ids, wanted[0].ids)


def test_what_counts_say_is_fitted_beside_tables(
    model: VisualTokenizer, photos: Path, tmp_path: Path
) -> None:
    model.save_pretrained(tmp_path)
    tokenizer = VisualTokenizer.from_pretrained(tmp_path)
    train_entropy(tokenizer, [str(photos)], overwrite=True, counts_only=True, limit=16)
    before, after = model.entropy, EntropyModel.load(tmp_path)
    for name, tensor in before.tensors.items():
        same = np.array_equal(tensor, after.tensors[name])
        assert same != name.startswith("group"), name
    plain_tokenizer().save_pretrained(tmp_path / "plain")
    with pytest.raises(ViqError, match="has no refinement"):
        unrefined = VisualTokenizer.from_pretrained(tmp_path / "plain")
        train_entropy(unrefined, [str(photos)], counts_only=True)


def test_counts_make_classes_cheaper(model: VisualTokenizer, photos: Path) -> None:
    codes = model.encode(sorted(photos.iterdir()), bpp=0.5)
    quantizer, refinement = parts_of(model)
    assert isinstance(model.entropy, CountedTables)
    entropy = fit_counted_tables(model.entropy, codes, quantizer.code, refinement)
    even = CountedTables(
        entropy.tensors | {
            name: np.full_like(entropy.tensors[name], 1024) for name in ("group_high", "group_low")
        },
        entropy.levels, entropy.fingerprint,
    )  # fmt: skip
    assert entropy.bits(codes) < even.bits(codes)


def test_of_a_palette_the_first_id_is_packed(model: VisualTokenizer) -> None:
    (codes,), entropy = model.encode(page(), bpp=0.5, compress=True), model.entropy
    assert codes.palettes.mean() > 0.3
    assert entropy.stored_bytes(codes) <= 0.5 * 160 * 128 / 8
    payload = entropy.compress([codes])
    (read,) = entropy.decompress(payload, [codes.size], [codes.tile], [codes.counts], codes.meaning)
    np.testing.assert_array_equal(read.ids, codes.ids)
    assert (
        model.decode(replace(codes, ids=read.ids))[0].tobytes() == model.decode(codes)[0].tobytes()
    )
