"""The notebooks of examples/ run from the first cell to the last, and print what they hold."""

from pathlib import Path
from typing import Any

import nbformat
import pytest
from tutorials import matches

import viq

BOOKS = sorted((Path(viq.__file__).parent.parent.parent / "examples").glob("*.ipynb"))
if not BOOKS:
    pytest.skip("needs the source tree", allow_module_level=True)


def _printed(cell: Any) -> str:
    outputs = cell.get("outputs", ())
    texts = [each.get("text") or each.get("data", {}).get("text/plain", "") for each in outputs]
    kept = [text for text, each in zip(texts, outputs, strict=True) if each.get("name") != "stderr"]
    return "\n".join(text.strip() for text in kept)


# Of the kernel's own connection, not of the notebooks.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("path", BOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nbclient import NotebookClient

    for name, value in {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}.items():
        monkeypatch.setenv(name, value)
    for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    held = nbformat.read(path, as_version=4)
    book = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(book, timeout=120, kernel_name="python3", resources=resources).execute()
    shown = 0
    for before, after in zip(held.cells, book.cells, strict=True):
        if before.cell_type == "code":
            assert matches(_printed(before), _printed(after)), before.source
            shown += bool(before.outputs)
    assert shown >= 3, "run it, and keep what it shows"


@pytest.mark.parametrize("path", BOOKS, ids=lambda path: path.stem)
def test_a_notebook_holds_no_noise(path: Path) -> None:
    """No messages of libraries, which name folders of the machine, and no numbers of runs."""
    for cell in nbformat.read(path, as_version=4).cells:
        assert not cell.get("metadata")
        for output in cell.get("outputs", ()):
            assert output.get("name") != "stderr" and output.output_type != "error"
