"""Scores of answers to questions: accuracy with the usual normalisation, by kind, and the balance of yes and no.

Normalisation follows the VQA benchmark (Antol et al., VQA, ICCV 2015): lower case, punctuation, articles and the
apostrophes of contractions do not count, number words equal digits. Yes/no questions are read as POPE reads them (Li et
al., Evaluating Object Hallucination in Large Vision-Language Models, EMNLP 2023), with the share of "yes" beside the
accuracy: a model that says yes to everything looks good on an unbalanced set and 50 % on a balanced one.

An answer that is neither yes nor no counts as wrong and is reported as unreadable; it is never guessed at.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmslm.evaluation.intervals import DRAWS, Interval, ratio_interval

_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_NUMBERS = {word: str(value) for value, word in enumerate(_WORDS)} | {"none": "0"}
_ARTICLES = frozenset({"a", "an", "the"})
_DECIMAL = re.compile(r"(?<=\d),(?=\d{3}\b)")
# Full stops and colons inside a number belong to it (2.5, 10:30), everywhere else they end something.
_PUNCTUATION = re.compile(r"(?<!\d)[.:]|[.:](?!\d)|[^\w\s.:'’-]|(?<!\w)-|-(?!\w)")


@dataclass(frozen=True)
class AnswerRow:
    """One question as it was asked and answered. `given` is what the model said, `expected` the true answer."""

    photo: str
    owner: str
    kind: str
    question: str
    expected: str
    given: str
    confidence: float | None = None

    @property
    def correct(self) -> bool:
        expected = normalise_answer(self.expected)
        if expected in ("yes", "no"):
            return read_yes_no(self.given) == expected
        return normalise_answer(self.given) == expected


@dataclass(frozen=True)
class YesNo:
    """Balance of the questions whose answer is yes or no. Precision, recall and F1 are of the answer "yes"."""

    count: int
    accuracy: float
    yes_expected: float
    yes_given: float
    unreadable: float
    precision: float | None
    recall: float | None
    f1: float | None

    def to_json(self) -> dict[str, Any]:
        return dict(self.__dict__)


@dataclass(frozen=True)
class Vqa:
    """Accuracy overall and by kind of question, with the count of each and intervals over owners.

    `best_constant` is what a blind reply gets that always gives the kind's most frequent answer: accuracy counts from
    there, not from 0.
    """

    count: int
    accuracy: float | None
    interval: Interval | None
    by_kind: dict[str, float]
    counts: dict[str, int]
    best_constant: dict[str, float]
    yes_no: YesNo | None

    def to_json(self) -> dict[str, Any]:
        return {
            "count": self.count,
            "accuracy": self.accuracy,
            "interval": self.interval.to_json() if self.interval else None,
            "by_kind": self.by_kind,
            "counts": self.counts,
            "best_constant": self.best_constant,
            "yes_no": self.yes_no.to_json() if self.yes_no else None,
        }


def normalise_answer(text: str) -> str:
    """The form in which answers are compared: `"The Two cups."` -> `"2 cups"`, `"don't"` -> `"dont"`."""
    text = _DECIMAL.sub("", text.lower().strip())
    text = _PUNCTUATION.sub(" ", text).replace("'", "").replace("’", "")
    words = [_NUMBERS.get(word, word) for word in text.split()]
    # An answer that is nothing but an article (the letter on a sign) stays, or an empty reply would equal it.
    return " ".join([word for word in words if word not in _ARTICLES] or words)


def read_yes_no(text: str) -> str | None:
    """ "yes" or "no" where the reply begins with it (`"No, there is none."`), None where it does not."""
    words = re.findall(r"[^\W\d_]+", text.lower())
    if words and words[0] in ("yes", "no"):
        return words[0]
    return None


def score_answers(rows: Sequence[AnswerRow], *, draws: int = DRAWS, seed: int = 0) -> Vqa:
    """Accuracy of answers. No rows give a count of 0 and None for what cannot be known."""
    correct = np.array([row.correct for row in rows], dtype=np.float64)
    kinds = sorted({row.kind for row in rows})
    counts = {kind: sum(row.kind == kind for row in rows) for kind in kinds}
    interval = None
    if rows:
        interval = ratio_interval(correct, np.ones(len(rows)), [row.owner for row in rows], draws=draws, seed=seed)
    return Vqa(
        count=len(rows),
        accuracy=float(correct.mean()) if rows else None,
        interval=interval,
        by_kind={kind: float(np.mean([row.correct for row in rows if row.kind == kind])) for kind in kinds},
        counts=counts,
        best_constant={kind: _most_frequent(rows, kind) / counts[kind] for kind in kinds},
        yes_no=yes_no_balance(rows),
    )


def _most_frequent(rows: Sequence[AnswerRow], kind: str) -> int:
    return Counter(normalise_answer(row.expected) for row in rows if row.kind == kind).most_common(1)[0][1]


def yes_no_balance(rows: Sequence[AnswerRow]) -> YesNo | None:
    """The yes/no questions among `rows`, POPE style; None where there are none."""
    pairs = [(normalise_answer(row.expected), read_yes_no(row.given)) for row in rows]
    pairs = [(expected, given) for expected, given in pairs if expected in ("yes", "no")]
    if not pairs:
        return None
    hits = sum(expected == given == "yes" for expected, given in pairs)
    yes_expected = sum(expected == "yes" for expected, _ in pairs)
    yes_given = sum(given == "yes" for _, given in pairs)
    precision = hits / yes_given if yes_given else None
    recall = hits / yes_expected if yes_expected else None
    return YesNo(
        count=len(pairs),
        accuracy=sum(expected == given for expected, given in pairs) / len(pairs),
        yes_expected=yes_expected / len(pairs),
        yes_given=yes_given / len(pairs),
        unreadable=sum(given is None for _, given in pairs) / len(pairs),
        precision=precision,
        recall=recall,
        f1=2 * hits / (yes_given + yes_expected) if yes_given + yes_expected else None,
    )
