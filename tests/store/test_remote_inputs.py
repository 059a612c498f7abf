"""Tar files, tables and pictures in an object store, as inputs."""

import io
import shutil
import signal
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from killed_runs import OPTIONS
from object_store import contents, run
from PIL import Image

from viq.core.remote import RemoteFolder
from viq.data.sources.base import Source, SourceError
from viq.data.sources.open import open_source
from viq.jobs.encode import encode
from viq.models.tokenizer.tokenizer import VisualTokenizer
from viq.store import fetched
from viq.store.folder import Store


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, pictures: Path, bucket: str) -> Path:
    """Three tar files and two tables, in a folder and below the bucket."""
    folder = tmp_path_factory.mktemp("data")
    files = [f for n, f in enumerate(sorted(pictures.iterdir())[:11]) if n % 9]  # whole ones
    for place in ("tars/a", "tars/b", "tables"):
        (folder / place).mkdir(parents=True)
    for number, name in enumerate(("a/0", "a/1", "b/1")):
        with tarfile.open(folder / f"tars/{name}.tar", "w") as tar:
            for file in files[number * 3 : number * 3 + 3]:
                tar.add(file, file.name)
                text = f"caption of {file.stem}".encode()
                info = tarfile.TarInfo(f"{file.stem}.txt")
                info.size = len(text)
                tar.addfile(info, io.BytesIO(text))
    for number in (0, 1):
        rows = [{"image": f.read_bytes(), "label": i} for i, f in enumerate(files[number::2])]
        pq.write_table(pa.Table.from_pylist(rows), folder / f"tables/{number}.parquet")
    for file in folder.rglob("*"):
        if file.is_file():
            RemoteFolder(bucket).put(file, f"data/{file.relative_to(folder).as_posix()}")
    return folder


def rows(source: Source) -> list[tuple[str, dict[str, object], list[bytes]]]:
    images = [[row.open(i).tobytes() for i in range(len(row.images))] for row in source]
    return [(row.key, row.extras, pixels) for row, pixels in zip(source, images, strict=True)]


def test_rows_are_those_of_the_files_here(
    data: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the cache has room for one file alone, so that each is fetched again."""
    for held in (fetched._HELD, 1):
        monkeypatch.setattr(fetched, "_HELD", held)
        for there, here in (
            ("tars/a", "tars/a"),
            ("tars/a/{0..1}.tar", "tars/a"),
            ("tars/*/0.tar", "tars/a/0.tar"),
            ("tables", "tables"),
            ("tables/*.parquet", "tables"),
            ("tables/1.parquet", "tables/1.parquet"),
        ):
            source, same = open_source(f"{bucket}/data/{there}"), open_source(data / here)
            assert rows(source) == rows(same)
            assert list(source.keys()) == list(same.keys()) == [r.key for r in source]
            assert list(source.names()) == list(same.names())
            assert source.key(1) == same.key(1) and source.where(1) == same.where(1)

    source = open_source(f"{bucket}/data/tables", columns=[], key_column="label")
    assert [(row.key, row.extras) for row in source][:2] == [("0", {}), ("1", {})]


def test_names_that_come_twice_are_called_by_their_urls(data: Path, bucket: str) -> None:
    keys = [row.key for row in open_source(f"{bucket}/data/tars")]
    assert keys[0] == "0/001" and keys[3] == f"{bucket}/data/tars/a/1/004"
    assert keys[-1] == f"{bucket}/data/tars/b/1/010" and len(set(keys)) == 9


def test_what_is_refused(data: Path, bucket: str, tmp_path: Path) -> None:
    folder = RemoteFolder(f"{bucket}/mixed")
    folder.put(data / "tars/a/0.tar", "0.tar")
    folder.write("broken.tar", b"no tar file")
    folder.write("notes.jsonl", b"{}")
    source = open_source(folder.url)
    assert len(source) == 4 and source.leftovers() == {"files of other kinds": 1}
    with pytest.raises(SourceError, match="broken.tar: is no tar file"):
        source[3]
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    folder.put(tmp_path / "a.png", "a.png")
    for url, words in (
        (folder.url, "holds images and tar files; pass a pattern"),
        (f"{folder.url}/notes.jsonl", "pictures, tar and Parquet files are read from URLs"),
        (f"{folder.url}/broken.tar", "is no tar file"),
        (f"{folder.url}/none.tar", "has no none.tar"),
        (f"{bucket}/nothing", "no pictures, tar or Parquet files are there"),
        ("https://example.com/a.tar", "pictures are read from URLs"),
    ):
        with pytest.raises(Exception, match=words) as error:
            open_source(url)
        assert "\n" not in str(error.value)
    with pytest.raises(SourceError, match="split means nothing"):
        open_source(f"{bucket}/data/tars/a", split="train")


def test_codes_beside_tables_are_no_input(
    data: Path, bucket: str, tokenizer: VisualTokenizer, tmp_path: Path
) -> None:
    source = open_source(data / "tars/a")
    encode(tokenizer, source, tmp_path / "codes", OPTIONS)
    shutil.copy(data / "tables/0.parquet", tmp_path)
    folder = RemoteFolder(f"{bucket}/beside")
    for file in tmp_path.rglob("*"):
        if file.is_file():
            folder.put(file, file.relative_to(tmp_path).as_posix())
    found, same = open_source(folder.url), open_source(tmp_path)
    assert len(found) == len(same) == 5
    assert found.leftovers() == same.leftovers() and found.leftovers()


def test_encoding_from_and_to_a_bucket_with_kills(
    data: Path, bucket: str, tokenizer: VisualTokenizer, tmp_path: Path
) -> None:
    encode(tokenizer, open_source(data / "tars/a"), tmp_path / "codes", OPTIONS)
    spec, out = f"{bucket}/data/tars/a", f"{bucket}/codes"
    assert run(spec, out, 1) == -signal.SIGKILL
    assert run(spec, out, 2) == -signal.SIGKILL
    assert run(spec, out) == 0
    found = {name: data for name, data in contents(out).items() if not name.startswith("_parts/")}
    assert found == {path.name: path.read_bytes() for path in (tmp_path / "codes").iterdir()}
    assert [key for key, _ in Store(out)] == list(open_source(data / "tars/a").keys())
