"""Models asked the benchmarks: resumed, limited, batched; codes made once; a model of others."""

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny
import tiny_mllm
import torch

from viq.core.types import ViqError
from viq.eval.vlm.asking import ask, question
from viq.eval.vlm.benchmarks import Outcome, evaluate
from viq.eval.vlm.code_model import CodeModel
from viq.eval.vlm.models import Loaded, Question, cut, decoded, is_ours
from viq.eval.vlm.pixel_model import PixelModel
from viq.eval.vlm.rows import find, open_rows
from viq.eval.vlm.run_folder import opened
from viq.eval.vlm.tasks import TASKS
from viq.mllm.answer_lines import read_answers
from viq.models.tokenizer.tokenizer import VisualTokenizer

FIXTURES = Path(__file__).parent.parent / "golden" / "benchmarks" / "fixtures"
SOME = ("chartqa", "mmmu_val")


def silent(what: str, total: int) -> Any:
    return nullcontext(lambda: None)


class Echo:
    """A model that says what it is asked: the number of pictures and of letters."""

    name, folder, window, pictures = "echo", Path("echo"), 2, "as they are"

    def __init__(self, broken: tuple[int, ...] = (), room: int = 100) -> None:
        self.broken, self.room, self.batches = broken, room, list[list[int]]()

    def prepare(self, task: Any, identity: str, source: Any, rows: int, report: Any) -> None:
        pass

    def load(self, asked: Question) -> Loaded:
        opened = [asked.row().open(number) for number in range(len(asked.images))]
        text = "".join(part for part in asked.parts if isinstance(part, str))
        return Loaded(question=asked, pictures=tuple(opened), size=len(text))

    def answers(self, loaded: Any, most_tokens: int, stop: Any) -> list[str]:
        if len(loaded) > self.room:
            raise torch.OutOfMemoryError("no room")
        for one in loaded:
            if one.number in self.broken:
                raise ViqError(f"{one.question.where}: is not to my taste")
        self.batches.append([one.number for one in loaded])
        return [f"{len(one.pictures)} {one.size}" for one in loaded]

    def facts(self) -> dict[str, Any]:
        return {}


def answers_of(model: Any, out: Path, rows: int = 5, batch: int = 2, name: str = "chartqa") -> Any:
    task = TASKS[name]
    source = open_rows(task, find(task, FIXTURES))
    return ask(task, source, model, out, rows, like="viq", batch=batch, report=silent)


# Asking


def test_batches_are_of_like_lengths_and_answers_of_their_rows(tmp_path: Path) -> None:
    model = Echo()
    asked = answers_of(model, tmp_path / "a.jsonl")
    task = TASKS["chartqa"]
    source = open_rows(task, find(task, FIXTURES))
    assert asked.answers == {n: f"1 {len(task.text(source[n]))}" for n in range(5)}
    sizes = [[len(task.text(source[n])) for n in batch] for batch in model.batches]
    assert all(sorted(batch, reverse=True) == batch for batch in sizes)
    assert sorted(n for batch in model.batches for n in batch) == [0, 1, 2, 3, 4]
    assert max(map(len, model.batches)) == 2


def test_a_killed_run_goes_on_where_it_was(tmp_path: Path) -> None:
    whole = answers_of(Echo(), tmp_path / "whole.jsonl").answers
    file = tmp_path / "a.jsonl"
    answers_of(Echo(), file, rows=3)
    file.write_bytes(file.read_bytes()[:-5])  # as a kill tears the last line
    model = Echo()
    assert answers_of(model, file).answers == whole
    assert sorted(n for batch in model.batches for n in batch) == sorted(
        {0, 1, 2, 3, 4} - {int(key.rpartition("/")[2]) for key in first_two(file)}
    )
    assert len(read_answers(file)[0]) == 5
    again = Echo()
    assert answers_of(again, file).answers == whole and again.batches == []


def first_two(file: Path) -> list[str]:
    return list(read_answers(file)[0])[:2]


def test_what_cannot_be_asked_is_a_line_and_the_rest_is_done(tmp_path: Path) -> None:
    model = Echo(broken=(1, 4))
    asked = answers_of(model, tmp_path / "a.jsonl", batch=5)
    assert sorted(asked.answers) == [0, 2, 3]
    assert sorted(asked.failed) == [f"chartqa.parquet:{n}: is not to my taste" for n in (1, 4)]


def test_batches_shrink_to_the_memory_there_is(tmp_path: Path) -> None:
    model = Echo(room=2)
    assert len(answers_of(model, tmp_path / "a.jsonl", batch=5).answers) == 5
    assert max(map(len, model.batches)) == 2
    nothing = answers_of(Echo(room=0), tmp_path / "b.jsonl")
    assert nothing.answers == {} and "does not fit into the device's memory" in nothing.failed[0]


