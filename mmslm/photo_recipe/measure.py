"""Scores of captions with intervals, beside those of the floors, as numbers and as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmslm.evaluation.captions import bleu_counts, bleu_from_counts, cider, rouge_l
from mmslm.evaluation.intervals import owner_weights, percentile
from mmslm.evaluation.tokens import tokenise

SHOWN = ("CIDEr", "BLEU-4", "ROUGE-L")


def measure(said: Sequence[str], references: Sequence[Sequence[str]], seed: int = 0) -> dict[str, Any]:
    """CIDEr (0 to 10), BLEU-1..4 and ROUGE-L (0 to 1) as the official scorer has them, each with its 95 % interval.

    Intervals resample photos; document frequencies stay those of all references.
    """
    words = [tokenise(text) for text in said]
    cited = [[tokenise(text) for text in texts] for texts in references]
    draws = owner_weights(len(said), seed=seed)
    found: dict[str, Any] = {}
    for name, values in (("CIDEr", cider(words, cited)), ("ROUGE-L", rouge_l(words, cited))):
        found[name] = _entry(float(values.mean()), draws @ values / len(said))
    counts = bleu_counts(words, cited)
    whole, resampled = bleu_from_counts(counts.sum(0)), bleu_from_counts(draws @ counts)
    for order in range(4):
        found[f"BLEU-{order + 1}"] = _entry(float(whole[order]), resampled[:, order])
    return found


def _entry(value: float, resampled: Any) -> dict[str, Any]:
    interval = percentile(np.asarray(resampled))
    return {"value": value, "interval": None if interval is None else interval.to_json()}


def as_table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Plain text: one line per way of captioning."""
    width = max(len(name) for name in rows)
    lines = [" " * width + "".join(f"{name:>22}" for name in SHOWN)]
    for name, scores in rows.items():
        cells = []
        for metric in SHOWN:
            value, interval = scores[metric]["value"], scores[metric]["interval"]
            within = f" [{interval['low']:.2f}, {interval['high']:.2f}]" if interval else ""
            cells.append(f"{value:.3f}{within}".rjust(22))
        lines.append(name.ljust(width) + "".join(cells))
    return "\n".join(lines)


__all__ = ["as_table", "measure"]
