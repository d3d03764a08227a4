"""mmslm: small vision-language models, trained privately and federated, served on one's own machine.

Importing this package is cheap: torch and transformers are loaded on the first use of a model name, and only then are
the classes registered with transformers, so that `AutoConfig`, `AutoProcessor` and `AutoModelForImageTextToText` load a
model directory without `trust_remote_code`. Call `mmslm.register()` where only transformers' Auto classes are used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmslm.model import MMSLMConfig, MMSLMForConditionalGeneration
    from mmslm.processing import MMSLMImageProcessor, MMSLMProcessor
    from mmslm.tokenizer import MMSLMTokenizer

__version__ = "0.1.0"

_LAZY = {
    "MMSLMConfig": "mmslm.model",
    "MMSLMForConditionalGeneration": "mmslm.model",
    "MMSLMImageProcessor": "mmslm.processing",
    "MMSLMProcessor": "mmslm.processing",
    "MMSLMTokenizer": "mmslm.tokenizer",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'mmslm' has no attribute {name!r}")
    register()
    return getattr(import_module(_LAZY[name]), name)


def register() -> None:
    """Make transformers' Auto classes know mmslm. Safe to call more than once."""
    import_module("mmslm.registration").register()


__all__ = [
    "MMSLMConfig",
    "MMSLMForConditionalGeneration",
    "MMSLMImageProcessor",
    "MMSLMProcessor",
    "MMSLMTokenizer",
    "register",
]