def test_stop_texts_cut_answers() -> None:
    assert cut("one\n\ntwo", ["\n\n"]) == "one"
    assert cut("a ASSISTANT: b\n\nc", ["\n\n", "ASSISTANT:"]) == "a"
    assert cut("whole", ["\n\n"]) == "whole" == cut("whole", [])
    words = tiny.letters()
    ids = torch.tensor([words.encode(" a\n\nb", add_special_tokens=False)])
    assert decoded(words, ids, ["\n\n"]) == ["a"]


# A model on codes


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a tiny multimodal model, whose tokenizer lies beside it."""
    folder = tmp_path_factory.mktemp("chat")
    tiny_mllm.saved_tokenizer(folder / "tokenizer")
    model, processor = tiny_mllm.model_and_processor(folder / "tokenizer")
    processor.max_pixels = 96**2
    model.save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    return folder


def run(model: Any, out: Path, tasks: Any = SOME, data: Path = FIXTURES, **options: Any) -> Outcome:
    with opened(out, {"model": model.name}, overwrite=False) as folder:
        outcome = evaluate(model, folder, tasks, data, report=silent, **options)
        outcome.save(folder)
    return outcome


def code_model(chat: Path, codes: Path) -> CodeModel:
    return CodeModel(str(chat / "model"), codes, tokenizer=str(chat / "tokenizer"))


@pytest.fixture(scope="module")
def asked(chat: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    out = tmp_path_factory.mktemp("asked") / "run"
    return out, run(code_model(chat, out / "codes"), out)


def test_a_model_on_codes_answers_every_row(chat: Path, asked: tuple[Path, Outcome]) -> None:
    out, outcome = asked
    assert is_ours(chat / "model") and is_ours("viq-tiny-chat")
    assert outcome.failed == []
    assert [(r.task.name, len(r.scored)) for r in outcome.results] == [
        ("chartqa", 5), ("mmmu_val", 5),
    ]  # fmt: skip
    saved = json.loads((out / "scores.json").read_text())
    assert saved["tasks"]["chartqa"]["score"] == outcome.results[0].score
    # 300 x 220 px shrunk to 9216: 112 x 82, 7 x 6 patches of 4 codes
    assert saved["tasks"]["chartqa"]["codes_per_picture"] == 7 * 6 * 4
    assert any("where their placeholders stand" in note for note in saved["notes"])
    with pytest.raises(ViqError, match="gone"):
        run(CodeModel(str(chat / "model"), out / "no", tokenizer="gone"), out.parent / "other")
    rows = [json.loads(line) for line in (out / "scored/chartqa.jsonl").read_text().splitlines()]
    assert [row["doc_id"] for row in rows] == list(range(5))


def test_answers_do_not_depend_on_the_batch(
    chat: Path, asked: tuple[Path, Outcome], tmp_path: Path
) -> None:
    out, outcome = asked
    alone = run(code_model(chat, out / "codes"), tmp_path / "run", batch=1)
    assert alone.answers == outcome.answers
    assert any(outcome.answers["chartqa"].values())


def test_codes_are_made_once(
    chat: Path, asked: tuple[Path, Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, outcome = asked
    monkeypatch.setattr(VisualTokenizer, "encode", None)  # whoever encodes fails
    model = CodeModel(str(chat / "model"), out / "codes", tokenizer="gone")
    assert run(model, tmp_path / "run").answers == outcome.answers


def test_the_same_images_give_the_same_answers_as_codes(
    chat: Path, asked: tuple[Path, Outcome]
) -> None:
    model = code_model(chat, asked[0] / "codes")
    task = TASKS["chartqa"]
    source = open_rows(task, find(task, FIXTURES))
    row = source[0]
    inputs = model._processor(text=f"<image>\n{task.text(row)}", images=row.open())
    model._model.set_visual_tokenizer(VisualTokenizer.from_pretrained(chat / "tokenizer"))
    ids = model._model.generate(**inputs, max_new_tokens=16, do_sample=False)
    words = model._processor.tokenizer
    found = decoded(words, ids[:, inputs["input_ids"].shape[1] :], task.stop)
    assert found == [asked[1].answers["chartqa"][0]]


def test_a_picture_that_cannot_be_read_is_a_line(chat: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    table = pq.read_table(FIXTURES / "chartqa.parquet")
    images = table.column("image").to_pylist()
    images[2] = {"bytes": images[2]["bytes"][:300], "path": None}
    broken = pa.array(images, table.schema.field("image").type)
    table = table.set_column(table.column_names.index("image"), "image", broken)
    pq.write_table(table, data / "chartqa.parquet")
    for number, model in enumerate((code_model(chat, tmp_path / "codes"), Echo())):
        outcome = run(model, tmp_path / f"run-{number}", ["chartqa"], data)
        (reason,) = outcome.failed
        assert "chartqa.parquet:2" in reason and "truncated or damaged" in reason
        assert outcome.as_json()["tasks"]["chartqa"]["n"] == 4


def test_a_run_of_another_model_or_other_data_is_refused(tmp_path: Path) -> None:
    run(Echo(), tmp_path / "run", ["chartqa"], limit=2)
    assert len(run(Echo(), tmp_path / "run", ["chartqa"]).answers["chartqa"]) == 5
    other = Echo()
    other.name = "other"
    with pytest.raises(ViqError, match="holds answers with another model .echo, now other"):
        run(other, tmp_path / "run", ["chartqa"])
    (tmp_path / "chartqa.parquet").write_bytes((FIXTURES / "chartqa.parquet").read_bytes())
    table = pq.read_table(FIXTURES / "chartqa.parquet").slice(0, 3)
    pq.write_table(table, tmp_path / "chartqa.parquet")
    with pytest.raises(ViqError, match="holds answers to other data of chartqa"):
        run(Echo(), tmp_path / "run", ["chartqa"], tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(ViqError, match="holds letter.txt and no run"):
        run(Echo(), tmp_path / "mine", ["chartqa"])
    with opened(tmp_path / "run", {"model": "other"}, overwrite=True):
        assert not (tmp_path / "run/answers/chartqa.jsonl").exists()


# A model of transformers


TEMPLATE = (
    "{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %} A:{% endif %}"
)


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaVA of random weights, as transformers saves it."""
    import transformers
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    folder = tmp_path_factory.mktemp("llava")
    words = tiny_mllm.train_text_tokenizer(tiny_mllm.TEXTS * 3, 300)
    words.add_tokens(["<image>"], special_tokens=True)
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2,
              "num_attention_heads": 2, "image_size": 28, "patch_size": 14,
              "projection_dim": 16}  # fmt: skip
    text = {"model_type": "qwen2", "vocab_size": len(words), "hidden_size": 16,
            "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
            "num_key_value_heads": 2}  # fmt: skip
    config = transformers.LlavaConfig(
        vision_config={"model_type": "clip_vision_model", **vision},
        text_config=text,
        image_token_index=words.convert_tokens_to_ids("<image>"),
    )
    torch.manual_seed(0)
    model = transformers.LlavaForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8 if parameter.ndim > 1 else 1)
    model.generation_config.eos_token_id = words.eos_token_id
    model.save_pretrained(folder)
    size = {"height": 28, "width": 28}
    processor = transformers.LlavaProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size=size),
        words, patch_size=14, vision_feature_select_strategy="default",
        num_additional_image_tokens=1, chat_template=TEMPLATE,
    )  # fmt: skip
    processor.save_pretrained(folder)
    return folder


