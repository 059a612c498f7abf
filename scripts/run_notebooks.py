"""Run the notebooks of examples/ and keep what they show.

    python scripts/run_notebooks.py [NAME ..]

Messages on stderr are left out, and of each picture one format is kept, so that files stay small.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parent.parent / "examples"


def main() -> None:
    os.environ.update(HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1")
    names = sys.argv[1:] or [path.stem for path in sorted(FOLDER.glob("*.ipynb"))]
    for name in names:
        path = FOLDER / f"{name}.ipynb"
        book = nbformat.read(path, as_version=4)
        with tempfile.TemporaryDirectory() as folder:
            resources = {"metadata": {"path": folder}}
            NotebookClient(book, timeout=300, kernel_name="python3", resources=resources).execute()
        for number, cell in enumerate(book.cells):
            cell["id"], cell["metadata"] = f"{name}-{number}", {}
            if cell["cell_type"] == "code":
                cell["outputs"] = [each for each in cell.outputs if each.get("name") != "stderr"]
                for output in cell.outputs:
                    data = output.get("data", {})
                    if "image/png" in data:
                        data.pop("image/jpeg", None)
                    if "metadata" in output:
                        output["metadata"] = {}
        book["metadata"] = {
            "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
            "language_info": {"name": "python"},
        }
        nbformat.write(book, path)
        print(f"wrote {path}")


if __name__ == "__main__":
    main()
