"""What commands write: nothing of others is replaced, and what is replaced was asked for."""

import errno
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cli_runs import one_line, run


def test_existing_output_is_kept(model: str, pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "codes.parquet"
    out.write_text("precious")
    assert "--overwrite" in one_line(run("encode", pictures, "-o", out, "--model", model, code=2))
    assert out.read_text() == "precious"


def test_a_full_disk_is_named_with_the_file(
    model: str, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("encode", pictures, "-o", tmp_path / "codes", "--model", model)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    for out, command in {
        "sheet.png": ("store", "preview", tmp_path / "codes", "--model", model),
        "tars/000000.tar": ("store", "export", tmp_path / "codes", "--webdataset"),
        "again/_job.json": ("store", "merge", tmp_path / "codes"),
        "job/_job.json": ("encode", pictures, "--model", model),
    }.items():
        place = tmp_path / out
        result = run(*command, "-o", place if out == "sheet.png" else place.parent, code=2)
        assert result.stderr.splitlines()[-1] == f"viq: {place}: No space left on device"
        assert not place.exists()


def test_a_run_that_all_inputs_fail_leaves_the_old_file_and_says_so(
    model: str, pictures: Path, tmp_path: Path
) -> None:
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "broken.png").write_bytes(b"no")
    for out, good in (("o.parquet", pictures), ("o.viq", pictures / "deep" / "0.png")):
        place = tmp_path / out
        run("encode", good, "-o", place, "--model", model)
        before = place.read_bytes()
        shown = run(
            "encode", tmp_path / "bad", "-o", place, "--model", model, "--overwrite", code=3
        ).stdout
        assert f"no codes were written; {place} is left as it was" in shown
        assert f"wrote {place}" not in shown
        assert place.read_bytes() == before


def test_a_list_of_failures_of_somebody_else_is_kept(
    model: str, pictures: Path, tmp_path: Path
) -> None:
    notes = tmp_path / "c.failures.jsonl"
    for content in ("", "my notes\n", '{"key": "a", "reason": "mine"}\n', "[]"):
        notes.write_text(content)
        for more in ((), ("--overwrite",)):
            line = one_line(
                run("encode", pictures, "-o", tmp_path / "c.parquet", "--model", model, *more,
                    code=2)
            )  # fmt: skip
            assert "is no list of failures that viq wrote" in line
        assert notes.read_text() == content
    assert not (tmp_path / "c.parquet").exists()


def test_a_table_of_others_is_refused_untouched(model: str, pictures: Path, tmp_path: Path) -> None:
    spark = tmp_path / "spark"
    spark.mkdir()
    for name in ("part-00000.parquet", "part-00001.parquet", "_SUCCESS"):
        (spark / name).write_text(name)
    result = run("encode", pictures, "-o", spark, "--model", model, "--overwrite", code=2)
    assert "holds other files" in one_line(result)
    assert {path.name: path.read_text() for path in spark.iterdir()} == {
        name: name for name in ("part-00000.parquet", "part-00001.parquet", "_SUCCESS")
    }


def test_what_lies_beside_a_store_keeps_it_from_being_replaced(
    model: str, pictures: Path, tmp_path: Path
) -> None:
    """Not found out when the store is gone."""
    out = tmp_path / "codes"
    command = ("encode", pictures, "-o", out, "--model", model, "--overwrite")
    run(*command)
    for name in ("notes.txt", "part-00007.parquet"):
        (out / name).write_text("mine")
        before = {path.name: path.read_bytes() for path in out.iterdir()}
        assert f"holds {name} beside the store" in one_line(run(*command, code=2))
        assert {path.name: path.read_bytes() for path in out.iterdir()} == before
        (out / name).unlink()
    run(*command)


def test_a_planted_folder_of_finished_inputs_is_refused(
    model: str, pictures: Path, tmp_path: Path
) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    (tmp_path / ".c.parquet.job").symlink_to(victim)
    result = run("encode", pictures, "-o", tmp_path / "c.parquet", "--model", model, code=2)
    assert ".c.parquet.job" in one_line(result)
    assert list(victim.iterdir()) == []
    (tmp_path / ".c.parquet.job").unlink()
    (tmp_path / ".c.parquet.job").mkdir()
    (tmp_path / ".c.parquet.job" / "mine.txt").write_text("mine")
    result = run("encode", pictures, "-o", tmp_path / "c.parquet", "--model", model, code=2)
    assert "holds other files" in one_line(result)
    assert (tmp_path / ".c.parquet.job" / "mine.txt").read_text() == "mine"


@pytest.mark.parametrize(
    "command",
    [
        ("store", "preview", "{tmp}/codes", "-o"),
        ("generate", "a circle", "-o"),
        ("eval", "generation", "-o"),
        ("eval", "generation", "--sheet"),
        ("eval", "mllm", "nope", "-o"),
        ("eval", "features", "-o"),
        ("eval", "understanding", "nope", "-o"),
        ("bench", "mllm", "--chart"),
    ],
)
def test_results_replace_no_file_unasked(command: tuple[str, ...], tmp_path: Path) -> None:
    """Refused before the work: none of the models named here exists."""
    filled = [word.format(tmp=tmp_path) for word in command]
    precious = tmp_path / "precious.png"
    precious.write_bytes(b"mine")
    line = one_line(run(*filled, precious, code=2))
    assert f"{command[-1]} {precious}: exists" in line and "--overwrite" in line
    (tmp_path / "pipe.png").symlink_to(precious)  # nor is a link followed or replaced
    assert "exists" in one_line(run(*filled, tmp_path / "pipe.png", code=2))
    assert precious.read_bytes() == b"mine"


def test_a_gallery_replaces_only_what_a_gallery_made(
    model: str, pictures: Path, tmp_path: Path
) -> None:
    out = tmp_path / "demo"
    command = ("demo", pictures, "-o", out, "--model", model)
    run(*command)
    names = sorted(os.listdir(out))
    run(*command)
    assert sorted(os.listdir(out)) == names
    for name in ("gallery.html", "0.png"):
        (out / name).write_text("mine")
        line = one_line(run(*command, code=2))
        assert f"{out / name}: exists" in line
        assert (out / name).read_text() == "mine"
        run(*command, "--overwrite")
    for path in out.iterdir():
        path.unlink()
    (out / "1.viq").write_text("mine")
    assert "1.viq: exists" in one_line(run(*command, code=2))
    assert os.listdir(out) == ["1.viq"]


def test_no_input_is_written_over(model: str, pictures: Path, tmp_path: Path) -> None:
    """Not even if --overwrite asks for it, by whatever name, in a folder or by a pattern."""
    (tmp_path / "tables").mkdir()
    for name in "ab":
        data = [{"bytes": (pictures / "deep" / "0.png").read_bytes()}]
        pq.write_table(pa.table({"image": data}), tmp_path / "tables" / f"{name}.parquet")
    out = tmp_path / "tables" / "b.parquet"
    before = out.read_bytes()
    again = tmp_path / "tables" / ".." / "tables" / "b.parquet"
    for given in (out, again, tmp_path / "tables", tmp_path / "tables" / "{a,b}.parquet"):
        line = one_line(run("encode", given, "-o", out, "--model", model, "--overwrite", code=2))
        assert "is one of the inputs" in line
        assert out.read_bytes() == before
    for _ in range(2):  # codes beside their tables are no input
        command = ("encode", tmp_path / "tables", "-o", tmp_path / "tables" / "c.parquet")
        run(*command, "--model", model, "--overwrite")


def test_a_list_of_failures_of_another_file_is_kept(
    model: str, pictures: Path, tmp_path: Path
) -> None:
    """`c.viq` and `c.parquet` would both have theirs in `c.failures.jsonl`."""
    (pictures / "broken.png").write_bytes(b"no")
    run("encode", pictures, "-o", tmp_path / "c.parquet", "--model", model, code=3)
    before = (tmp_path / "c.failures.jsonl").read_bytes()
    for name, code in (("deep/0.png", 0), ("broken.png", 3)):
        one = ("encode", pictures / name, "-o", tmp_path / "c.viq", "--model", model)
        run(*one, "--overwrite", code=code)
        assert (tmp_path / "c.failures.jsonl").read_bytes() == before
        assert (tmp_path / "c-viq.failures.jsonl").exists() == (code == 3)
    (tmp_path / "d.failures.jsonl").write_bytes(b"")  # empty, which no list of viq is
    one = ("encode", pictures / "deep" / "0.png", "-o", tmp_path / "d.viq", "--model", model)
    assert "is no list of failures" in one_line(run(*one, code=2))
    assert not (tmp_path / "d.viq").exists() and (tmp_path / "d.failures.jsonl").exists()
