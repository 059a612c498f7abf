"""Folders of ours in transformers by itself: an error that names us, and one line that mends it.

Each try is a process of its own, as importing `viq.mllm` registers our classes for good.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from viq.core.files import BUNDLED

CLASSES = (
    "AutoConfig",
    "AutoModel",
    "AutoModelForImageTextToText",
    "AutoModelForMultimodalLM",
    "AutoModelForCausalLM",
    "AutoProcessor",
    "AutoImageProcessor",
    "AutoTokenizer",
)
TRY = """
import json, sys
{first}
import transformers
folders, classes = json.loads(sys.argv[1]), json.loads(sys.argv[2])
found = {{}}
for folder in folders:
    for name in classes:
        try:
            made = getattr(transformers, name).from_pretrained(folder)
        except Exception as error:
            found[folder.rpartition("/")[2] + " " + name] = f"{{type(error).__name__}}: {{error}}"
        else:
            found[folder.rpartition("/")[2] + " " + name] = type(made).__name__
print(json.dumps(found))
"""


def tried(first: str) -> dict[str, Any]:
    """By folder and class, the class of what was loaded, or the error."""
    folders = [str(BUNDLED / name) for name in ("viq-tiny-chat", "viq-tiny")]
    command = [sys.executable, "-W", "ignore", "-c", TRY.format(first=first)]
    done = subprocess.run(
        [*command, json.dumps(folders), json.dumps(CLASSES)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_without_the_import_transformers_names_the_model_type() -> None:
    found = tried("")
    for folder, model_type in (("viq-tiny-chat", "viq"), ("viq-tiny", "viq_tokenizer")):
        for name in CLASSES[:5]:
            told = found[f"{folder} {name}"]
            assert told.startswith("ValueError") and f"model type `{model_type}`" in told, told
        assert found[f"{folder} AutoImageProcessor"].startswith("ValueError")
    # The text tokenizer is one of transformers' own, and its processor falls back to it.
    assert found["viq-tiny-chat AutoProcessor"] == found["viq-tiny-chat AutoTokenizer"]
    assert found["viq-tiny-chat AutoTokenizer"] == "TokenizersBackend"
    assert found["viq-tiny AutoProcessor"].startswith("ValueError")


def test_the_import_is_all_that_is_needed() -> None:
    found = tried("import viq.mllm")
    assert {name: found[f"viq-tiny-chat {name}"] for name in CLASSES} == {
        "AutoConfig": "ViQConfig",
        "AutoModel": "ViQModel",
        **dict.fromkeys(CLASSES[2:5], "ViQForConditionalGeneration"),
        "AutoProcessor": "ViQProcessor",
        "AutoImageProcessor": "ViQImageProcessor",
        "AutoTokenizer": "TokenizersBackend",
    }
    assert found["viq-tiny AutoConfig"] == "ViQTokenizerConfig"
    assert found["viq-tiny AutoModel"] == "ViQTokenizerModel"
    assert found["viq-tiny AutoImageProcessor"] == "ViQImageProcessor"


def test_folders_bring_no_code_and_their_cards_say_whose_they_are() -> None:
    for folder in (path for path in Path(BUNDLED).iterdir() if path.is_dir()):
        for file in folder.glob("*.json"):
            assert not json.loads(file.read_text()).get("auto_map"), file
        assert not list(folder.glob("*.py"))
        assert "library_name: viq" in (folder / "README.md").read_text()
