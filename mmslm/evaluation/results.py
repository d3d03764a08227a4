"""What an evaluation found: a row per caption and per answer, and every number with its interval from those rows.

All metrics are functions of sums over owners, so that resampling owners is one matrix product and parts of an
evaluation (one style, some owners) are scored like the whole. It refuses JSON that lacks its rows.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmslm.evaluation.captions import bleu_from_counts
from mmslm.evaluation.hallucination import CaptionThings
from mmslm.evaluation.intervals import DRAWS, MIN_OWNERS, Interval, group_sums, owner_weights, percentile, ratio
from mmslm.evaluation.vqa import AnswerRow, Vqa, score_answers

Floats = NDArray[np.float64]

# What is reported, in this order: name, title, whether less is better.
METRICS: tuple[tuple[str, str, bool], ...] = (
    ("cider", "CIDEr", False),
    ("bleu_4", "BLEU-4", False),
    ("rouge_l", "ROUGE-L", False),
    ("recall", "Thing recall", False),
    ("private_recall", "Recall, private-only things", False),
    ("chair_i", "CHAIR_i (things invented)", True),
    ("chair_s", "CHAIR_s (captions that invent)", True),
    ("vqa_accuracy", "VQA accuracy", False),
)


@dataclass(frozen=True)
class CaptionRow:
    """One caption: what was said, what people would say, and its own scores.

    `bleu_counts` [10] are the caption's additive counts (see `mmslm.evaluation.captions.bleu_counts`); `mentioned` and
    `present` are None where nobody knows what the photo shows.
    """

    photo: str
    owner: str
    style: str
    caption: str
    references: tuple[str, ...]
    cider: float
    rouge_l: float
    bleu_counts: tuple[float, ...]
    mentioned: tuple[str, ...] | None
    present: tuple[str, ...] | None
    confidence: float | None = None

    @property
    def things(self) -> CaptionThings | None:
        if self.mentioned is None or self.present is None:
            return None
        return CaptionThings(self.mentioned, frozenset(self.present))


@dataclass(frozen=True)
class Evaluation:
    """All that was measured of one narrator. Fractions are 0 to 1, CIDEr is 0 to 10; None where nothing was there."""

    captions: tuple[CaptionRow, ...]
    answers: tuple[AnswerRow, ...]
    private_kinds: frozenset[str]
    n_photos: int
    n_owners: int
    seed: int = 0
    draws: int = DRAWS

    @property
    def scores(self) -> dict[str, float | None]:
        """Value of each metric in METRICS."""
        _, sums = self.statistics()
        totals = _metrics_of(sums.sum(0, keepdims=True))
        return {name: _finite(float(values[0])) for name, values in totals.items()}

    @property
    def intervals(self) -> dict[str, Interval | None]:
        """95 % intervals of the metrics, owners resampled; None with fewer than five owners."""
        return {name: percentile(values) if len(values) else None for name, values in self.resampled().items()}

    @property
    def vqa(self) -> Vqa:
        return score_answers(self.answers, draws=self.draws, seed=self.seed)

    def resampled(self) -> dict[str, Floats]:
        """Each metric on each of `draws` resamples of the owners: name -> [draws], empty with too few owners.

        Evaluations of the same owners use the same resamples, so differences of these arrays are paired.
        """
        owners, sums = self.statistics()
        if len(owners) < MIN_OWNERS:
            return {name: np.zeros(0) for name, _, _ in METRICS}
        return _metrics_of(owner_weights(len(owners), draws=self.draws, seed=self.seed) @ sums)

    def statistics(self) -> tuple[list[str], Floats]:
        """Sums that determine every metric: (sorted owners [G], sums [G, K]). Metrics are functions of their totals."""
        sums, owners = self.photo_sums()
        totals, names = group_sums(sums, owners)
        order = sorted(range(len(names)), key=lambda index: str(names[index]))
        return [str(names[index]) for index in order], totals[order]

    def photo_sums(self) -> tuple[Floats, list[str]]:
        """The same sums by photo [P, K], and the owner of each photo [P]."""
        rows = [_caption_sums(row, self.private_kinds) for row in self.captions]
        rows += [_answer_sums(row) for row in self.answers]
        photos = [(row.owner, row.photo) for row in self.captions] + [(row.owner, row.photo) for row in self.answers]
        sums, names = group_sums(np.array(rows, dtype=np.float64).reshape(len(rows), _COLUMNS), photos)
        return sums, [name[0] for name in names]

    @staticmethod
    def metrics_of(sums: Floats) -> dict[str, Floats]:
        """Every metric [...] from sums [..., K] of any photos; NaN where nothing was there to count."""
        return _metrics_of(sums)

    def of(self, *, style: str | None = None, owners: Collection[str] | None = None) -> Evaluation:
        """The part with one style of captions, or with some owners; CIDEr keeps the whole set's word weights."""
        captions = [
            row
            for row in self.captions
            if (style is None or row.style == style) and (owners is None or row.owner in owners)
        ]
        answers = [row for row in self.answers if owners is None or row.owner in owners]
        kept = {(row.owner, row.photo) for row in captions} | {(row.owner, row.photo) for row in answers}
        if not kept:
            raise ValueError(f"nothing of this evaluation has style {style!r} and these owners; ask for one it has")
        return Evaluation(
            tuple(captions),
            tuple(answers),
            self.private_kinds,
            n_photos=len(kept),
            n_owners=len({owner for owner, _ in kept}),
            seed=self.seed,
            draws=self.draws,
        )

    @property
    def styles(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(row.style for row in self.captions))

    def to_json(self, *, rows: bool = True) -> dict[str, Any]:
        """Everything as JSON values; without the rows, a page of numbers."""
        intervals = self.intervals
        result: dict[str, Any] = {
            "photos": self.n_photos,
            "owners": self.n_owners,
            "captions": len(self.captions),
            "answers": len(self.answers),
            "seed": self.seed,
            "metrics": {
                name: {"value": value, "interval": interval.to_json() if interval else None}
                for (name, value), interval in zip(self.scores.items(), intervals.values(), strict=True)
            },
            "by_style": {style: self.of(style=style).scores for style in self.styles},
            "vqa": self.vqa.to_json(),
        }
        for style_scores in result["by_style"].values():
            style_scores.pop("vqa_accuracy")  # questions have no style
        if rows:
            result["private_kinds"] = sorted(self.private_kinds)
            result["rows"] = {
                "captions": [asdict(row) for row in self.captions],
                "answers": [asdict(row) | {"correct": row.correct} for row in self.answers],
            }
        return result

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Evaluation:
        """The evaluation back from `to_json(rows=True)`; ValueError where rows are missing or incomplete."""
        try:
            captions = tuple(_caption_row(row) for row in data["rows"]["captions"])
            answers = tuple(
                AnswerRow(**{key: value for key, value in row.items() if key != "correct"})
                for row in data["rows"]["answers"]
            )
            return cls(
                captions,
                answers,
                frozenset(data["private_kinds"]),
                n_photos=int(data["photos"]),
                n_owners=int(data["owners"]),
                seed=int(data["seed"]),
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"this JSON lacks {error} of an evaluation; write it with to_json(rows=True)") from error


