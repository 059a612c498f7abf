"""The model viq of lmms-eval: found, asked in its form, and answering as recorded."""

import base64
import importlib
import io
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import fake_lmms_eval
import pyarrow.parquet as pq
import pytest
import torch
from fake_lmms_eval import Instance
from PIL import Image

import viq
from viq.core.types import ViqError
from viq.eval.vlm.lmms_entry import manifest
from viq.eval.vlm.lmms_requests import (
    batches,
    chat,
    generation_of,
    request_of,
)
from viq.eval.vlm.stop_texts import StopTexts, cut

GOLDEN = Path(__file__).parents[1] / "golden"
ROWS = json.loads((GOLDEN / "benchmarks" / "end_to_end.json").read_text())["tasks"]
RECORDED = json.loads((GOLDEN / "lmms_eval" / "viq-tiny-chat.json").read_text())
SPLIT = "test"


@pytest.fixture
def model_class(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The class, as lmms-eval finds it."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "SLURM_PROCID", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    fake_lmms_eval.install(monkeypatch)
    return fake_lmms_eval.model_class(manifest())


@pytest.fixture
def model(model_class: Any) -> Any:
    return model_class(pretrained="viq-tiny-chat", device="cpu", batch_size=4)


# How it is found


def test_entry_point_names_the_class() -> None:
    tomllib = pytest.importorskip("tomllib", reason="reads pyproject.toml")
    file = Path(viq.__file__).parents[2] / "pyproject.toml"
    if not file.is_file():
        pytest.skip("needs the source tree")
    entries = tomllib.loads(file.read_text())["project"]["entry-points"]["lmms_eval.models"]
    module, _, name = entries["viq"].partition(":")
    assert getattr(importlib.import_module(module), name) is manifest


def test_entry_module_is_light() -> None:
    code = "import sys, viq.eval.vlm.lmms_entry; print({'torch', 'transformers'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stderr


def test_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "viq.eval.vlm.lmms", raising=False)
    monkeypatch.setitem(sys.modules, "lmms_eval", None)
    monkeypatch.setitem(sys.modules, "lmms_eval.api.model", None)
    with pytest.raises(ViqError, match=re.escape("pip install 'viq[lmms]'")):
        importlib.import_module("viq.eval.vlm.lmms")


# What it answers


def pictures(task: str, row: dict[str, Any]) -> list[Image.Image]:
    """Those of a row of a fixture, as lmms-eval hands them over."""
    if task == "mmmu_val":
        named = {int(k) for k in re.findall(r"<image (\d)>", row["question"] + row["options"])}
        data = [row[f"image_{k}"]["bytes"] for k in sorted(named)]
    else:
        image = row["image"]
        data = [base64.b64decode(image) if isinstance(image, str) else image["bytes"]]
    return [Image.open(io.BytesIO(one)).convert("RGB") for one in data]


def messages(task: str, number: int, row: dict[str, Any]) -> list[dict[str, Any]]:
    """The messages that lmms-eval made of a row, with its pictures in them."""
    seen = iter(pictures(task, row))
    made = [
        {
            "role": message["role"],
            "content": [
                {"type": "image", "url": next(seen)} if part["type"] == "image" else part
                for part in message["content"]
            ],
        }
        for message in ROWS[task]["rows"][number]["messages"]
    ]
    assert next(seen, None) is None
    return made


def requests(task: str) -> tuple[list[Instance], list[dict[str, Any]]]:
    """All of a task, in its six parts, and the rows that they are about."""
    table = pq.read_table(GOLDEN / "benchmarks" / "fixtures" / f"{task}.parquet").to_pylist()
    rows = [{**row, "number": number} for number, row in enumerate(table)]
    made = []
    for number, known in enumerate(ROWS[task]["rows"]):
        arguments = (
            known["simple_text"], lambda row: messages(task, row["number"], row),
            known["generation_kwargs"], number, task, SPLIT,
        )  # fmt: skip
        made.append(Instance(arguments))
    return made, rows


def asked_all(model: Any) -> dict[str, list[str]]:
    """Answers by task to all rows, asked at once as lmms-eval does."""
    made: list[Instance] = []
    for task in ROWS:
        of_task, rows = requests(task)
        made += of_task
        model.task_dict[task] = {SPLIT: rows}
    answers = iter(model.generate_until(made))
    return {task: [next(answers) for _ in ROWS[task]["rows"]] for task in ROWS}


@pytest.mark.parametrize("batch_size", [1, 4])
def test_answers_as_under_the_real_tool(model_class: Any, batch_size: int) -> None:
    model = model_class(pretrained="viq-tiny-chat", device="cpu", batch_size=batch_size)
    answers = asked_all(model)
    assert answers == {task: RECORDED["answers"][task] for task in ROWS}
    assert len(model.cache_hook.told) == sum(map(len, answers.values()))


