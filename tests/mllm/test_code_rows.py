"""Codes as rows of a store, from the tools that read one, and the collator that trains on them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_mllm
import torch
from mllm_parts import Parts, said
from tiny_mllm import picture

import viq
from viq.core.types import CodesError, ViqError
from viq.jobs.encode import encode
from viq.jobs.pipeline import EncodeOptions
from viq.mllm import CodesCollator
from viq.mllm.visuals import as_codes, is_codes


@pytest.fixture(scope="module")
def store(parts: Parts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two images with conversations, in one file."""
    import json

    from PIL import Image

    from viq.data.sources.open import open_source

    folder = tmp_path_factory.mktemp("store")
    rows = []
    for number, size in enumerate(((40, 50), (64, 33))):
        Image.fromarray(picture(*size, number)).save(folder / f"{number}.png")
        talk = said("<image>What?", "A red cup.") if number else said("Where?", "Left")
        rows.append({"key": f"k{number}", "image": f"{number}.png", "messages": talk})
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    encode(
        parts[2], open_source(str(folder / "rows.jsonl")), folder / "codes.parquet", EncodeOptions()
    )
    return folder / "codes.parquet"


def rows_of(reader: str, store: Path) -> list[Any]:
    if reader == "datasets":
        import datasets

        return list(datasets.Dataset.from_parquet(str(store), cache_dir=str(store.parent / "hf")))  # type: ignore[arg-type]
    if reader == "duckdb":
        duckdb = pytest.importorskip("duckdb", reason="not installed: pip install duckdb")
        return duckdb.sql(f"from '{store}'").to_arrow_table().to_pylist()
    if reader == "polars":
        polars = pytest.importorskip("polars", reason="not installed: pip install polars")
        return list(polars.read_parquet(store).iter_rows(named=True))
    if reader == "pandas":
        pandas = pytest.importorskip("pandas", reason="not installed: pip install pandas")
        return [row for _, row in pandas.read_parquet(store).iterrows()]
    import pyarrow.parquet as pq

    return pq.read_table(store).to_pylist()


@pytest.mark.parametrize("reader", ["pyarrow", "datasets", "duckdb", "polars", "pandas"])
def test_rows_of_every_reader_are_codes(parts: Parts, store: Path, reader: str) -> None:
    model, processor, _ = parts
    rows, samples = rows_of(reader, store), list(viq.CodeDataset(store))
    texts = ["<image>What?", "<image>Where is it?"]
    wanted = processor(text=texts, codes=[list(sample.codes) for sample in samples])
    given: dict[str, Any]
    for given in ({"codes": rows}, {"images": rows}, {"codes": [[row] for row in rows]}):
        found = processor(text=texts, **given)
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    message = {"role": "user", "content": [{"type": "image", "image": rows[0]},
                                           {"type": "text", "text": "What?"}]}  # fmt: skip
    alone = processor(text=[message])
    assert torch.equal(alone["codes"], processor(text="?", codes=samples[0].codes)["codes"])
    assert model.generate(**found, max_new_tokens=2).shape[0] == 2


def test_rows_that_are_no_codes_are_told_in_one_line(parts: Parts) -> None:
    codes = parts[2].encode(picture(40, 50))[0]
    row = {"codes": codes.ids.ravel().tolist(), "rows": 3, "cols": 4}
    assert is_codes(row) and np.array_equal(as_codes(row, "x").ids, codes.ids)
    assert as_codes(row | {"height": 40, "width": 50, "tile": 0}, "x").size == (40, 50)
    assert as_codes(row | {"height": 400, "width": 50}, "x").size == (48, 64)  # of another image
    assert as_codes(row | {"viq": '{"fingerprint": "0123456789abcdef"}'}, "x").fingerprint
    for changes, reason in (
        ({"rows": 4}, "row 1: 4 rows and 4 cols take 64 codes, but there are 48"),
        ({"cols": None}, "row 1: a row needs codes, rows and cols as numbers"),
        ({"codes": b"abc"}, "row 1: codes are .*, not whole numbers"),
        ({"codes": [-1] * 48}, "between 0 and 65535"),
        ({"codes": [[1], [2, 3]]}, "row 1: a row needs codes"),
        ({"rows": 0}, "take 0 codes"),
        ({"codes": [65535] * 48}, "row 1: code 65535 is outside the codebook"),
        ({"viq": '{"fingerprint": "0123456789abcdef"}'}, "row 1: codes of the tokenizer 0123"),
        ({"viq": '{"fingerprint": "../x"}'}, "row 1, fingerprint"),
    ):
        with pytest.raises(ViqError, match=reason) as error:
            parts[1](text=["?"], codes=[[row | changes]], keys=["row 1"])
        assert "\n" not in str(error.value)
    with pytest.raises(ViqError, match="pictures and codes in one batch"):
        parts[1](text=["<image><image>?"], images=[[row, picture(16, 16)]])
    with pytest.raises(CodesError):
        as_codes({"codes": 3, "rows": 1, "cols": 1}, "x")


def test_the_collator_gives_what_the_processor_gives(parts: Parts, store: Path) -> None:
    processor = parts[1]
    samples = list(viq.CodeDataset(store))
    collate = CodesCollator(processor)
    wanted = processor(
        text=[sample.extras["messages"] for sample in samples],
        codes=[list(sample.codes) for sample in samples],
        labels=True,
        padding_side="right",
    )
    for rows in (rows_of("pyarrow", store), rows_of("datasets", store), samples):
        found = collate(rows)
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    (row, _) = rows_of("pyarrow", store)
    codes = {name: row.pop(name) for name in ("codes", "rows", "cols")}
    captioned = collate([{"images": [codes, codes], "caption": "Two cups."}])
    assert captioned["image_grid_hw"].shape == (2, 2)
    text_alone = collate([{"codes": [], "rows": 0, "cols": 0, "messages": said("a", "b")}])
    assert "codes" not in text_alone
    with pytest.raises(ViqError, match="row 0: images holds pictures"):
        collate([{"images": [picture(16, 16)], "caption": "x"}])
    with pytest.raises(ViqError, match="row 0: has no conversations, messages"):
        collate([codes])
    with pytest.raises(ViqError, match="row 0: int is no row of a store"):
        collate([3])


def test_the_trainer_of_transformers_takes_a_store(
    parts: Parts, store: Path, tmp_path: Any
) -> None:
    from transformers import Trainer, TrainingArguments

    model, processor = tiny_mllm.model_and_processor(Path(parts[0].config.embedder.tokenizer))
    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=3, per_device_train_batch_size=2, learning_rate=1e-2,
        report_to=[], save_strategy="no", use_cpu=True, remove_unused_columns=False,
        disable_tqdm=True, logging_steps=1, dataloader_pin_memory=False,
    )  # fmt: skip
    data: Any = list(viq.CodeDataset(store))
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=data,
        data_collator=CodesCollator(processor),
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]
