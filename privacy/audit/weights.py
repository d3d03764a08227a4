"""What a safetensors file says of itself: how many steps its weights have seen. Only its header is read.

Refuses nothing: a file that is damaged, too long in its header, or silent about steps says None.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Final

from privacy.canonical import UnreadableError, open_regular, parse_json

STEP_KEYS: Final = ("rounds_done", "optimizer_steps", "optimiser_steps", "steps")
_MOST_HEADER: Final = 8 << 20


def steps_of_weights(path: Path) -> int | None:
    """The steps (rounds) that the file's metadata states, or None."""
    try:
        descriptor = open_regular(path)
    except UnreadableError:
        return None
    try:
        (length,) = struct.unpack("<Q", os.read(descriptor, 8))
        if not 2 <= length <= _MOST_HEADER:
            return None
        header = parse_json(os.read(descriptor, length))
    except (OSError, struct.error, UnreadableError):
        return None
    finally:
        os.close(descriptor)
    metadata = header.get("__metadata__") if isinstance(header, dict) else None
    if not isinstance(metadata, dict):
        return None
    for key in STEP_KEYS:
        value = metadata.get(key)
        if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 16:
            return int(value)
    return None