@pytest.fixture
def pixels(llava: Path) -> PixelModel:
    return PixelModel(str(llava))


def test_a_model_of_transformers_is_asked_on_equal_terms(
    llava: Path, pixels: PixelModel, tmp_path: Path
) -> None:
    assert not is_ours(llava)
    together = run(pixels, tmp_path / "together", batch=5)
    alone = run(pixels, tmp_path / "alone", batch=1)
    assert together.failed == [] and together.answers == alone.answers
    assert any(together.answers["chartqa"].values())
    facts = together.as_dict()["tasks"]["chartqa"]
    assert facts["tokens_per_prompt"] > 4 and "shortest_edge" in facts["pictures"]


def test_pictures_of_mmmu_come_in_their_order(pixels: PixelModel) -> None:
    task = TASKS["mmmu_val"]
    source = open_rows(task, find(task, FIXTURES))
    for like, sizes in (("viq", [(260, 140), (200, 120)]), ("lmms-eval", [(200, 120), (260, 140)])):
        loaded = pixels.load(question(task, source, 1, like))  # type: ignore[arg-type]
        assert [image.size for image in loaded.pictures] == sizes


def test_folders_that_hold_no_such_model(llava: Path, chat: Path, tmp_path: Path) -> None:
    with pytest.raises(ViqError):
        PixelModel(str(tmp_path / "none"))
    (tmp_path / "config.json").write_bytes((llava / "config.json").read_bytes())
    with pytest.raises(ViqError, match="holds no weights in safetensors"):
        PixelModel(str(tmp_path))
    assert not is_ours(tmp_path)
    with pytest.raises(ViqError, match="viq-tiny: holds no language model"):
        is_ours("viq-tiny")
