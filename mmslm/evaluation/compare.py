"""Before, after and the ceiling side by side: what training bought, and how much of what could be had.

The gap closed is (after - before) / (ceiling - before), the ceiling being the same training without privacy; 100 %
means that privacy cost nothing. Changes and gaps are paired: all three models are scored on the same photos and
questions, and resampled over the same owners, so that what a hard photo does to all of them cancels.

It refuses evaluations of different photos, styles or questions, and states no gap where before and ceiling cannot be
told apart (a ratio over noise means nothing).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmslm.evaluation.intervals import Interval, percentile
from mmslm.evaluation.results import METRICS, Evaluation


@dataclass(frozen=True)
class Change:
    """One metric's line. `gain` is positive when the model got better, whichever way the metric points.

    `verdict` is "better", "worse", "no clear change" (the interval of the change holds 0) or "unknown" (no interval).
    """

    name: str
    title: str
    less_is_better: bool
    before: float | None
    after: float | None
    ceiling: float | None
    change: float | None
    change_interval: Interval | None
    gap_closed: float | None
    gap_interval: Interval | None
    verdict: str

    def to_json(self) -> dict[str, Any]:
        data = dict(self.__dict__)
        for key in ("change_interval", "gap_interval"):
            data[key] = data[key].to_json() if data[key] else None
        return data


@dataclass(frozen=True)
class Comparison:
    """All lines, and on how much they stand."""

    changes: tuple[Change, ...]
    n_photos: int
    n_owners: int
    has_ceiling: bool

    def __getitem__(self, name: str) -> Change:
        for change in self.changes:
            if change.name == name:
                return change
        raise KeyError(f"there is no metric {name!r}; choose from {[change.name for change in self.changes]}")

    def to_json(self) -> dict[str, Any]:
        metrics = {change.name: change.to_json() for change in self.changes}
        return {"photos": self.n_photos, "owners": self.n_owners, "metrics": metrics}

    def to_text(self) -> str:
        """An aligned table for a terminal, at most 100 columns wide."""
        header, rows = self._cells()
        widths = [max(len(line[column]) for line in (header, *rows)) for column in range(len(header))]
        lines = [_aligned(header, widths), "  ".join("-" * width for width in widths)]
        lines += [_aligned(row, widths) for row in rows]
        return "\n".join([*lines, "", self._footnote()])

    def to_markdown(self) -> str:
        """The same table in Markdown."""
        header, rows = self._cells()
        rule = ["---"] + ["---:"] * (len(header) - 1)
        table = "\n".join("| " + " | ".join(line) + " |" for line in (header, rule, *rows))
        return f"{table}\n\n{self._footnote()}"

    def _cells(self) -> tuple[list[str], list[list[str]]]:
        header = ["", "before", "after", "change (95 %)"]
        if self.has_ceiling:
            header = ["", "before", "after", "ceiling", "change (95 %)", "gap closed (95 %)"]
        rows = []
        for line in self.changes:
            if line.before is None and line.after is None and line.ceiling is None:
                continue
            row = [line.title, _value(line.name, line.before), _value(line.name, line.after)]
            if self.has_ceiling:
                row.append(_value(line.name, line.ceiling))
            row.append(_change(line))
            if self.has_ceiling:
                row.append(_gap(line))
            rows.append(row)
        return header, rows

    def _footnote(self) -> str:
        note = f"{self.n_photos:,} photos of {self.n_owners:,} owners; intervals resample owners."
        if any(line.change is not None and line.change_interval is None for line in self.changes):
            note = f"{self.n_photos:,} photos of {self.n_owners:,} owners: too few owners for intervals."
        return note + " Of the CHAIR rows less is better."


def compare(before: Evaluation, after: Evaluation, ceiling: Evaluation | None = None) -> Comparison:
    """Sets two or three evaluations of the same photos side by side."""
    _check_same(before, after, "after")
    if ceiling is not None:
        _check_same(before, ceiling, "ceiling")
    samples = [None if item is None else item.resampled() for item in (before, after, ceiling)]
    values = [None if item is None else item.scores for item in (before, after, ceiling)]
    changes = []
    for name, title, less in METRICS:
        first, second, third = (None if found is None else found[name] for found in values)
        draws = [None if drawn is None or not len(drawn[name]) else drawn[name] for drawn in samples]
        change = None if first is None or second is None else second - first
        change_interval = None
        if draws[0] is not None and draws[1] is not None and change is not None:
            change_interval = percentile(draws[1] - draws[0])
        gap, gap_interval = _gap_closed((first, second, third), draws)
        verdict = _verdict(change_interval, less)
        changes.append(
            Change(name, title, less, first, second, third, change, change_interval, gap, gap_interval, verdict)
        )
    return Comparison(tuple(changes), before.n_photos, before.n_owners, ceiling is not None)


def _gap_closed(
    values: tuple[float | None, float | None, float | None], draws: Sequence[Any]
) -> tuple[float | None, Interval | None]:
    first, second, third = values
    if first is None or second is None or third is None or third == first:
        return None, None
    closed = (second - first) / (third - first)
    if any(drawn is None for drawn in draws):
        return closed, None
    width = percentile(draws[2] - draws[0])
    if width is None or width.low <= 0 <= width.high:
        return None, None
    with np.errstate(divide="ignore", invalid="ignore"):
        return closed, percentile((draws[1] - draws[0]) / (draws[2] - draws[0]))


def _verdict(interval: Interval | None, less: bool) -> str:
    if interval is None:
        return "unknown"
    if interval.low <= 0 <= interval.high:
        return "no clear change"
    return "better" if (interval.low > 0) != less else "worse"


def _check_same(first: Evaluation, other: Evaluation, name: str) -> None:
    def asked(item: Evaluation) -> tuple[set[Any], set[Any]]:
        captions = {(row.owner, row.photo, row.style, row.references) for row in item.captions}
        return captions, {(row.owner, row.photo, row.question, row.expected) for row in item.answers}

    if asked(first) != asked(other):
        raise ValueError(
            f"the evaluation {name!r} is of other photos, styles or questions than 'before'; "
            "evaluate all models on the same photos with the same seed"
        )
    if (first.seed, first.draws) != (other.seed, other.draws):
        raise ValueError(f"the evaluation {name!r} resamples with another seed or count than 'before'; use the same")


def _value(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if name == "cider" else f"{100 * value:.1f} %"


def _change(line: Change) -> str:
    if line.change is None:
        return "-"
    scale, digits = (1, 2) if line.name == "cider" else (100, 1)
    text = f"{scale * line.change:+.{digits}f}"
    if line.change_interval is None:
        return text
    low, high = scale * line.change_interval.low, scale * line.change_interval.high
    return f"{text} [{low:+.{digits}f}, {high:+.{digits}f}]"


def _gap(line: Change) -> str:
    if line.gap_closed is None:
        return "no clear gap" if line.before is not None and line.ceiling is not None else "-"
    text = f"{100 * line.gap_closed:.0f} %"
    if line.gap_interval is None:
        return text
    return f"{text} [{100 * line.gap_interval.low:.0f}, {100 * line.gap_interval.high:.0f}]"


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *rest = [
        cell.ljust(width) if column == 0 else cell.rjust(width)
        for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]
    return "  ".join([first, *rest]).rstrip()
