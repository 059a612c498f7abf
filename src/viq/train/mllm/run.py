"""Training a multimodal language model on stored codes, stage by stage.

RUN/recipe.json, data.json   what runs, on what (viq/train/run_folder.py); a resumed run is the same
RUN/words/          text tokenizer, where the language model is trained from scratch
RUN/codes/          store of synthetic pictures, where no other is given
RUN/STAGE/          log, checkpoints (viq/train/monitor.py, state.py)
RUN/STAGE/model/    model and processor, as their from_pretrained read them

The vision encoder has no part in it: only the path from codes to features is ever built, and only
its weights are read from the tokenizer's file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from viq.core.files import folder_aside
from viq.core.quiet import quiet
from viq.core.types import ViqError
from viq.data.batching.code_batches import (
    CUT,
    CodeBatch,
    CodeCorpus,
    CodeSource,
    CodesRef,
    CodeStream,
    open_stores,
    open_texts,
)
from viq.data.batching.mixture import Mixture, Part, Position
from viq.data.corpora.synthetic_config import SyntheticConfig
from viq.jobs.encode import encode
from viq.jobs.pipeline import EncodeOptions
from viq.metrics.run_log import SKIPPED, read_lines
from viq.mllm.loading import MODEL, assemble, load_config, load_mllm, make_processor
from viq.mllm.modeling import ViQForConditionalGeneration
from viq.mllm.old_weights import current_name
from viq.models.language.packed import check_packed, use_packed_attention
from viq.models.language.projector import Whitener
from viq.models.language.vision_language import (
    adapter_targets,
    add_adapters,
    build_language,
    load_language,
    recompute_activations,
    require_peft,
)
from viq.models.tokenizer.embedder import CodeEmbedder
from viq.models.tokenizer.tokenizer import VisualTokenizer
from viq.store.folder import INDEX
from viq.train.distributed import make_accelerator, process_settings
from viq.train.loss_terms import Objective
from viq.train.mllm.recipe import METRICS, TERMS, MllmRecipe, MllmStage
from viq.train.monitor import print_line
from viq.train.observer import Observer, first_texts, make_text_tokenizer, shared
from viq.train.run_folder import alone, contents_of, empty_model, entries, entry, sizes_of
from viq.train.stage import Stage, open_run, rebuilt, run_stage, stage_seed
from viq.weights import checkpoint

MODULES = {  # by the parts that a recipe names
    "embedder": ("model.embedder",),
    "projector": ("model.projector",),
    "language": ("model.language_model", "lm_head"),
}
TEXT_TOKENIZER, CODES, CACHE = "words", "codes", "cache"
_SETTLING_SAMPLES, _SETTLING_PATCHES = 300, 16_384  # at most


class CodesObjective(Objective):
    """Cross-entropy of the answers, for packed conversations about codes."""

    counted_in, metrics = TERMS, METRICS

    def __init__(self, model: ViQForConditionalGeneration) -> None:
        super().__init__()
        self.model = model

    @staticmethod
    def current_name(name: str) -> str:
        """The name of a weight that has this one in a checkpoint of release 0.1."""
        inner = name.removeprefix("model.")
        return name if inner == name else f"model.{current_name(inner)}"

    def forward(self, micro: CodeBatch) -> dict[str, Tensor]:
        """Sums by name, fp32."""
        text = micro.text
        score = self.model.score(
            self.model.embedder(micro.codes_TS, micro.grids_hw) if micro.grids_hw else None,
            micro.grids_hw,
            text.ids_L,
            text.targets_L,
            text.lengths,
        )
        loss = score.loss_A.sum()
        if not micro.grids_hw:  # zeros for what reads images, so that processes stay in step
            loss = loss + 0 * sum(
                parameter.sum()
                for part in (self.model.embedder, self.model.projector)
                for parameter in part.parameters()
                if parameter.requires_grad
            )
        return {"text": loss, "correct": score.correct_A.sum()}


@dataclass(kw_only=True)
class MllmRun:
    """One run folder: its recipe, its data, and what its stages share.

    Attributes:
        stores: of codes with conversations.
        synthetic: also those that the recipe draws, which are all there is without a store.
        texts: files of conversations without images.
        where: only samples of these stores whose columns have these values.
        cache: folder for unpacked shards of the stores.
        corpora: of codes and of text alone; opened by `train`.
        text_tokenizer: text tokenizer of the first stage; made by `train`, None if that stage has
            ended.
    """

    recipe: MllmRecipe
    out: Path
    stores: Sequence[str | Path] = ()
    synthetic: bool = False
    texts: Sequence[str | Path] = ()
    where: dict[str, str] | None = None
    cache: Path | None = None
    accelerator: Any = field(default_factory=make_accelerator)
    hidden: bool = False  # no progress on stderr
    report_to: Sequence[str] = ()  # names of trackers (train/tracking.py)
    threads: int = 1
    overwrite: bool = False  # begin anew: remove what an earlier run wrote here
    corpora: tuple[list[CodeCorpus], list[CodeCorpus]] = field(default=([], []), init=False)
    text_tokenizer: Any = field(default=None, init=False)
    _said: set[str] = field(default_factory=set)

    @cached_property
    def fingerprint(self) -> str:
        """Of the tokenizer whose codes are read."""
        return CodeEmbedder.from_tokenizer(self.recipe.tokenizer).config.fingerprint

    @process_settings()
    @alone
    def train(self) -> Path:
        """Train all stages, resuming whatever was begun; gives the folder of the last model.

        A stage that has ended is not trained again.

        Raises:
            ViqError: no data, a store of another tokenizer, a run begun with another recipe or
                other data.
        """
        main = self.accelerator.is_main_process
        if any(stage.adapter for stage in self.recipe.stages):
            require_peft()  # hours before the stage that needs it
        given, texts = self._given()
        if self.recipe.start is not None:
            self._check_start(self.recipe.start)
        open_run(
            self.out,
            self.recipe,
            self._identity(given, texts),
            self.accelerator,
            overwrite=self.overwrite,
            report_to=self.report_to,
            reads=[*self.stores, *self.texts, self.recipe.tokenizer, self.recipe.language.name,
                   self.recipe.start],
        )  # fmt: skip
        self.corpora = [*given, *self._drawn()], texts
        first = self.out / self.recipe.stages[0].name / MODEL / checkpoint.CONFIG_FILE
        if not first.is_file() and self.recipe.start is None:
            # All processes together, and once: a stage is built twice, at its end by one of them.
            self.text_tokenizer = make_text_tokenizer(
                self.recipe.language,
                self.out / TEXT_TOKENIZER,
                first_texts([c for group in self.corpora for c in group], self.recipe.seed),
                self.accelerator,
            )
        previous, folder = self.recipe.start, self.out
        for number, stage in enumerate(self.recipe.stages):
            folder = self.out / stage.name / MODEL
            if not (folder / checkpoint.CONFIG_FILE).is_file():
                if main:
                    empty_model(folder)  # now, rather than after hours of training
                self._stage(stage, number, previous)
            self.accelerator.wait_for_everyone()
            previous = folder
        return folder

    def listed(self) -> dict[str, int]:
        """How many samples were passed over, and how many cut, in all stages."""
        keys = set[str]()
        for stage in self.recipe.stages:
            path = self.out / stage.name / SKIPPED
            if path.is_file():
                keys |= {str(record.get("key")) for record in read_lines(path)}
        cut = sum(key.endswith(CUT) for key in keys)
        return {"skipped": len(keys) - cut, "cut": cut}

    def _stage(self, stage: MllmStage, number: int, previous: str | Path | None) -> None:
        plan = Stage(
            name=stage.name,
            folder=self.out / stage.name,
            loop=stage.loop,
            seed=stage_seed(self.recipe.seed, number),
            gradient_accumulation=stage.data.gradient_accumulation,
            new=tuple(f"model.{name}." for part in stage.new for name in MODULES[part]),
        )
        objective, processor = self.objective(stage, previous, plan.seed)
        observer = Observer(
            stage.name,
            stage.loop,
            plan.folder,
            self.accelerator,
            skipped=[entry for group in self.corpora for c in group for entry in c.skipped],
            hidden=self.hidden,
            report_to=self.report_to,
        )

        def stream(lanes: range, positions: Mapping[int, Position]) -> CodeStream:
            return CodeStream(
                stage.data,
                self._mixture(stage, plan.seed),
                lanes=lanes,
                tokenizer=processor.tokenizer,
                merge_size=processor.merge_size,
                positions=positions,
                threads=self.threads,
            )

        run_stage(plan, objective, stream, observer, self.accelerator)
        if self.accelerator.is_main_process:
            trained = rebuilt(plan, lambda: self.objective(stage, previous, plan.seed)[0])
            self.write(trained.model, processor, plan.folder / MODEL)

    def objective(
        self, stage: MllmStage, previous: str | Path | None, seed: int
    ) -> tuple[CodesObjective, Any]:
        """What a stage optimises, before its first step, and the processor of the model.

        Args:
            previous: the model of the stage before, or the one that the recipe goes on from.
        """
        torch.manual_seed(seed)
        half = self.accelerator.mixed_precision == "bf16"
        frozen = stage.adapter is not None or "language" not in stage.parts
        dtype = torch.bfloat16 if half and frozen else torch.float32
        if previous is not None:
            model, processor = load_mllm(previous)
            for name in MODULES["language"]:
                model.get_submodule(name).to(dtype)
            processor.max_length = stage.data.chat.max_length
            processor.system = stage.data.chat.system
        else:
            model, processor = self._begin(stage, dtype)
        processor.max_pixels = largest(self.corpora[0]) or processor.max_pixels
        model.requires_grad_(False).train()
        for part in stage.parts:
            for name in MODULES[part]:
                model.get_submodule(name).requires_grad_(True)
        language = model.language_model
        use_packed_attention(language)
        for line in check_packed(language, stage.data.chat.max_length):
            self._say_once(f"{stage.name}: {line}")
        if stage.gradient_checkpointing:
            recompute_activations(language)
        if stage.adapter is not None:
            model.lm_head.requires_grad_(False)
            model.model.language_model = add_adapters(language, stage.adapter)
        return CodesObjective(model), processor

    def _say_once(self, line: str) -> None:
        if self.accelerator.is_main_process and line not in self._said:
            self._said.add(line)
            print_line(line)

    def _check_start(self, start: str) -> None:
        """See that the model to go on from reads the codes of the recipe's tokenizer."""
        read = load_config(start).embedder.fingerprint
        if read not in ("", self.fingerprint):
            raise ViqError(
                f"{start}: reads the codes of tokenizer {read}, not of {self.recipe.tokenizer} "
                f"({self.fingerprint}); give its own as --tokenizer"
            )

    def _begin(self, stage: MllmStage, dtype: torch.dtype) -> tuple[Any, Any]:
        """Model and processor of the first stage, made of parts."""
        config = self.recipe.language
        embedder = CodeEmbedder.from_tokenizer(self.recipe.tokenizer)
        processor = make_processor(
            self.text_tokenizer, embedder, merge_size=self.recipe.merge_size, chat=stage.data.chat
        )
        if config.name:
            language = load_language(config.name, dtype)
        else:
            language = build_language(config, len(processor.tokenizer))
        if any(stage.adapter for stage in self.recipe.stages):
            adapter_targets(language)  # hours before the stage that needs them
        model = assemble(language, embedder, processor, image_positions=self.recipe.image_positions)
        fit_whitening(model, self.corpora[0])
        return model, processor

    def write(self, model: ViQForConditionalGeneration, processor: Any, folder: Path) -> None:
        """Model and processor, whole or absent."""
        if hasattr(model.language_model, "merge_and_unload"):
            model.model.language_model = model.language_model.merge_and_unload()
        with folder_aside(folder) as aside:
            with quiet():
                model.requires_grad_(True).eval().save_pretrained(aside)
            processor.save_pretrained(aside)

    # Data

    def _given(self) -> tuple[list[CodeCorpus], list[CodeCorpus]]:
        """Corpora of the stores that are given, and of text alone."""
        if self._draws() and self.recipe.synthetic is None:
            raise ViqError(
                f"recipe {self.recipe.name}: has no data of its own; give a store of codes "
                "with conversations (--codes), as viq encode makes it"
            )
        found = open_stores(
            self.stores, "train", where=self.where, fingerprint=self.fingerprint,
            cache=self._cache(),
        )  # fmt: skip
        return found, open_texts(self.texts, "train")

    def _draws(self) -> bool:
        return self.synthetic or not self.stores

    def _drawn(self) -> list[CodeCorpus]:
        """The corpus of pictures that the recipe draws, if it is to."""
        if not self._draws():
            return []
        assert self.recipe.synthetic is not None
        store = self._draw(self.recipe.synthetic)
        return open_stores([store], "train", fingerprint=self.fingerprint, cache=self._cache())

    def _identity(
        self, stores: Sequence[CodeCorpus], texts: Sequence[CodeCorpus]
    ) -> dict[str, Any]:
        """What the run belongs to, for `data.json`. What is synthetic follows from the recipe."""
        return {
            "codes": [entry(corpus.name, corpus.length, store_digest(corpus)) for corpus in stores],
            "text": entries(texts),
            "sizes": sizes_of(self.texts),
            "contents": contents_of(self.texts),
            "drawn": self._draws(),
            "where": dict(self.where or {}),
        }

    def _cache(self) -> Path:
        return self.cache or self.out / CACHE

    def _draw(self, synthetic: SyntheticConfig) -> Path:
        """The store of synthetic pictures; the tokenizer is gone again before training begins."""
        store = self.out / CODES
        if self.accelerator.is_main_process and not (store / INDEX).is_file():
            if not self.hidden:
                print_line(f"drawing {synthetic.pictures} pictures and encoding them into {store}")
            from viq.data.corpora.synthetic_source import SyntheticSource  # draws: heavy

            tokenizer = VisualTokenizer.from_pretrained(self.recipe.tokenizer)
            options = EncodeOptions(max_pixels=synthetic.sides[1] ** 2)  # noted in the store
            encode(tokenizer, SyntheticSource(synthetic), store, options, workers=self.threads)
        self.accelerator.wait_for_everyone()
        return store

    def _mixture(self, stage: MllmStage, seed: int) -> Mixture:
        """Each store and file weighs the square root of its samples."""
        codes, texts = (
            [Part(corpus=c, weight=c.length**0.5) for c in group] for group in self.corpora
        )
        share = stage.data.text_share if texts else 0.0
        parts = [*shared(codes, 1 - share), *shared(texts, share)]
        return Mixture(parts, seed=seed, lanes=stage.data.gradient_accumulation)


