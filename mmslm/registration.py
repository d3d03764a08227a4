"""Tells transformers' Auto classes about mmslm: `AutoConfig`, `AutoTokenizer`, `AutoProcessor`, `AutoModelForImageTextToText`."""

from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

from mmslm.model.configuration import MMSLMConfig, MMSLMTextConfig, MMSLMVisionConfig
from mmslm.model.modeling import MMSLMForConditionalGeneration
from mmslm.processing import MMSLMImageProcessor, MMSLMProcessor
from mmslm.tokenizer import MMSLMTokenizer


def register() -> None:
    """Register the classes; a second call changes nothing."""
    for config in (MMSLMConfig, MMSLMTextConfig, MMSLMVisionConfig):
        AutoConfig.register(config.model_type, config, exist_ok=True)
    AutoTokenizer.register(MMSLMConfig, fast_tokenizer_class=MMSLMTokenizer, exist_ok=True)
    AutoImageProcessor.register(MMSLMConfig, image_processor_classes={"pil": MMSLMImageProcessor}, exist_ok=True)
    AutoProcessor.register(MMSLMConfig, MMSLMProcessor, exist_ok=True)
    AutoModelForImageTextToText.register(MMSLMConfig, MMSLMForConditionalGeneration, exist_ok=True)


__all__ = ["register"]
