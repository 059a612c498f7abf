"""What importing costs, and the public names. The floors are a contract of import-linter."""

import subprocess
import sys

import viq


def test_front_doors_are_light() -> None:
    """Neither `import viq` nor building the command line loads a heavy library."""
    heavy = ["torch", "transformers", "pyarrow", "PIL", "huggingface_hub", "numpy", "rich.progress"]
    for module in ("viq", "viq.cli"):
        code = f"import sys, {module}; print(*[m for m in {heavy} if m in sys.modules])"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout.split() == []


def test_loading_a_model_does_not_load_the_compiler() -> None:
    """SyntheticImage initial weights on the meta device would import it, for seconds."""
    code = "import sys, viq; viq.load('viq-tiny'); print('torch._dynamo' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["False"], done.stderr


def test_no_names_but_the_public_ones() -> None:
    assert set(viq.__all__) <= set(dir(viq))
    assert all(getattr(viq, name) is not None for name in viq.__all__)


def test_old_names_lead_to_new_modules() -> None:
    code = """
import warnings
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    import viq.types, viq.store.extras, viq.nn.attention
    from viq.compress import EntropyModel
    from viq.data import source_base
import viq.core, viq.codec.entropy_model
assert viq.types is viq.core and viq.types.Codes is viq.Codes
assert EntropyModel is viq.codec.entropy_model.EntropyModel
print([str(w.message) for w in told if "has moved" in str(w.message)][0], len(told))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "viq.types has moved to viq.core 5", done.stderr
