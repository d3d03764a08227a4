"""The one error of the protocol: a message that must not be believed, or a session that cannot go on."""

from __future__ import annotations


class SecureAggregationError(ValueError):
    """Says whose message, at which stage, and what was wrong. Nothing secret is in it."""