def store_digest(corpus: CodeCorpus) -> str:
    """Tells the store of a corpus from others, wherever it lies."""
    return cast(CodeSource, corpus.source).data.state_dict()["store"]


def largest(corpora: Sequence[CodeCorpus]) -> int | None:
    """Area in px that images of these stores were shrunk to; None if of any it is not known."""
    limits = [cast(CodeSource, c.source).data.options.get("max_pixels") for c in corpora]
    known = [limit for limit in limits if limit]
    return max(known, default=None) if len(known) == len(limits) else None


@torch.no_grad()
def fit_whitening(model: ViQForConditionalGeneration, corpora: Sequence[CodeCorpus]) -> None:
    """Fit the whitener of a new projector to the first images of all corpora."""
    few = -(-_SETTLING_SAMPLES // len(corpora))
    ids = [
        torch.from_numpy(image.codes.ids.astype("int64"))
        for corpus in corpora
        for index in range(min(few, corpus.length))
        for image in corpus.row(index).images
        if isinstance(image, CodesRef)
    ]
    whitener = model.projector.whitener
    if ids and isinstance(whitener, Whitener):
        patches = sum(image.shape[0] * image.shape[1] for image in ids)
        every = -(-patches // _SETTLING_PATCHES)  # large images: some of their patches do
        features = [model.embedder(i.flatten(0, 1), [(i.shape[0], i.shape[1])]) for i in ids]
        whitener.fit(torch.cat(features)[::every])
