"""Whom the model serves worst: scores per group of owners, the worst tenth beside the mean.

A mean hides the home where the model fails. The worst tenth of groups shows it, but also shows mere bad luck: with few
photos of each, somebody must come last. So the same is computed after photos were dealt to the groups at random many
times; only what lies below that is a difference between groups. (Worst-group performance: Sagawa et al., ICLR 2020; the
random deal is a permutation test.)

It refuses fewer than ten groups, of which there is no tenth.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmslm.evaluation.results import METRICS, Evaluation

Floats = NDArray[np.float64]

LEAST_GROUPS = 10
DEALS = 500


@dataclass(frozen=True)
class GroupScores:
    """One metric over groups.

    `mean` weighs groups alike. `worst_tenth` is the mean of the worst tenth of groups, `by_chance` what that is when
    groups differ only by luck, and `p_value` how often luck alone is as bad. `worst` names the worst group.
    """

    name: str
    title: str
    groups: int
    mean: float
    worst_tenth: float
    by_chance: float
    p_value: float
    worst: str

    @property
    def fair(self) -> bool:
        """Whether the worst tenth is no worse than luck explains (at 5 %)."""
        return self.p_value > 0.05

    def to_json(self) -> dict[str, Any]:
        return {**self.__dict__, "fair": self.fair}


def group_scores(
    evaluation: Evaluation,
    groups: Mapping[str, str] | None = None,
    *,
    metrics: tuple[str, ...] = ("cider", "recall", "chair_i", "vqa_accuracy"),
    deals: int = DEALS,
    seed: int = 0,
) -> dict[str, GroupScores]:
    """Scores of `metrics` by group. `groups` maps owners to groups (each owner its own by default).

    Groups in which a metric cannot be computed (no things named, say) are left out of that metric; a metric left with
    fewer than ten groups is left out of the result.
    """
    titles = {name: (title, less) for name, title, less in METRICS}
    unknown = [name for name in metrics if name not in titles]
    if unknown:
        raise ValueError(f"there is no metric {unknown[0]!r}; choose from {list(titles)}")
    sums, owners = evaluation.photo_sums()
    if groups is not None:
        missing = sorted(set(owners) - set(groups))
        if missing:
            raise ValueError(f"owner {missing[0]!r} has no group; give every evaluated owner one")
        owners = [groups[owner] for owner in owners]
    names = sorted(set(owners))
    if len(names) < LEAST_GROUPS:
        raise ValueError(f"{len(names)} groups were given; a worst tenth needs at least {LEAST_GROUPS}")
    member = np.array([names.index(owner) for owner in owners])

    def by_group(who: NDArray[np.int64]) -> dict[str, Floats]:
        totals = np.zeros((len(names), sums.shape[1]))
        np.add.at(totals, who, sums)
        return evaluation.metrics_of(totals)

    real = by_group(member)
    rng = np.random.default_rng(seed)
    dealt = [by_group(rng.permutation(member)) for _ in range(deals)]
    result = {}
    for name in metrics:
        title, less = titles[name]
        values = real[name]
        known = np.flatnonzero(np.isfinite(values))
        if len(known) < LEAST_GROUPS:
            continue
        worst = _worst_tenth(values, less)
        chance = np.array([_worst_tenth(each[name], less) for each in dealt])
        chance = chance[np.isfinite(chance)]
        as_bad = (chance >= worst - 1e-12) if less else (chance <= worst + 1e-12)
        last = known[np.argmax(values[known]) if less else np.argmin(values[known])]
        result[name] = GroupScores(
            name=name,
            title=title,
            groups=len(known),
            mean=float(values[known].mean()),
            worst_tenth=worst,
            by_chance=float(chance.mean()) if len(chance) else float("nan"),
            # The real deal counts as one of the deals, so that the p-value is never 0.
            p_value=float((1 + as_bad.sum()) / (1 + len(chance))),
            worst=names[last],
        )
    return result


def bias_text(scores: Mapping[str, GroupScores]) -> str:
    """The table for a terminal."""
    lines = [f"{'':32}{'mean':>8}{'worst tenth':>13}{'by chance':>11}   verdict"]
    for each in scores.values():
        scale, unit, digits = (1, "", 2) if each.name == "cider" else (100, " %", 1)
        cells = [f"{scale * value:.{digits}f}{unit}" for value in (each.mean, each.worst_tenth, each.by_chance)]
        verdict = "luck explains it" if each.fair else f"some are served worse (first: {each.worst})"
        lines.append(f"{each.title:32}{cells[0]:>8}{cells[1]:>13}{cells[2]:>11}   {verdict}")
    return "\n".join(lines)


def _worst_tenth(values: Floats, less_is_better: bool) -> float:
    ranked = np.sort(values[np.isfinite(values)])
    if not len(ranked):
        return float("nan")
    count = max(1, len(ranked) // 10)
    return float((ranked[-count:] if less_is_better else ranked[:count]).mean())
