"""Generation for people: look once, ask often, stream, and say how sure."""

from mmslm.generation.cache import SlotCache, SumCache
from mmslm.generation.confidence import Calibration
from mmslm.generation.narrator import EncodedImage, Narrator, Piece, Reply

__all__ = [
    "Calibration",
    "EncodedImage",
    "Narrator",
    "Piece",
    "Reply",
    "SlotCache",
    "SumCache",
]
