"""``--set KEY=VALUE``, for every command that reads a YAML."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def overrides(pairs: Sequence[str]) -> dict[str, Any]:
    """``--set federated.rounds=3`` as a mapping; values are read as YAML, so numbers are numbers."""
    import yaml

    found: dict[str, Any] = {}
    for pair in pairs:
        key, sign, value = pair.partition("=")
        if not sign or not key:
            raise ValueError(f"--set got {pair!r}; write it as key=value, for example federated.rounds=3.")
        try:
            found[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise ValueError(f"--set {key}: {value!r} is not a YAML value; put it in quotes.") from None
    return found
