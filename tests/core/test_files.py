"""Files are whole or absent, no link is followed, and only what we made ourselves is removed."""

import os
import re
import stat
import threading
from pathlib import Path

import pytest

from viq.core import files, untrusted
from viq.core.types import ViqError


def test_a_planted_link_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    victim.chmod(0o600)
    monkeypatch.setattr(files.secrets, "token_hex", lambda n: "0" * 16)  # as if it were guessed
    (tmp_path / f".c.bin.{'0' * 16}.part").symlink_to(victim)
    with pytest.raises(FileExistsError):
        files.write_atomically(tmp_path / "c.bin", b"new")
    assert victim.read_text() == "precious"
    assert stat.S_IMODE(victim.stat().st_mode) == 0o600


def test_a_link_at_the_place_itself_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "out").symlink_to(tmp_path / "victim")
    files.write_atomically(tmp_path / "out", b"new")
    assert (tmp_path / "victim").read_text() == "precious"
    assert not (tmp_path / "out").is_symlink() and (tmp_path / "out").read_bytes() == b"new"


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_modes_are_those_of_the_umask_which_is_not_touched(
    tmp_path: Path, umask: int, mode: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, real = os.umask(umask), os.umask
    try:
        monkeypatch.setattr(os, "umask", lambda mask: pytest.fail("touched the umask"))
        with files.written_aside(tmp_path / "new") as aside:
            assert stat.S_IMODE(aside.stat().st_mode) == 0o600
            aside.write_bytes(b"")
        assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == mode
        assert 0o666 & ~files._probed_umask() == mode  # where /proc is missing
    finally:
        real(before)


def test_a_private_file_stays_private(tmp_path: Path) -> None:
    place = tmp_path / "secret"
    place.write_text("old")
    place.chmod(0o600)
    files.write_atomically(place, b"new")
    assert stat.S_IMODE(place.stat().st_mode) == 0o600


def test_threads_that_write_one_file_do_not_meet(tmp_path: Path) -> None:
    errors: list[BaseException] = []

    def write(number: int) -> None:
        try:
            for _ in range(20):
                files.write_atomically(tmp_path / "one", bytes([number]) * 1000)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=[n]) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(set((tmp_path / "one").read_bytes())) == 1
    assert os.listdir(tmp_path) == ["one"]


def test_names_of_any_length_can_be_written(tmp_path: Path) -> None:
    place = tmp_path / ("ä" * 120 + ".png")  # 244 bytes
    files.write_atomically(place, b"x")
    assert place.read_bytes() == b"x"


def test_only_our_own_leftovers_are_removed(tmp_path: Path) -> None:
    ours = tmp_path / f".part-00001.parquet.{'a' * 16}.part"
    ours.touch()
    kept = [".ssh", ".notes.part", ".part-00001.parquet.77.part", f".other.{'a' * 16}.part"]
    for name in kept:
        (tmp_path / name).touch()
    (tmp_path / f".part-00002.parquet.{'b' * 16}.part").symlink_to(tmp_path / ".ssh")
    (tmp_path / f".part-00003.parquet.{'c' * 16}.part").mkdir()
    files.remove_leftovers(tmp_path, re.compile(r"part-\d{5}\.parquet").fullmatch)
    assert not ours.exists()
    assert len(os.listdir(tmp_path)) == len(kept) + 2


def test_a_folder_that_holds_something_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine").write_text("x")
    with pytest.raises(OSError), files.folder_aside(tmp_path / "model") as aside:
        (aside / "new").write_text("y")
    assert os.listdir(tmp_path) == ["model"] and os.listdir(tmp_path / "model") == ["mine"]


def test_pipes_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for read in (files.open_regular, files.require_regular, lambda p: files.read_bytes(p, 10)):
        with pytest.raises(ViqError, match="not a regular file"):
            read(tmp_path / "pipe")
    (tmp_path / "long").write_bytes(b"12345")
    with pytest.raises(ViqError, match="more than 4 bytes"):
        files.read_bytes(tmp_path / "long", 4)


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../../x", "a\0b", "link/x"])
def test_what_leads_out_of_a_folder_is_refused(tmp_path: Path, name: str) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "link").symlink_to(tmp_path)
    with pytest.raises(untrusted.UntrustedError, match="here"):
        untrusted.below(root, name, "here")
    assert untrusted.below(root, "a/b.png", "here") == root / "a/b.png"


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", ".profile", "a\n", "C:x", 7, None, "ä"])
def test_names_that_no_file_of_ours_has(name: object) -> None:
    with pytest.raises(untrusted.UntrustedError):
        untrusted.file_name(name, "here")


def test_digests() -> None:
    assert untrusted.sha256("0" * 64, "x") and untrusted.fingerprint("", "x") == ""
    for value in ("../../x", "0" * 63, "A" * 64, None, 5, "0" * 64 + "\n"):
        with pytest.raises(untrusted.UntrustedError):
            untrusted.sha256(value, "x")


def test_text_that_acts_on_terminals_is_spelt_out() -> None:
    assert untrusted.printable("a\x1b[2Jb\n\x9b\u202e\ud83d") == r"a\x1b[2Jb\n\x9b\u202e\ud83d"
    assert untrusted.printable("Straße 東京 🙂") == "Straße 東京 🙂"
    assert len(untrusted.printable("x" * 500, 80)) == 80
    assert "\n" not in untrusted.printable("\n" * 50, 20)


@pytest.mark.parametrize("text", ["[" * 100_000, "{", b"\xff", "1" * 5000])
def test_json_that_cannot_be_read(text: str | bytes) -> None:
    with pytest.raises(untrusted.UntrustedError, match="here"):
        untrusted.parse_json(text, "here")


def test_an_interrupt_while_a_file_is_opened_stays_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").write_bytes(b"1")
    made = os.fdopen

    def interrupted(file: int, mode: str) -> None:
        made(file, mode).close()  # as when the signal comes before the file is handed on
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fdopen", interrupted)
    with pytest.raises(KeyboardInterrupt):
        files.open_regular(tmp_path / "a")
