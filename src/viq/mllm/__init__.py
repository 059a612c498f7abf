"""Language models on codes: load one, ask it about images, caption a store.

Importing this registers the classes with transformers, so that `AutoConfig`, `AutoProcessor` and
`AutoModelForImageTextToText` know them, and `AutoModel` and `AutoImageProcessor` the tokenizer;
transformers by itself does not know the model types `viq` and `viq_tokenizer`.
"""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoProcessor,
)

# Not from transformers itself: release 5.17 has a stand-in there where torchvision is missing.
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from viq.mllm.chat import answer_store, ask, look, sampling
from viq.mllm.collator import CodesCollator
from viq.mllm.image_processing import ViQImageProcessor
from viq.mllm.loading import MODEL, assemble, load_mllm, make_processor
from viq.mllm.modeling import ViQConfig, ViQForConditionalGeneration, ViQModel
from viq.mllm.processing import ViQProcessor
from viq.mllm.tokenizer_model import ViQTokenizerConfig, ViQTokenizerModel

__all__ = [
    "MODEL",
    "CodesCollator",
    "ViQConfig",
    "ViQForConditionalGeneration",
    "ViQImageProcessor",
    "ViQModel",
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
AutoModel.register(ViQConfig, ViQModel)
AutoModelForCausalLM.register(ViQConfig, ViQForConditionalGeneration)  # where TRL looks
AutoModelForMultimodalLM.register(ViQConfig, ViQForConditionalGeneration)
AutoModelForImageTextToText.register(ViQConfig, ViQForConditionalGeneration)
AutoProcessor.register(ViQConfig, ViQProcessor)
AutoImageProcessor.register(
    ViQConfig, image_processor_classes={"pil": ViQImageProcessor, "torchvision": ViQImageProcessor}
)

AutoConfig.register(ViQTokenizerConfig.model_type, ViQTokenizerConfig)
AutoModel.register(ViQTokenizerConfig, ViQTokenizerModel)
AutoImageProcessor.register(
    ViQTokenizerConfig,
    image_processor_classes={"pil": ViQImageProcessor, "torchvision": ViQImageProcessor},
)