def ask(model: Any, *texts: str, **settings: Any) -> list[str]:
    """Answers about one picture."""
    picture = Image.new("RGB", (48, 32), "red")
    model.task_dict = {"t": {SPLIT: [None]}}

    def messages_of(text: str) -> Any:
        content = [{"type": "image", "url": picture}, {"type": "text", "text": text}]
        return lambda row: [{"role": "user", "content": content}]

    made = [Instance((text, messages_of(text), settings, 0, "t", SPLIT)) for text in texts]
    return model.generate_until(made)


def test_answers_come_in_the_order_of_requests(model: Any) -> None:
    texts = ["What color is it?", "Describe the image.", "Is it blue? Answer yes or no."]
    together = ask(model, *texts, max_new_tokens=12)
    assert len(set(together)) == 3
    assert together == [ask(model, text, max_new_tokens=12)[0] for text in texts]


def test_answers_end_before_the_first_stop_text(model: Any) -> None:
    (whole,) = ask(model, "Describe the image.", max_new_tokens=12)
    assert whole == "a picture of a red ring on a plain background"
    (short,) = ask(model, "Describe the image.", max_new_tokens=12, until=["ring", "red"])
    assert short == "a picture of a"


def test_nothing_is_generated_behind_a_stop_text(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths = []
    inner = model._model.generate

    def generate(**inputs: Any) -> Any:
        ids = inner(**inputs)
        lengths.append(ids.shape[1] - inputs["input_ids"].shape[1])
        return ids

    monkeypatch.setattr(model._model, "generate", generate)
    (whole,) = ask(model, "Describe the image.", max_new_tokens=12)
    ask(model, "Describe the image.", max_new_tokens=12, until=whole.split()[1])
    assert lengths[1] < lengths[0]


def test_max_pixels_and_system_prompt_reach_the_processor(model_class: Any) -> None:
    model = model_class(
        pretrained="viq-tiny-chat", device="cpu", max_pixels=1e4, system_prompt="Be brief."
    )
    assert (model._processor.max_pixels, model._processor.system) == (10_000, "Be brief.")


def test_rank_is_that_of_the_process(model_class: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    model = model_class(pretrained="viq-tiny-chat", device="cpu")
    assert (model.rank, model.world_size, model.device.type) == (1, 2, "cpu")


def test_other_kinds_of_requests_are_refused(model: Any) -> None:
    for method in (model.loglikelihood, model.generate_until_multi_round):
        with pytest.raises(NotImplementedError, match="choose a task"):
            method([])


# What it refuses


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_pixel": 4, "fps": 1}, "max_pixel, fps: no argument of the model viq, which takes "
         "pretrained, batch_size"),
        ({"batch_size": "auto"}, "batch_size: 'auto' is no whole number from 1"),
        ({"max_pixels": 0.5}, "max_pixels: '0.5' is no whole number"),
        ({"max_new_tokens": True}, "max_new_tokens: 'True' is no whole number"),
        ({"pretrained": None}, "pretrained: is missing"),
        ({"pretrained": 7}, "pretrained=7: lmms-eval reads it as a number"),
        ({"pretrained": "no/such/folder"}, "no/such/folder"),
        ({"dtype": "int8"}, "dtype=int8: give auto, float32"),
        ({"device": "abacus"}, "--device abacus: not available here"),
    ],
)  # fmt: skip
def test_arguments_are_refused_by_name(
    model_class: Any, arguments: dict[str, Any], message: str
) -> None:
    given = {"pretrained": "viq-tiny-chat", "device": "cpu", **arguments}
    with pytest.raises(ViqError) as error:
        model_class(**given)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_batch_size_may_be_text(model_class: Any) -> None:
    assert model_class(pretrained="viq-tiny-chat", device="cpu", batch_size="3").batch_size == 3


def test_a_request_of_five_parts_is_refused() -> None:
    with pytest.raises(ViqError, match="5 arguments is not in the chat form"):
        request_of(("text", lambda row: [], {}, 0, "t"), 8)


def test_a_picture_that_cannot_be_read_is_named(model: Any, tmp_path: Path) -> None:
    file = tmp_path / "torn.png"
    Image.effect_noise((64, 64), 50).save(file)
    file.write_bytes(file.read_bytes()[:400])
    model.task_dict = {"t": {SPLIT: [None]}}
    with Image.open(file) as torn, pytest.raises(ViqError, match=f"t/{SPLIT}/0"):
        content = [{"type": "image", "url": torn}, {"type": "text", "text": "?"}]
        asked = [{"role": "user", "content": content}]
        model.generate_until([Instance(("?", lambda row: asked, {}, 0, "t", SPLIT))])


