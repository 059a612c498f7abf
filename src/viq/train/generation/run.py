"""Train a language model to write codes: `viq train generation RECIPE`.

RUN/recipe.json, data.json   what runs, on what (viq/train/run_folder.py); a resumed run is the same
RUN/codes.parquet      codes and captions of the pictures it draws first, where none are given
RUN/cache/             unpacked shards of the codes
RUN/words/             text tokenizer, where the language model is trained from scratch
RUN/draw/              log and checkpoints
RUN/model/             the model, as `viq generate --model RUN` reads it
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from viq.core.files import folder_aside
from viq.core.types import ViqError
from viq.data.batching.generation_batches import (
    UNCONDITIONAL_PROMPT,
    CodePair,
    GenerationBatch,
    GenerationStream,
    PairCorpus,
    add_image_tokens,
    encode_generation,
    open_pairs,
    pack_generation,
    write_pairs,
)
from viq.data.batching.mixture import Mixture, Part, Position
from viq.data.synthetic.captions import CaptionedShapes
from viq.mllm.generation import LANGUAGE, CodeGenerator, CodeGeneratorConfig
from viq.models.language.heads import check_head
from viq.models.language.packed import check_packed
from viq.models.language.vision_language import build_language, load_language
from viq.models.tokenizer.embedder import CodeEmbedder
from viq.models.tokenizer.loading import load
from viq.store.folder import Store
from viq.store.rows import StoreInfo
from viq.train.distributed import make_accelerator, process_settings
from viq.train.generation.drawn_pairs import DrawnPairs, encoded_shapes
from viq.train.generation.recipe import TERMS, GenerationRecipe
from viq.train.loop import LoopConfig
from viq.train.loss_terms import Objective
from viq.train.monitor import print_line
from viq.train.observer import Observer, make_text_tokenizer
from viq.train.run_folder import alone, empty_model, entry
from viq.train.stage import Stage, open_run, rebuilt, run_stage
from viq.weights import checkpoint

CODES, TEXT_TOKENIZER, STAGE, MODEL = "codes.parquet", "words", "draw", "model"
CACHE = "cache"
_HELD_OUT = 64  # pictures that the loss is looked at, where the run draws its own


class GenerationObjective(Objective):
    """Next-token losses of words and patches, for the training loop."""

    counted_in = TERMS

    def __init__(self, generator_model: CodeGenerator) -> None:
        super().__init__()
        self.model = generator_model

    def forward(self, pack: GenerationBatch) -> dict[str, Tensor]:
        """Sums by name, nats."""
        return self.model(
            pack.ids_L, pack.targets_L, pack.lengths, pack.codes_TS, pack.grids_hw, pack.scored_T
        )


class GenerationObserver(Observer):
    """Of a model that draws: its loss on pictures it is not trained on, too.

    The log has them as `held_out/codes` and `held_out/text`, in nats a patch and a word.

    Args:
        held_out: those pictures; None: there are none.
    """

    def __init__(
        self,
        name: str,
        loop: LoopConfig,
        folder: Path,
        accelerator: Any,
        *,
        objective: GenerationObjective,
        held_out: GenerationBatch | None,
        hidden: bool,
        report_to: Sequence[str],
    ) -> None:
        super().__init__(name, loop, folder, accelerator, hidden=hidden, report_to=report_to)
        self._objective, self._held_out = objective, held_out

    @torch.no_grad()
    def evaluate(self, step: int) -> None:
        first = next(self._objective.parameters())
        if self._held_out is None or not self.main or isinstance(first, DTensor):
            return  # a model in shards is not put together for this
        pack = self._held_out.to(first.device)
        sums, counts = self._objective(pack), pack.counts
        found = {name: float(sums[name]) / counts[TERMS[name]] for name in ("codes", "text")}
        self.journal.log({"step": step} | {f"held_out/{name}": v for name, v in found.items()})


class ModelParts(NamedTuple):
    """Of what the model of a run is made."""

    text_tokenizer: Any
    config: CodeGeneratorConfig
    embedder: CodeEmbedder


@dataclass(kw_only=True)
class GenerationRun:
    """One run folder.

    Attributes:
        stores: of codes with captions, or Parquet files; none: pictures that the project draws.
    """

    recipe: GenerationRecipe
    out: Path
    stores: Sequence[str | Path] = ()
    accelerator: Any = field(default_factory=make_accelerator)
    hidden: bool = False  # no progress on stderr
    report_to: Sequence[str] = ()  # names of trackers (train/tracking.py)
    overwrite: bool = False  # begin anew: remove what an earlier run wrote here

    @process_settings()
    @alone
    def train(self) -> Path:
        """Train, resuming what was begun; gives the folder of the model.

        Raises:
            ViqError: no captions, codes of another tokenizer, a run begun with another recipe or
                other data.
        """
        recipe, main = self.recipe, self.accelerator.is_main_process
        identity = {"codes": [_identity(store) for store in self.stores]}
        open_run(
            self.out,
            recipe,
            identity,
            self.accelerator,
            overwrite=self.overwrite,
            report_to=self.report_to,
            reads=[*self.stores, recipe.tokenizer, recipe.language.name],
            extra_stages=[STAGE],
        )
        if (self.out / MODEL / checkpoint.CONFIG_FILE).is_file():
            return self.out / MODEL
        if main:
            empty_model(self.out / MODEL)  # now, rather than after hours of training
        corpus, held_out, parts = self.parts()
        stage = Stage(
            name=STAGE,
            folder=self.out / STAGE,
            loop=recipe.loop,
            seed=recipe.seed,
            gradient_accumulation=recipe.gradient_accumulation,
        )

        def stream(lanes: range, positions: Mapping[int, Position]) -> GenerationStream:
            mixture = Mixture(
                [Part(corpus=corpus, weight=1.0)],
                seed=recipe.seed,
                lanes=recipe.gradient_accumulation,
            )
            return GenerationStream(
                mixture,
                parts.text_tokenizer,
                samples=recipe.samples,
                lanes=lanes,
                positions=positions,
            )

        def build() -> GenerationObjective:
            return self.objective(parts)

        objective = build()
        samples = [encode_generation(pair, parts.text_tokenizer) for pair in held_out]
        observer = GenerationObserver(
            STAGE, recipe.loop, stage.folder, self.accelerator,
            objective=objective, held_out=pack_generation(samples) if samples else None,
            hidden=self.hidden, report_to=self.report_to,
        )  # fmt: skip
        run_stage(stage, objective, stream, observer, self.accelerator)
        if main:
            trained = rebuilt(stage, build)
            self.write(trained, parts.text_tokenizer)
        self.accelerator.wait_for_everyone()
        return self.out / MODEL

    def parts(self) -> tuple[PairCorpus | DrawnPairs, list[CodePair], ModelParts]:
        """What is trained on, pictures that are held out where the run draws, and of what the model
        is made. Draws and encodes pictures where that was not done."""
        embedder = CodeEmbedder.from_tokenizer(self.recipe.tokenizer)
        corpus, held_out = self._pairs(embedder.config.fingerprint)
        texts = [
            UNCONDITIONAL_PROMPT,
            "user assistant describe the image 0123456789x",
            *sorted(corpus.captions),
        ]
        text_tokenizer = make_text_tokenizer(
            self.recipe.language, self.out / TEXT_TOKENIZER, texts, self.accelerator
        )
        config = CodeGeneratorConfig(
            levels=embedder.config.levels,
            tokenizer=self.recipe.tokenizer,
            fingerprint=embedder.config.fingerprint,
            grid=corpus.grids.most_common(1)[0][0],
            most_patches=max(rows * cols for rows, cols in corpus.grids),
            head_width=self.recipe.head_width,
            transform=embedder.config.transform,
            semantic=embedder.config.semantic,
            detail_width=embedder.transform.detail_width if embedder.config.transform else 0,
        )
        return corpus, held_out, ModelParts(text_tokenizer, config, embedder)

    def write(self, objective: GenerationObjective, text_tokenizer: Any) -> None:
        """The model that was trained, whole or absent."""
        with folder_aside(self.out / MODEL) as aside:
            text_tokenizer.save_pretrained(aside / LANGUAGE)
            objective.model.save_pretrained(aside)

    def objective(self, parts: ModelParts) -> GenerationObjective:
        """What is optimised, before its first step."""
        torch.manual_seed(self.recipe.seed)
        language = self.recipe.language
        size = add_image_tokens(parts.text_tokenizer)
        if language.name:
            model = load_language(language.name)
            if size > model.get_input_embeddings().num_embeddings:
                model.resize_token_embeddings(size)
        else:
            model = build_language(language, size)
        check_head(model)
        generator_model = CodeGenerator(model, parts.config)
        generator_model.take_tables(parts.embedder)
        for line in check_packed(generator_model.language, 1):  # a picture goes on at any length
            if self.accelerator.is_main_process:
                print_line(line)
        return GenerationObjective(generator_model)

    def _pairs(self, wanted: str) -> tuple[PairCorpus | DrawnPairs, list[CodePair]]:
        """What it trains on, all of the recipe's tokenizer, whose fingerprint is `wanted`; and
        pictures that it does not train on, where it draws."""
        recipe, path = self.recipe, self.out / CODES
        ratios = {
            "caption_ratio": recipe.caption_ratio,
            "caption_dropout": recipe.caption_dropout,
        }
        held_out: list[CodePair] = []
        if not self.stores:
            tokenizer = load(recipe.tokenizer)
            unseen = CaptionedShapes("held-out", recipe.size)
            held_out = list(encoded_shapes(tokenizer, unseen, _HELD_OUT))
            if recipe.uses:
                drawn = DrawnPairs(
                    tokenizer, recipe.size, uses=recipe.uses, seed=recipe.seed, **ratios
                )
                return drawn, held_out
            if self.accelerator.is_main_process and not path.is_file():
                info = StoreInfo(
                    model=tokenizer.config.name,
                    fingerprint=tokenizer.fingerprint,
                    levels=tokenizer.levels,
                    dtype=tokenizer.dtype_name,
                )
                shapes = CaptionedShapes("train", recipe.size, recipe.seed)
                write_pairs(path, info, encoded_shapes(tokenizer, shapes, recipe.pictures))
            self.accelerator.wait_for_everyone()
        found = [open_pairs(store, self.out / CACHE) for store in self.stores or [path]]
        for store in found:
            info = store.data.info
            if info.fingerprint != wanted:
                raise ViqError(
                    f"{store.name}: codes of tokenizer {info.fingerprint}, but "
                    f"{recipe.tokenizer} is {wanted}: encode the pictures with it, or name "
                    "the other with --tokenizer"
                )
        return PairCorpus(found, **ratios), held_out


def _identity(place: str | Path) -> dict[str, Any]:
    """Of a store or Parquet file of codes, for `data.json`."""
    store = Store(place)
    shards = [(shard.rows, shard.bytes, shard.sha256) for shard in store.shards]
    return entry(Path(place).stem, len(store), store.info.fingerprint, shards)
