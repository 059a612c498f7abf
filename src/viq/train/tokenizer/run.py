"""The stages of a recipe, one after another, each beginning from the folder of the one before.

RUN/recipe.json, data.json   what runs, on what (viq/train/run_folder.py); a resumed run is the same
RUN/words/                 text tokenizer, where the language model is trained from scratch
RUN/STAGE/                 log, pictures, checkpoints (viq/train/monitor.py, state.py)
RUN/STAGE/model/           the tokenizer, as VisualTokenizer.from_pretrained reads it
RUN/STAGE/reader.safetensors   what was trained of projector and language model
RUN/STAGE/tower/           the teacher, where the recipe trains one
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from viq.core.files import write_atomically
from viq.core.types import ViqError
from viq.data.batching.crops import Pictures, make_batch
from viq.data.batching.mixture import Mixture, Part, Position
from viq.data.batching.tokenizer_batches import BatchStream
from viq.data.corpora.corpora import RowCorpus
from viq.data.corpora.photos import Photos
from viq.data.corpora.synthetic_corpus import SyntheticCorpus
from viq.image.patches import PatchBatch
from viq.models.language.packed import check_packed, use_packed_attention
from viq.models.language.vision_language import (
    VisionLanguageModel,
    add_adapters,
    build_language,
    load_language,
    recompute_activations,
)
from viq.models.tokenizer.tokenizer import VisualTokenizer
from viq.models.vision.tower import VisionTower
from viq.train import checkpoints as state
from viq.train.distributed import make_accelerator, process_settings
from viq.train.monitor import print_line
from viq.train.observer import first_texts, make_text_tokenizer, shared
from viq.train.run_folder import alone, contents_of, entries, sizes_of
from viq.train.stage import Stage, open_run, run_stage, stage_seed
from viq.train.tokenizer.discriminator import Discriminator
from viq.train.tokenizer.fitted_stages import KINDS as FITTED
from viq.train.tokenizer.fitted_stages import fit_stage
from viq.train.tokenizer.handover import begin, frozen_but, load_reader, start_encoder
from viq.train.tokenizer.init import fit_fsq
from viq.train.tokenizer.objectives import (
    PIXELS,
    AlignObjective,
    DecoderObjective,
    TokenizerObjective,
    TowerObjective,
)
from viq.train.tokenizer.observer import TokenizerObserver
from viq.train.tokenizer.recipe import PREFIXES, StageConfig, TokenizerRecipe
from viq.weights import checkpoint
from viq.weights.verify import digest_of

READER, TEXT_TOKENIZER, MODEL, TOWER = "reader.safetensors", "words", "model", "tower"


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """What a run learns from.

    Attributes:
        rows: corpora of the user's files; empty: synthetic pictures only.
        photos: pictures to cut crops from.
        skipped: (key, reason) of what could not even be read.
        identity: what a run with these data belongs to, for `data.json`.
    """

    rows: Sequence[RowCorpus] = ()
    photos: Pictures = ()
    skipped: Sequence[tuple[str, str]] = ()
    identity: Mapping[str, Any] = field(default_factory=lambda: {"data": [], "where": {}})

    @classmethod
    def of(
        cls,
        corpora: Sequence[RowCorpus],
        paths: Sequence[str | Path] = (),
        where: Mapping[str, str] | None = None,
    ) -> TrainingData:
        """Those with text or labels for conversations, those without text for crops.

        Args:
            paths, where: what the corpora were opened with; a run notes them.
        """
        photos = Photos(corpus for corpus in corpora if corpus.pictures_only)
        skipped = [entry for corpus in corpora for entry in corpus.skipped]
        return cls(
            rows=[corpus for corpus in corpora if corpus.talks],
            photos=photos,
            skipped=[*skipped, *photos.skipped],
            identity={
                "data": entries(corpora),
                "where": dict(where or {}),
                **({"sizes": sizes_of(paths), "contents": contents_of(paths)} if paths else {}),
            },
        )


@dataclass
class TokenizerRun:
    """One run folder: its recipe, its data, and what its stages share."""

    recipe: TokenizerRecipe
    data: TrainingData
    out: Path
    accelerator: Any = field(default_factory=make_accelerator)
    hidden: bool = False  # no progress on stderr
    report_to: Sequence[str] = ()  # names of trackers (train/tracking.py)
    threads: int = 1
    overwrite: bool = False  # begin anew: remove what an earlier run wrote here
    paths: Sequence[str | Path] = ()  # of the data, which that must not touch
    _text_tokenizer_of_run: Any = None

    @process_settings()
    @alone
    def train(self) -> VisualTokenizer | None:
        """Train all stages, resuming whatever was begun; gives the last tokenizer.

        A stage that has ended is not trained again.

        Raises:
            ViqError: the folder was begun with another recipe or other data.
        """
        recipe = self.recipe
        places = [recipe.start, recipe.teacher, recipe.alignment, recipe.vae]
        language = [recipe.language.name] if recipe.language else []
        open_run(
            self.out,
            recipe,
            self.data.identity,
            self.accelerator,
            overwrite=self.overwrite,
            report_to=self.report_to,
            reads=[*self.paths, *places, *language],
        )
        self._tell_of_crops()
        tokenizer: VisualTokenizer | None = None
        previous: Path | None = None
        for number, stage in enumerate(self.recipe.stages):
            folder = self.out / stage.name
            if not self._ended(stage):
                if stage.kind in FITTED:
                    self._fit(stage, previous)
                else:
                    self._stage(stage, number, previous)
                self.accelerator.wait_for_everyone()
            if stage.kind != "tower":
                previous = folder
        if previous is not None:
            tokenizer = VisualTokenizer.from_pretrained(previous / MODEL)
        return tokenizer

    def _tell_of_crops(self) -> None:
        """Data that all have text leave nothing to cut crops from, which is easily overlooked."""
        wanted = [s.name for s in self.recipe.stages if s.data.crops and not self._ended(s)]
        given = self.data.rows and not len(self.data.photos)
        if wanted and given and self.accelerator.is_main_process:
            print_line(
                f"{', '.join(wanted)}: crops are cut from synthetic pictures alone, as all data "
                "have text: give photos, too (--data)"
            )

    # One stage

    def _ended(self, stage: StageConfig) -> bool:
        name = TOWER if stage.kind == "tower" else MODEL
        return (self.out / stage.name / name / checkpoint.CONFIG_FILE).is_file()

    def objective(self, stage: StageConfig, previous: Path | None, seed: int) -> TokenizerObjective:
        """What a stage optimises, before its first step; only its parts require gradients.

        Args:
            previous: folder of the stage before.
        """
        torch.manual_seed(seed)
        make = {"tower": self._tower, "align": self._align, "decoder": self._decoder}[stage.kind]
        objective = make(stage, previous, seed)
        frozen_but(objective, stage)
        return objective

    def _fit(self, stage: StageConfig, previous: Path | None) -> None:
        """A stage without a loop: the main process fits, the others wait."""
        if not self.accelerator.is_main_process:
            return

        def report(record: dict[str, Any]) -> None:
            if not self.hidden:
                figures = (f"{name} {value:.6g}" for name, value in record.items()
                           if isinstance(value, int | float))  # fmt: skip
                print_line(f"{stage.name}: {'  '.join(figures)}")

        folder = self.out / stage.name / MODEL
        before = previous / MODEL if previous else None
        fit_stage(self.recipe, stage, self.data.photos, self.data.rows, before, folder, report)

    def _stage(self, stage: StageConfig, number: int, previous: Path | None) -> None:
        plan = Stage(
            name=stage.name,
            folder=self.out / stage.name,
            loop=stage.loop,
            seed=stage_seed(self.recipe.seed, number),
            gradient_accumulation=stage.data.gradient_accumulation,
            new=tuple(PREFIXES[part] for part in stage.new),
        )
        objective = self.objective(stage, previous, plan.seed)
        talks = isinstance(objective, AlignObjective) and objective.reader is not None
        text_tokenizer = self._text_tokenizer() if talks else None

        def stream(lanes: range, positions: Mapping[int, Position]) -> BatchStream:
            return BatchStream(
                stage.data,
                self._mixture(stage, plan.seed, conversations=_talks(stage)),
                seed=plan.seed,
                lanes=lanes,
                tokenizer=text_tokenizer,
                photos=self.data.photos,
                positions=positions,
                threads=self.threads,
            )

        observer = TokenizerObserver(
            stage,
            plan.folder,
            self.accelerator,
            objective,
            photos=self.data.photos,
            skipped=self.data.skipped,
            hidden=self.hidden,
            report_to=self.report_to,
        )
        run_stage(plan, objective, stream, observer, self.accelerator)
        self._write(objective, plan.folder, previous)

    def _write(self, objective: TokenizerObjective, folder: Path, previous: Path | None) -> None:
        """What the next stage begins from; the config of the model is written last.

        Every process must call this, since each may hold a piece of the weights.
        """
        main = self.accelerator.is_main_process
        if isinstance(objective, TowerObjective):
            if tower := state.unsharded(objective.tower, main):
                tower.save_pretrained(folder / TOWER)
            return
        reader = objective.reader if isinstance(objective, AlignObjective) else None
        if reader is not None:
            own = {n: p for n, p in reader.named_parameters() if n in reader.own}
            weights = {name: state.whole_tensor(value) for name, value in own.items()}
            if main:
                checkpoint.write_weights(folder / READER, weights, digest=digest_of(weights))
        elif main and previous and (previous / READER).is_file():  # for a later stage with text
            write_atomically(folder / READER, (previous / READER).read_bytes())
        if tokenizer := state.unsharded(objective.tokenizer, main):
            tokenizer.eval().save_pretrained(folder / MODEL)

    # What stages are made of

    def _tower(self, stage: StageConfig, previous: Path | None, seed: int) -> TowerObjective:
        from viq.train.tokenizer.caption_embeddings import Sentences

        if self.recipe.tower is None:
            raise ViqError(f"recipe {self.recipe.name}: a tower stage needs the shape of the tower")
        sentences = Sentences(self.recipe.sentences)
        return TowerObjective(VisionTower(self.recipe.tower), sentences, sentences.width)

    def _align(self, stage: StageConfig, previous: Path | None, seed: int) -> AlignObjective:
        losses = stage.loop.losses
        tokenizer = self._tokenizer(stage, previous, seed)
        tokenizer.encoder.checkpointing = stage.gradient_checkpointing
        return AlignObjective(
            tokenizer,
            bottleneck=stage.bottleneck != "none",
            reader=self._reader(stage, previous) if losses.get("text") else None,
            teacher=self._teacher() if losses.get("distill") else None,
            reconstruct=any(losses.get(name) for name in PIXELS),
            vae=self._vae() if losses.get("latents") else None,
        )

    def _decoder(self, stage: StageConfig, previous: Path | None, seed: int) -> DecoderObjective:
        from viq.train.tokenizer.perceptual import FeatureLoss, Lpips, make_alignment

        losses, tokenizer = stage.loop.losses, self._tokenizer(stage, previous, seed)
        if tokenizer.decoder is None:
            raise ViqError(f"{self.recipe.name}: its model has no pixel decoder to train")
        perceptual = alignment = judge = None
        if losses.get("perceptual"):
            perceptual = Lpips() if stage.perceptual == "lpips" else FeatureLoss(self._teacher())
        if losses.get("features"):
            target = self.recipe.alignment or "teacher"
            alignment = make_alignment(
                self._teacher() if target == "teacher" else target, tokenizer.decoder.config.width
            )
        if stage.discriminator is not None and losses.get("adversarial"):
            judge = Discriminator(stage.discriminator, 3 * self.recipe.model.encoder.patch_size**2)
        return DecoderObjective(
            tokenizer, discriminator=judge, perceptual=perceptual, alignment=alignment
        )

    def _tokenizer(self, stage: StageConfig, previous: Path | None, seed: int) -> VisualTokenizer:
        wanted = "fsq" if stage.bottleneck == "none" else stage.bottleneck
        before = VisualTokenizer.from_pretrained(previous / MODEL) if previous else None
        tokenizer = begin(self.recipe.model, wanted, before, seed)
        if before is None and self.recipe.start is not None:
            start_encoder(tokenizer, self.recipe.start)
        elif before is None and self.recipe.expects_start and self.accelerator.is_main_process:
            print_line(
                f"{stage.name}: the encoder begins from random weights, but recipe "
                f"{self.recipe.name} is made for SigLIP2's: name its folder with --start"
            )
        if before is not None and before.config.quantizer.bottleneck == "proximal" != wanted:
            # On a GPU if there is one: at the paper's size it is too much for a CPU core. (Others
            # than those of CUDA have no double precision.)
            device = self.accelerator.device if torch.cuda.is_available() else "cpu"
            fit_fsq(tokenizer.to(device), before.to(device), self._first_images(stage, seed))
            tokenizer.cpu()
        return tokenizer

    def _first_images(self, stage: StageConfig, seed: int) -> list[PatchBatch]:
        """A handful of batches as the stage will see: its crops, or images of conversations."""
        crops = stage.data.crops
        if crops is not None:
            return [make_batch(self.data.photos, crops, seed, step).batch for step in range(8)]
        data = replace(stage.data, gradient_accumulation=1)
        mixture = self._mixture(replace(stage, data=data), seed, conversations=True)
        stream = BatchStream(data, mixture, seed=seed, lanes=[0], threads=self.threads)
        return [micros[0].batch for micros, _ in stream.steps(0, 4)]

    def _reader(self, stage: StageConfig, previous: Path | None) -> VisionLanguageModel:
        config = self.recipe.language
        if config is None:
            raise ViqError(f"recipe {self.recipe.name}: a text loss needs a language model")
        if config.name:
            language = load_language(config.name)
        else:
            language = build_language(config, len(self._text_tokenizer()))
        use_packed_attention(language)
        for line in check_packed(language, stage.data.chat.max_length):
            if self.accelerator.is_main_process:
                print_line(f"{stage.name}: {line}")
        if config.adapter:
            language = add_adapters(language, config.adapter)
        if config.gradient_checkpointing:
            recompute_activations(language)
        reader = VisionLanguageModel(
            language, self.recipe.model.encoder.width, stage.data.merge_size
        )
        if previous and (previous / READER).is_file():
            load_reader(reader, previous / READER)
        return reader

    def _teacher(self) -> VisionTower:
        own = [s for s in self.recipe.stages if s.kind == "tower"]
        folder = self.recipe.teacher or (self.out / own[0].name / TOWER if own else None)
        if folder is None:
            raise ViqError(
                f"recipe {self.recipe.name}: distillation needs a teacher: name a SigLIP2 folder "
                "(--teacher), or a recipe with a tower stage"
            )
        return VisionTower.from_pretrained(folder).requires_grad_(False).eval()

    def _vae(self) -> Any:
        from viq.models.tokenizer.qwen_vae import load_vae

        if self.recipe.vae is None or self.recipe.model.latents is None:
            raise ViqError(
                f"recipe {self.recipe.name}: a loss on latents needs the folder of the Qwen-Image "
                "VAE (--vae) and a model with a latent head"
            )
        return load_vae(Path(self.recipe.vae), self.accelerator.device)

    def _mixture(self, stage: StageConfig, seed: int, *, conversations: bool) -> Mixture | None:
        """Drawn kinds and files; each file weighs the square root of its rows."""
        if not conversations:
            return None
        rows = [Part(corpus=c, weight=c.length**0.5) for c in self.data.rows]
        synthetic = [
            Part(
                corpus=SyntheticCorpus(kind, "train", sides=stage.data.synthetic_sides),
                weight=weight,
            )
            for kind, weight in stage.data.synthetic.items()
            if weight
        ]
        share = stage.data.synthetic_ratio if rows else 1.0
        parts = [*shared(synthetic, share), *shared(rows, 1 - share if synthetic else 1.0)]
        if not parts:
            raise ViqError(f"{stage.name}: no data: give some with --data")
        return Mixture(parts, seed=seed, lanes=stage.data.gradient_accumulation)

    def _text_tokenizer(self) -> Any:
        """The language model's own, or one trained on the answers and questions of the data."""
        if self._text_tokenizer_of_run is None:
            config = self.recipe.language
            assert config is not None
            self._text_tokenizer_of_run = make_text_tokenizer(
                config, self.out / TEXT_TOKENIZER, self._texts(), self.accelerator
            )
        return self._text_tokenizer_of_run

    def _texts(self) -> Iterable[str]:
        """Questions and answers of the first samples of every corpus."""
        synthetic = {kind for stage in self.recipe.stages for kind in stage.data.synthetic}
        corpora = [*self.data.rows, *(SyntheticCorpus(k, "train") for k in sorted(synthetic))]
        return first_texts(corpora, self.recipe.seed)


def _talks(stage: StageConfig) -> bool:
    """Whether a stage reads conversations or captions."""
    return stage.kind == "tower" or bool(stage.loop.losses.get("text")) or not stage.data.crops
