"""The app of a Hugging Face Space: it compiles, imports what there is, and rebuilds a picture."""

import ast
import importlib
from importlib import util
from pathlib import Path

import pytest

from viq.report.samples import PICTURES

SPACE = Path(__file__).parents[2] / "space" / "app.py"


def test_it_imports_names_that_there_are() -> None:
    tree = ast.parse(SPACE.read_text())
    found = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    ours = [node for node in found if (node.module or "").startswith("viq")]
    assert len(ours) >= 4
    for node in ours:
        module = importlib.import_module(node.module or "")
        assert all(hasattr(module, name.name) for name in node.names), node.module


def test_it_rebuilds_a_picture() -> None:
    pytest.importorskip("gradio", reason="needs gradio, which only a Space has")
    from PIL import Image

    spec = util.spec_from_file_location("space_app", SPACE)
    assert spec and spec.loader
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    pair, shown, rows, about = module.rebuild(Image.open(PICTURES / "shapes.png"))
    assert pair[0].size == pair[1].size == (256, 256)
    assert [row[0] for row in rows] == ["ViQ", "JPEG", "WebP"] and len(shown) == 2
    assert rows[1][1] <= rows[0][1] and "1,024 codes" in about
