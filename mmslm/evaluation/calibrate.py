"""Does a model's confidence mean what it says, and does a fitted curve make it better? Measured before anything is written.

Replies about held-out public scenes are split by picture: the first half fits the curve (`Calibration`), the second half
and photos of held-out households judge it. It is worth having only where both the calibration error and the Brier score
fall on *both* judging sets; a curve that helps on one and harms on the other is refused by `Verdict.better`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mmslm.data.scenes import household, public_photo
from mmslm.evaluation.calibration import Reliability, outcomes, reliability
from mmslm.evaluation.evaluate import evaluate
from mmslm.generation import Calibration, Narrator

BEYOND = 20_000_000  # photos and households that no recipe and no benchmark numbers
SIDE = 420  # pixels of one figure


@dataclass(frozen=True)
class Replies:
    """Raw confidences and whether each reply was right."""

    confidence: list[float]
    right: list[bool]


@dataclass(frozen=True)
class Judged:
    """One judging set before and after the curve."""

    name: str
    before: Reliability
    after: Reliability

    @property
    def better(self) -> bool:
        """Whether both the calibration error and the Brier score fell."""
        return self.after.ece < self.before.ece and self.after.brier < self.before.brier


@dataclass(frozen=True)
class Verdict:
    """The fitted curve, on how many replies it stands, and what it did to replies that it was not fitted on."""

    calibration: Calibration
    replies: int
    judged: tuple[Judged, ...]

    @property
    def better(self) -> bool:
        """Whether the curve is worth having: better on every judging set."""
        return all(each.better for each in self.judged)

    def to_json(self) -> dict[str, Any]:
        """For reliability.json."""
        sets = {j.name: {"before": j.before.to_json(), "after": j.after.to_json()} for j in self.judged}
        return {"curve": asdict(self.calibration), "fitted_on": self.replies, "better": self.better, "judged": sets}

    def to_text(self) -> str:
        """For a terminal."""
        curve = self.calibration
        lines = [
            f"curve: slope {curve.slope:.3f}, intercept {curve.intercept:+.3f}, fitted on {self.replies:,} replies"
        ]
        for each in self.judged:
            lines.append(
                f"{each.name}: {each.before.count:,} replies, calibration error {100 * each.before.ece:.1f} % -> "
                f"{100 * each.after.ece:.1f} %, Brier {each.before.brier:.4f} -> {each.after.brier:.4f}"
            )
        return "\n".join(lines)


def collect(
    narrator: Narrator, photos: Sequence[Any], size: int, progress: Callable[[int, int], None] | None = None
) -> Replies:
    """What the narrator answers about photos, and whether it is right: answers equal to the truth, captions that name
    nothing that is not there. Confidences are the model's own."""
    raw = Narrator(narrator.model, narrator.processor)
    found = evaluate(
        raw, photos, styles=("short", "detailed"), questions_per_photo=4, image_size=size, progress=progress, draws=10
    )
    answers, captions = outcomes(found, "answers"), outcomes(found, "captions")
    return Replies(answers[0] + captions[0], answers[1] + captions[1])


def judge(fitting: Replies, judging: dict[str, Replies]) -> Verdict:
    """Fit on one set of replies, judge on the others. Raises ValueError where the curve cannot be fitted."""
    curve = Calibration.fit(fitting.confidence, fitting.right)
    judged = tuple(
        Judged(
            name,
            reliability(replies.confidence, replies.right),
            reliability([curve(value) for value in replies.confidence], replies.right),
        )
        for name, replies in judging.items()
    )
    return Verdict(curve, len(fitting.right), judged)


def calibrate(
    narrator: Narrator, *, photos: int = 1200, households: int = 600, progress: Callable[[int, int], None] | None = None
) -> Verdict:
    """Fit on the first half of `photos` held-out public pictures; judge on the other half and on `households` photos of
    held-out households. Raises ValueError for too few."""
    if photos < 2 or households < 2:
        raise ValueError(f"photos is {photos} and households {households}; give at least 2 of each.")
    size = narrator.processor.image_size
    public = [public_photo(BEYOND + index) for index in range(photos)]
    homes = [household(BEYOND + index // 2).photo(index % 2) for index in range(households)]
    half = photos // 2
    return judge(
        collect(narrator, public[:half], size, progress),
        {
            "public scenes": collect(narrator, public[half:], size, progress),
            "households": collect(narrator, homes, size, progress),
        },
    )


def write(verdict: Verdict, folder: str | Path) -> list[Path]:
    """Write reliability.json and reliability.svg into a folder."""
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    table, figure = target / "reliability.json", target / "reliability.svg"
    table.write_text(json.dumps(verdict.to_json(), indent=1) + "\n", encoding="utf-8")
    figure.write_text(reliability_svg(verdict), encoding="utf-8")
    return [table, figure]


def reliability_svg(verdict: Verdict) -> str:
    """The reliability figure: for each judging set, said (across) against came true (up), before and after; the diagonal
    is honesty, a dot's area its replies."""
    width = SIDE * len(verdict.judged)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {SIDE}" width="{width}" height="{SIDE}" role="img" '
        'font-family="sans-serif" font-size="14"><title>Reliability: how often replies were right, by confidence</title>',
        f'<rect width="{width}" height="{SIDE}" fill="white"/>',
    ]
    for number, each in enumerate(verdict.judged):
        left, inner = number * SIDE + 50, SIDE - 100
        parts.append(f'<rect x="{left}" y="40" width="{inner}" height="{inner}" fill="none" stroke="#767676"/>')
        parts.append(
            f'<path d="M{left} {40 + inner}L{left + inner} 40" stroke="#767676" stroke-dasharray="4 4"/>'
            f'<text x="{left}" y="28">{each.name}</text>'
            f'<text x="{left}" y="{SIDE - 30}">confidence 0 to 1; up: share that was right</text>'
            f'<text x="{left}" y="{SIDE - 10}">before (squares) {100 * each.before.ece:.1f} %, '
            f"after (dots) {100 * each.after.ece:.1f} % off</text>"
        )
        for found, colour, shape in ((each.before, "#b35900", "square"), (each.after, "#005a9c", "dot")):
            for part in found.bins:
                x, y = left + part.confidence * inner, 40 + (1 - part.accuracy) * inner
                radius = 3 + 8 * (part.count / found.count) ** 0.5
                if shape == "dot":
                    parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}" fill="{colour}"/>')
                else:
                    parts.append(
                        f'<rect x="{x - radius:.1f}" y="{y - radius:.1f}" width="{2 * radius:.1f}" '
                        f'height="{2 * radius:.1f}" fill="none" stroke="{colour}" stroke-width="2"/>'
                    )
    return "".join([*parts, "</svg>\n"])


__all__ = ["Judged", "Replies", "Verdict", "calibrate", "collect", "judge", "reliability_svg", "write"]