# Its parts


@pytest.mark.parametrize(
    ("settings", "options", "until"),
    [
        ({}, {"max_new_tokens": 9, "do_sample": False}, ()),
        (None, {"max_new_tokens": 9, "do_sample": False}, ()),
        ({"max_new_tokens": 3, "until": ["\n\n", ""], "image_aspect_ratio": "pad"},
         {"max_new_tokens": 3, "do_sample": False}, ("\n\n",)),
        ({"temperature": 0.0, "top_p": 1.0, "num_beams": 1, "do_sample": True, "until": "a"},
         {"max_new_tokens": 9, "num_beams": 1, "do_sample": False}, ("a",)),
        ({"temperature": 0.7, "top_p": None},
         {"max_new_tokens": 9, "temperature": 0.7, "do_sample": True}, ()),
        ({"temperature": 0.7, "do_sample": False}, {"max_new_tokens": 9, "do_sample": False}, ()),
        ({"do_sample": True}, {"max_new_tokens": 9, "do_sample": True}, ()),
    ],
)  # fmt: skip
def test_settings_become_options_of_generate(settings: Any, options: Any, until: Any) -> None:
    found = request_of(("q", list, settings, 0, "t", "s"), 9).generation
    assert (dict(found.options), found.until) == (options, until)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_gen": 3, "beams": 2}, "chartqa: max_gen, beams: no generation setting"),
        ({"max_new_tokens": 0}, "chartqa, max_new_tokens: '0' is no whole number"),
        ({"until": [3]}, "chartqa, until: [3] is no list of texts"),
    ],
)
def test_unknown_settings_are_refused_by_name(settings: Any, message: str) -> None:
    with pytest.raises(ViqError, match=re.escape(message)):
        generation_of(settings, 9, "chartqa")


def test_batches_hold_like_settings_and_every_request_once() -> None:
    made = [
        request_of(("x" * n, list, {"max_new_tokens": 1 + n % 2}, n, "t", "s"), 8)
        for n in range(11)
    ]
    groups = list(batches(made, 4))
    assert sorted(number for group in groups for number in group) == list(range(11))
    assert all(len({made[n].generation for n in group}) == 1 for group in groups)
    assert groups[0] == [10, 8, 6, 4]


def part(**fields: Any) -> dict[str, Any]:
    return {"type": "text" if "text" in fields else "image", **fields}


def content_of(*parts: dict[str, Any]) -> Any:
    made = fake_lmms_eval.ChatMessages([{"role": "user", "content": list(parts)}])
    (message,) = chat(made.messages, "t/s/0")
    return "".join(one.get("text", "<image>") for one in message["content"])


def test_images_before_all_text_stand_as_in_training() -> None:
    image = part(url=Image.new("RGB", (8, 8)))
    assert content_of(image, image, part(text="What?")) == "<image>\n<image>\nWhat?"
    assert content_of(part(text="In"), image, part(text="what?")) == "In<image>what?"
    assert content_of(image, part(text="or"), image) == "<image>\nor<image>"


def test_a_placeholder_in_a_question_is_no_image(model: Any) -> None:
    answers = ask(model, "What does <image> mean?", max_new_tokens=4)
    assert len(answers) == 1


@pytest.mark.parametrize("url", ["https://example.org/a.png", "/etc/passwd", b"bytes"])
def test_only_opened_images_are_looked_at(url: Any) -> None:
    with pytest.raises(ViqError, match="t/s/0: image in the form of (str|bytes)"):
        content_of(part(url=url), part(text="?"))


def test_cut_takes_the_first_of_several_stop_texts() -> None:
    assert cut(" a cup\n\nASSISTANT: b", ["ASSISTANT:", "\n\n"]) == "a cup"
    assert cut("\n\nlate", ["\n\n"]) == ""
    assert cut(" all ", []) == "all"


def test_a_stop_text_does_not_begin_in_the_prompt() -> None:
    class Letters:
        def batch_decode(self, ids: torch.Tensor, **_: Any) -> list[str]:
            return ["".join(map(chr, row)) for row in ids.tolist()]

    stop = StopTexts(Letters(), ["\n\n"], prompt_length=2)
    rows = ["q\n\nab", "q\na\n\n", "q\na\n\nbcd"[:5]]
    ids = torch.tensor([[ord(c) for c in row] for row in rows])
    assert stop(ids, None).tolist() == [False, True, True]
