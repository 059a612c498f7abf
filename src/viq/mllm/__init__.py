"""Language models on codes: load one, ask it about images, caption a store.

Importing this registers the classes with transformers, so that `AutoConfig`, `AutoProcessor` and
`AutoModelForImageTextToText` know them; and of the tokenizer `AutoModel` and `AutoImageProcessor`.
"""

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageTextToText,
    AutoProcessor,
)

from viq.mllm.chat import answer_store, ask, look, sampling
from viq.mllm.image_processing import ViQImageProcessor
from viq.mllm.loading import MODEL, assemble, load_mllm, make_processor
from viq.mllm.modeling import ViQConfig, ViQForConditionalGeneration
from viq.mllm.processing import ViQProcessor
from viq.mllm.tokenizer_model import ViQTokenizerConfig, ViQTokenizerModel

__all__ = [
    "MODEL",
    "ViQConfig",
    "ViQForConditionalGeneration",
    "ViQImageProcessor",
    "ViQProcessor",
    "ViQTokenizerConfig",
    "ViQTokenizerModel",
    "answer_store",
    "ask",
    "assemble",
    "load_mllm",
    "look",
    "make_processor",
    "sampling",
]

AutoConfig.register("viq", ViQConfig)
AutoModel.register(ViQConfig, ViQForConditionalGeneration)
AutoModelForImageTextToText.register(ViQConfig, ViQForConditionalGeneration)
AutoProcessor.register(ViQConfig, ViQProcessor)

AutoConfig.register(ViQTokenizerConfig.model_type, ViQTokenizerConfig)
AutoModel.register(ViQTokenizerConfig, ViQTokenizerModel)
AutoImageProcessor.register(
    ViQTokenizerConfig,
    image_processor_classes={"pil": ViQImageProcessor, "torchvision": ViQImageProcessor},
)
