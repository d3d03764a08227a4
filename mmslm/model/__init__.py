"""The model: configuration, language model, image front end, experts, losses."""

from mmslm.model.configuration import MMSLMConfig, MMSLMTextConfig, MMSLMVisionConfig
from mmslm.model.describe import describe, describe_text
from mmslm.model.losses import per_sample_loss
from mmslm.model.modeling import MMSLMForConditionalGeneration, MMSLMModel, MMSLMOutput
from mmslm.model.tiers import load_tier

__all__ = [
    "MMSLMConfig",
    "MMSLMForConditionalGeneration",
    "MMSLMModel",
    "MMSLMOutput",
    "MMSLMTextConfig",
    "MMSLMVisionConfig",
    "describe",
    "describe_text",
    "load_tier",
    "per_sample_loss",
]
