"""The architecture in one rule: a file imports only lower floors, or files above it in the list.

The same picture stands in docs/architecture.md.
"""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import viq

FLOORS = [
    ["errors", "types", "untrusted", "files", "names", "outputs", "interrupts", "terminal",
     "quiet"],
    [
        "pixels", "image", "patches", "fsq", "ranks", "compress",
        "store.arrays", "store.footer", "store.bounds", "store.extras", "store.rows",
        "store.folder",
        "store.unpacked", "store.views", "store.cache_folder", "store.places", "store.cache",
        "store.lock", "store.facts", "store.job", "store.salvage",
        "checkpoint", "verify", "tensorfile", "hub", "run_log",
        "nn.attention", "nn.rope2d", "nn.ambient", "nn.blocks",
    ],
    [
        "models.encoder", "models.quantizer", "models.decoder", "models.latents",
        "models.pretrained",
        "models.qwen_vae", "models.tokenizer_config", "models.tokenizer",
        "models.embedder", "models.packed", "models.projector", "models.language", "models.mllm",
        "models.writer", "models.discriminator",
        "models.siglip", "models.tower", "models.perceptual",
        "data.fetch", "data.source_base", "data.access", "data.fields",
        "data.source_files", "data.source_json", "data.source_cells", "data.source_tables",
        "data.source_datasets", "data.source_tar", "data.sources", "data.conversations",
        "data.synthetic_base", "data.synthetic_text", "data.synthetic_chart",
        "data.synthetic_shapes", "data.synthetic_fields", "data.synthetic", "data.questions",
        "data.captions", "data.corpora", "data.chat", "data.words", "data.templates",
        "data.mixture", "data.drawn",
        "data.epochs", "data.order", "data.codes", "data.photos", "data.crops", "data.batches",
        "data.code_batches", "data.processor", "data.drawings",
    ],
    [
        "loading", "report", "pipeline", "unfinished", "inputs", "encode", "decode", "mllm", "draw",
        "eval.intervals", "eval.metrics", "eval.codecs", "eval.reconstruction", "eval.stability",
        "eval.understanding", "eval.features", "eval.answers", "eval.shapes", "eval.draw",
        "train.losses", "train.entropy", "train.init", "train.optim", "train.state",
        "train.objectives", "train.monitor", "train.sentences", "train.charts", "train.loop",
        "train.folder", "train.running", "train.recipe", "train.begin",
        "train.stages", "train.mllm", "train.draw",
        "tools.lint", "tools.describe", "tools.merge", "tools.preview", "tools.duplicates",
    ],
    ["recipes", "recipes_mllm", "recipes_draw", "info", "doctor",
     "bench.measure", "bench.parts", "bench.report", "bench.encode", "bench.mllm_report",
     "bench.mllm_work", "bench.mllm", "bench.peer", "bench.reading", "bench.packing",
     "bench.store_report", "bench.store"],
    ["extras.official", "extras.convert", "extras.ray_engine",
     "demo.parts", "demo.sheet", "demo.page", "demo.gallery",
     "train.runs", "train.report"],
    ["console", "progress", "cli_parts", "cli_bench", "cli_draw", "cli_mllm", "cli_store",
     "cli_tools", "cli", ""],
]  # fmt: skip
ROOT = Path(viq.__file__).parent
ORDER = {name: place for place, name in enumerate(n for floor in FLOORS for n in floor)}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def imports_of(path: Path) -> set[str]:
    found = set()
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):  # names that only annotations use are no dependency
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    ours = {name.removeprefix("viq.") for name in found if name.startswith("viq.")}
    return {known for name in ours for known in (name, name.rpartition(".")[0]) if known in ORDER}


def test_every_file_is_on_a_floor() -> None:
    packages = {
        "nn",
        "store",
        "tools",
        "models",
        "data",
        "train",
        "eval",
        "bench",
        "extras",
        "demo",
    }
    names = {module_name(path) for path in ROOT.rglob("*.py")} - packages
    assert names == set(ORDER)


def test_imports_point_down() -> None:
    breaches = [
        f"{module_name(path) or 'viq'} imports {imported}"
        for path in ROOT.rglob("*.py")
        for imported in imports_of(path) - {""}
        if module_name(path) in ORDER and ORDER[imported] >= ORDER[module_name(path)]
    ]
    assert breaches == []


def test_models_and_data_never_meet() -> None:
    for path in (ROOT / "models").glob("*.py"):
        assert not any(name.startswith("data.") for name in imports_of(path))
    for path in (ROOT / "data").glob("*.py"):
        assert not any(name.startswith("models.") for name in imports_of(path))


def test_front_doors_are_light() -> None:
    """Neither `import viq` nor building the command line loads a heavy library."""
    heavy = ["torch", "transformers", "pyarrow", "PIL", "huggingface_hub", "numpy", "rich.progress"]
    for module in ("viq", "viq.cli"):
        code = f"import sys, {module}; print(*[m for m in {heavy} if m in sys.modules])"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout.split() == []


def test_loading_a_model_does_not_load_the_compiler() -> None:
    """Drawing initial weights on the meta device would import it, for seconds."""
    code = "import sys, viq; viq.load('viq-tiny'); print('torch._dynamo' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["False"], done.stderr


def test_no_names_but_the_public_ones() -> None:
    assert set(viq.__all__) <= set(dir(viq))
    assert all(getattr(viq, name) is not None for name in viq.__all__)


def test_extras_hold_only_what_the_package_imports() -> None:
    tomllib = pytest.importorskip("tomllib", reason="reads pyproject.toml")
    file = ROOT.parent.parent / "pyproject.toml"
    if not file.is_file():
        pytest.skip("needs the source tree")
    extras = tomllib.loads(file.read_text())["project"]["optional-dependencies"]
    code = "\n".join(path.read_text() for path in ROOT.rglob("*.py"))
    modules = {"scikit-image": "skimage", "tensorboard": "torch.utils.tensorboard"}
    unused = []
    for extra in extras.keys() - {"dev"}:
        for requirement in extras[extra]:
            name = re.split(r"[\[<>=]", requirement)[0]
            module = re.escape(modules.get(name, name.replace("-", "_")))
            if not re.search(rf"(import|from) {module}\b|(_spec|_module)\(\"{module}\"", code):
                unused.append(f"{extra}: {name}")
    assert unused == []