# Columns of the per-owner sums. Each ratio metric has a numerator and a denominator; BLEU has its ten counts.
_RATIOS = ("cider", "rouge_l", "recall", "private_recall", "chair_i", "chair_s", "vqa_accuracy")
_BLEU_AT = 2 * len(_RATIOS)
_COLUMNS = _BLEU_AT + 10


def _caption_sums(row: CaptionRow, private: frozenset[str]) -> list[float]:
    sums = dict.fromkeys(_RATIOS, (0.0, 0.0))
    sums["cider"], sums["rouge_l"] = (row.cider, 1.0), (row.rouge_l, 1.0)
    account = row.things
    if account is not None:
        sums["recall"] = (len(account.found), len(account.present))
        sums["private_recall"] = (len(account.found & private), len(account.present & private))
        sums["chair_i"] = (len(account.hallucinated), len(account.mentioned))
        sums["chair_s"] = (float(bool(account.hallucinated)), 1.0)
    return [value for name in _RATIOS for value in sums[name]] + list(row.bleu_counts)


def _answer_sums(row: AnswerRow) -> list[float]:
    sums = [0.0] * _COLUMNS
    place = 2 * _RATIOS.index("vqa_accuracy")
    sums[place : place + 2] = float(row.correct), 1.0
    return sums


def _metrics_of(sums: Floats) -> dict[str, Floats]:
    """Metrics [...] from summed columns [..., K], in the order of METRICS."""
    values = {name: ratio(sums[..., 2 * place : 2 * place + 2]) for place, name in enumerate(_RATIOS)}
    fourth = bleu_from_counts(sums[..., _BLEU_AT:])[..., 3]
    values["bleu_4"] = np.where(sums[..., -1] > 0, fourth, np.nan)
    return {name: values[name] for name, _, _ in METRICS}


def _caption_row(data: Mapping[str, Any]) -> CaptionRow:
    listed = {"references", "bleu_counts", "mentioned", "present"}
    fields: dict[str, Any] = {k: tuple(v) if k in listed and v is not None else v for k, v in data.items()}
    return CaptionRow(**fields)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
