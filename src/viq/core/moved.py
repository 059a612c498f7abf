"""Modules of release 0.1 under their old names, for one release.

`import viq.types` gives the module that is `viq.core` today, with a DeprecationWarning. Packages
that
took the name of a module (`viq.image`, `viq.mllm`, `viq.recipes`) export its public names.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

# Old name and new name, both below viq.
_MOVED: dict[str, str] = dict(
    (line.split()[0], line.split()[1])
    for line in """
bench.measure core.measure
checkpoint weights.checkpoint
cli_bench cli.bench
cli_draw cli.generate
cli_mllm cli.train
cli_parts cli.common
cli_store cli.codes
cli_tools cli.store
compress codec
console cli.console
data.access data.sources.access
data.batches data.batching.tokenizer_batches
data.captions data.synthetic.captions
data.chat data.text.chat_format
data.code_batches data.batching.code_batches
data.codes store.dataset
data.conversations data.text.conversations
data.crops data.batching.crops
data.drawings data.batching.generation_batches
data.drawn data.corpora.synthetic_source
data.epochs store.epochs
data.fetch data.sources.fetch
data.fields data.sources.json_fields
data.mixture data.batching.mixture
data.order store.order
data.photos data.corpora.photos
data.processor mllm.processing
data.questions data.synthetic.questions
data.source_base data.sources.base
data.source_cells data.sources.cells
data.source_datasets data.sources.datasets
data.source_files data.sources.files
data.source_json data.sources.json_records
data.source_tables data.sources.tables
data.source_tar data.sources.tar
data.synthetic_base data.synthetic.canvas
data.synthetic_chart data.synthetic.charts
data.synthetic_fields data.synthetic.fields
data.synthetic_shapes data.synthetic.shapes
data.synthetic_text data.synthetic.pages
data.templates data.text.templates
data.words data.text.text_tokenizer
decode jobs.decode
demo.gallery report.gallery
demo.page report.gallery_page
demo.parts report.gallery_common
demo.sheet report.gallery_sheet
doctor jobs.doctor
draw mllm.text_to_image
encode jobs.encode
errors core.errors
eval.answers eval.vlm.held_out
eval.codecs image.codecs
eval.draw eval.generation.captions
eval.features eval.probes.features
eval.intervals metrics.intervals
eval.metrics metrics.images
eval.reconstruction eval.tokenizer.reconstruction
eval.shapes eval.generation.shapes
eval.stability eval.tokenizer.stability
eval.understanding eval.probes.understanding
extras.convert jobs.convert
extras.official jobs.official_names
extras.ray_engine jobs.ray_engine
files core.files
fsq models.tokenizer.fsq
hub weights.hub
info jobs.info
inputs jobs.inputs
interrupts core.interrupts
loading models.tokenizer.loading
models.decoder models.tokenizer.decoder
models.discriminator train.tokenizer.discriminator
models.embedder models.tokenizer.embedder
models.encoder models.tokenizer.encoder
models.latents models.tokenizer.latent_head
models.mllm mllm.modeling
models.packed models.language.packed
models.perceptual train.tokenizer.perceptual
models.pretrained weights.pretrained
models.projector models.language.projector
models.quantizer models.tokenizer.quantizer
models.qwen_vae models.tokenizer.qwen_vae
models.siglip models.vision.siglip
models.tokenizer_config models.tokenizer.config
models.tower models.vision.tower
models.writer mllm.generation
names core.names
nn.ambient models.layers.ambient
nn.attention models.layers.attention
nn.blocks models.layers.blocks
nn.rope2d models.layers.rope2d
outputs core.outputs
patches image.patches
pipeline jobs.pipeline
pixels image.pixels
progress cli.progress
quiet core.quiet
ranks core.process
recipes_draw recipes.generation
recipes_mllm recipes.mllm
run_log metrics.run_log
store.extras store.columns
tensorfile weights.tensors
terminal core.terminal
tools.describe jobs.store.stats
tools.duplicates jobs.store.near_duplicates
tools.lint jobs.store.lint
tools.merge jobs.store.merge
tools.preview report.preview
train.begin train.tokenizer.handover
train.charts report.charts
train.draw train.generation.run
train.folder train.run_folder
train.init train.tokenizer.init
train.losses train.tokenizer.losses
train.objectives train.tokenizer.objectives
train.recipe train.tokenizer.recipe
train.report report.run_page
train.running train.observer
train.runs report.runs
train.sentences train.tokenizer.caption_embeddings
train.stages train.tokenizer.run
train.state train.checkpoints
types core
unfinished jobs.unfinished
untrusted core.untrusted
verify weights.verify
""".strip().splitlines()
)
_GONE = frozenset(name.rpartition(".")[0] for name in _MOVED) - {""}  # packages, too


class _Forward(MetaPathFinder, Loader):
    """Finds a module under its old name, after everything else has not."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        name = fullname.removeprefix("viq.")
        if name == fullname or not (name in _MOVED or name in _GONE):
            return None
        return ModuleSpec(fullname, self, is_package=name in _GONE)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        name = spec.name.removeprefix("viq.")
        if name not in _MOVED:
            return None  # an empty package, for the modules in it
        new = f"viq.{_MOVED[name]}"
        warnings.warn(f"{spec.name} has moved to {new}", DeprecationWarning, stacklevel=2)
        self._spec = import_module(new).__spec__
        return sys.modules[new]

    def exec_module(self, module: ModuleType) -> None:
        if module.__name__ in sys.modules and module is sys.modules[module.__name__]:
            if module.__name__.removeprefix("viq.") not in _GONE:
                module.__spec__ = self._spec  # as it was before it was found by its old name


def forward_old_names() -> None:
    """Let old names be imported."""
    if not any(isinstance(finder, _Forward) for finder in sys.meta_path):
        sys.meta_path.append(_Forward())
