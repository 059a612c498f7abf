"""What keys, names and models of others hold never acts on a terminal, and output never fails."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from viq.cli import app
from viq.core.codes import Codes
from viq.core.terminal import PlainStream, plain_streams, raw
from viq.store.rows import CodesWriter, StoreInfo

EVIL = "a\x1b[2J\x9b1m\u202e\x07\r\nviq: done"
ACTS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]")


@pytest.fixture(scope="module")
def evil(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of codes in which every text that is shown could act."""
    path = tmp_path_factory.mktemp("evil") / "codes.parquet"
    info = StoreInfo(model=EVIL, fingerprint="0" * 16, levels=(8, 8, 8, 5, 5, 5))
    codes = Codes(np.zeros((1, 1, 4), np.uint16), (16, 16), 0, "0" * 16)
    with CodesWriter(path, info) as writer:
        for number in range(3):
            writer.add(EVIL + str(number // 2), codes)
    return path


COMMANDS = (
    "info {0}",
    "store stats {0}",
    "store lint {0}",
    "store diff {0} {0}",
    "store near-duplicates {0}",
    "store preview {0} -o {1}/p.html",
    "store merge {0} {0} -o {1}/merged",
    "store export {0} -o {1}/tars --webdataset",
    "decode {0} -o {1}/back",
    "encode {0} -o {1}/again.parquet",
    "compare {0} --with viq-tiny",
    "caption {0} -o {1}/answers.jsonl",
)


@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_lets_text_of_others_act(evil: Path, tmp_path: Path, command: str) -> None:
    result = CliRunner().invoke(app, [word.format(evil, tmp_path) for word in command.split()])
    assert result.exit_code in (0, 2, 3), result.output
    assert not ACTS.search(result.output)
    assert "\nviq: done" not in result.output


def test_streams_are_plain_only_while_a_command_runs(capsys: pytest.CaptureFixture[str]) -> None:
    before = sys.stdout
    with plain_streams(), plain_streams():
        print("a\tb\x1b[1mc")
        print("50%\r100%\x1b[A", file=sys.stderr)
        assert isinstance(sys.stdout, PlainStream) and raw(sys.stdout) is before
        assert sys.stdout.isatty() == before.isatty()
    assert sys.stdout is before
    shown = capsys.readouterr()
    assert shown.out == "a\tb\\x1b[1mc\n"
    assert shown.err == "50%\r100%\\x1b[A\n"


def run(*words: str, stdout: int, **environment: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "viq.cli", *words],
        stdout=stdout,
        stderr=subprocess.PIPE,
        env=os.environ | environment,
    )
    return done.returncode, done.stderr.decode()


@pytest.mark.parametrize("encoding", ["ascii:strict", "utf-8:strict", "latin-1"])
def test_output_never_dies_of_an_encoding(tmp_path: Path, encoding: str) -> None:
    name = "東京\udcff.viq"  # a file name with a byte that is no text
    code, errors = run(
        "info", str(tmp_path / name), stdout=subprocess.DEVNULL, PYTHONIOENCODING=encoding
    )
    assert code == 2
    assert errors.count("\n") == 1 and "\\udcff.viq: " in errors


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_a_full_device_is_one_line(evil: Path) -> None:
    with open("/dev/full", "wb") as full:
        code, errors = run("info", str(evil), "--json", stdout=full.fileno())
    assert code == 2
    assert errors == "viq: No space left on device\n"


def test_a_reader_that_goes_away_is_no_error(evil: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    code, errors = run("info", str(evil), stdout=write)
    os.close(write)
    assert (code, errors) == (0, "")
