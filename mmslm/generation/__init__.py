"""Generation for people: look once, ask often, stream, and say how sure."""

from mmslm.generation.cache import SlotCache
from mmslm.generation.confidence import Calibration, ReliabilityBin, calibration_error, reliability, wording
from mmslm.generation.narrator import EncodedImage, Narrator, Piece, Reply

__all__ = [
    "Calibration",
    "EncodedImage",
    "Narrator",
    "Piece",
    "ReliabilityBin",
    "Reply",
    "SlotCache",
    "calibration_error",
    "reliability",
    "wording",
]
