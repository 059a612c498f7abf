"""What tests of the multimodal model share beside `tiny_mllm`."""

from viq.mllm.chat import ViQForConditionalGeneration, ViQProcessor
from viq.models.tokenizer.tokenizer import VisualTokenizer

Parts = tuple[ViQForConditionalGeneration, ViQProcessor, VisualTokenizer]


def said(*texts: str) -> list[dict[str, str]]:
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]
