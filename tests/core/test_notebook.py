"""Objects and progress as a notebook shows them."""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import viq
from viq.cli.progress import progress
from viq.core import notebook
from viq.core.notebook import html_table, in_notebook
from viq.store.dataset import CodeDataset
from viq.train.monitor import Bar


def test_facts_are_escaped() -> None:
    html = html_table("<b>", {"a&b": "<script>"})
    assert "<script>" not in html and "&lt;b&gt;" in html and "a&amp;b" in html


def test_codes_tokenizer_and_data_set_are_a_line_and_a_table(tmp_path: Path) -> None:
    tokenizer = viq.load("viq-tiny")
    shown = repr(tokenizer)
    assert shown == (
        "VisualTokenizer(name='viq-tiny', codebook=64000, parameters=6451014, dtype='float32', "
        "device='cpu')"
    )
    (codes,) = tokenizer.encode(np.zeros((40, 20, 3), np.uint8))
    assert repr(codes) == "Codes(3x2x4, size=(40, 20), 48 bytes)"
    assert tokenizer.fingerprint in codes._repr_html_() and "40x20 px" in codes._repr_html_()
    from PIL import Image

    from viq.data.sources.files import FileSource
    from viq.jobs.encode import encode

    Image.new("RGB", (20, 40)).save(tmp_path / "a.png")
    encode(tokenizer, FileSource([tmp_path]), tmp_path / "codes")
    data = CodeDataset(tmp_path / "codes", cache=tmp_path / "cache", rank=0, world=2)
    shown = repr(data)
    assert shown.startswith(f"CodeDataset(path={str(tmp_path / 'codes')!r}, samples=1, shards=1, ")
    assert shown.endswith(f"fingerprint='{tokenizer.fingerprint}', rank=0, world=2)")
    for thing in (tokenizer, codes, data):
        assert thing._repr_html_().count("<tr>") >= 4 and "\n" not in repr(thing)


def test_a_notebook_is_known_by_its_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = {name: type(name, (), {})() for name in ("ZMQInteractiveShell", "Terminal")}
    for name, wanted in (("ZMQInteractiveShell", True), ("Terminal", False)):
        shell = SimpleNamespace(get_ipython=lambda name=name: kinds[name])
        monkeypatch.setitem(sys.modules, "IPython", shell)
        assert in_notebook() is wanted
    monkeypatch.delitem(sys.modules, "IPython")
    assert not in_notebook()


def test_progress_in_a_notebook_is_one_bar(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in ("viq.cli.progress", "viq.train.monitor"):
        monkeypatch.setattr(f"{module}.in_notebook", lambda: True)
    with Bar("fsq", steps=3, log_every=1) as bar:
        for step in (1, 2, 3):
            bar.update(step, {"loss": 0.5})
        bar.print_line("a remark")
    with progress("encoding", 2, hidden=False) as advance:
        advance()
        advance()
    told = capsys.readouterr()
    assert told.out.splitlines() == ["a remark"]
    assert told.err.count("\n") <= 4  # two bars, drawn over: one of them around a remark
    assert "fsq: 100%" in told.err and "loss 0.5000" in told.err and "2 of 2" in told.err
    assert notebook.NotebookBar("x", 0)._bar.total is None
