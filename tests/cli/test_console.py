"""Tables of the command line, in a pipe and on terminals of any width."""

import os
import sys

import pytest

from viq.cli import console

ROWS = [["a[red]b\x1b[31m.png", "480x640", "22.10"], ["東京" * 20, "32x32", "-"]]


def shown(capsys: pytest.CaptureFixture[str]) -> list[str]:
    console.table(["image", "size", "PSNR"], ROWS)
    return capsys.readouterr().out.splitlines()


def test_in_a_pipe_a_row_is_a_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    monkeypatch.setenv("FORCE_COLOR", "1")
    lines = shown(capsys)
    assert [line.split() for line in lines] == [
        ["image", "size", "PSNR"],
        ["a[red]b\\x1b[31m.png", "480x640", "22.10"],
        ["東京" * 20, "32x32", "-"],
    ]
    assert all(line == line.rstrip() and "\x1b" not in line for line in lines)


@pytest.mark.parametrize("width", [10, 40, 60, 200])
def test_on_a_terminal_names_are_folded_and_figures_never_cut(
    width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setattr("shutil.get_terminal_size", lambda: os.terminal_size((width, 24)))
    lines = shown(capsys)
    text = "\n".join(lines)
    assert all(figure in text for figure in ("480x640", "22.10", "32x32"))
    assert text.count("東") == 20 and "\x1b" not in text
    if width >= 40:
        assert max(sum(1 + (c in "東京") for c in line) for line in lines) <= width
    assert (len(lines) == 4) == (width == 200)


def test_the_tables_of_probes_name_every_source(capsys: pytest.CaptureFixture[str]) -> None:
    cell = {"mean": 61.234, "half_width": 1.5}
    probe = {"accuracy": 71.0, "classes": 8, "pictures": 900, "chance": 14.2}
    found = {"answers": {"all": cell, "drawn": cell}, "probes": {"colour": probe}}
    console.show_understanding(
        {"questions": {"all": 3000, "drawn": 2000}, "candidates": {"viq-tiny (codes)": found}}
    )
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "questions 3,000 2,000" in lines
    assert "viq-tiny (codes) 61.2 ± 1.5 61.2 ± 1.5" in lines
    assert ["classes 8", "pictures 900", "most frequent 14.2", "viq-tiny (codes) 71.0"] == lines[
        -4:
    ]
    kind = {"answers": {"all": cell, "drawn": cell}, "steps_per_second": cell, "peak_mib": cell}
    asked, differences = {"all": 3000, "drawn": 2000}, {"blind": {"all": cell, "drawn": cell}}
    console.show_quality(
        {"questions": asked, "kinds": {"codes": kind, "blind": kind}, "differences": differences}
    )
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "codes 61.23 ± 1.50 61.23 ± 1.50 61.23 ± 1.50" in lines
    assert lines[-3:] == [
        "questions codes blind codes - blind",
        "all 3,000 61.2 61.2 +61.2 ± 1.5",
        "drawn 2,000 61.2 61.2 +61.2 ± 1.5",
    ]
