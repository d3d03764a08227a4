"""Does a caption name what is there (recall), and only what is there (CHAIR)?

CHAIR (Rohrbach et al., Object Hallucination in Image Captioning, EMNLP 2018): CHAIR_i is the share of things named that
are not in the picture, CHAIR_s the share of captions that name at least one such thing. Recall is the share of the
picture's things that the caption names. An empty caption hallucinates nothing and recalls nothing: read both together.

What a text names and what a picture shows come from a `Things` object: the embedded scenes know both exactly
(`SceneThings`), COCO photos by the benchmark's synonym list (`mmslm.evaluation.coco_things`). A thing named twice in a
caption counts as often as the `Things` object reports it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from mmslm.data.photo import Photo


class Things(Protocol):
    """Knows which things a text names and which a photo shows, in the same vocabulary of kinds."""

    def mentions(self, caption: str) -> Sequence[str]:
        """The kinds that the caption names, in order."""
        ...

    def present(self, photo: Photo) -> frozenset[str] | None:
        """The kinds in the photo, or None where nobody knows."""
        ...


class SceneThings:
    """Things of the embedded scenes: exact truth, and the lexicon that wrote the captions reads them back."""

    def mentions(self, caption: str) -> Sequence[str]:
        from mmslm.data.scenes.lexicon import mentioned_kinds

        return sorted(mentioned_kinds(caption))

    def present(self, photo: Photo) -> frozenset[str] | None:
        # A scene as composed has the kinds of its measured truth, which costs a drawing.
        scene = getattr(photo, "scene", None) or photo.truth
        return None if scene is None else frozenset(scene.kinds)


@dataclass(frozen=True)
class CaptionThings:
    """One caption's account: things named, things there; what was invented and what was missed follows."""

    mentioned: tuple[str, ...]
    present: frozenset[str]

    @property
    def hallucinated(self) -> tuple[str, ...]:
        return tuple(kind for kind in self.mentioned if kind not in self.present)

    @property
    def found(self) -> frozenset[str]:
        return self.present & frozenset(self.mentioned)

    @property
    def missed(self) -> frozenset[str]:
        return self.present - frozenset(self.mentioned)


@dataclass(frozen=True)
class Hallucination:
    """CHAIR and recall of a set of captions; each is None where its denominator is 0 (nothing was named, or there)."""

    chair_i: float | None
    chair_s: float | None
    recall: float | None
    captions: tuple[CaptionThings, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "chair_i": self.chair_i,
            "chair_s": self.chair_s,
            "recall": self.recall,
            "captions": len(self.captions),
            "mentions": sum(len(row.mentioned) for row in self.captions),
            "hallucinated": sum(len(row.hallucinated) for row in self.captions),
        }


def hallucination(accounts: Sequence[CaptionThings], *, only: Collection[str] | None = None) -> Hallucination:
    """CHAIR_i, CHAIR_s and recall over captions; with `only`, of those kinds alone (say, the private-only kinds)."""
    rows = tuple(accounts if only is None else (_restricted(row, frozenset(only)) for row in accounts))
    mentions = sum(len(row.mentioned) for row in rows)
    invented = sum(len(row.hallucinated) for row in rows)
    there = sum(len(row.present) for row in rows)
    found = sum(len(row.found) for row in rows)
    return Hallucination(
        chair_i=invented / mentions if mentions else None,
        chair_s=sum(bool(row.hallucinated) for row in rows) / len(rows) if rows else None,
        recall=found / there if there else None,
        captions=rows,
    )


def _restricted(row: CaptionThings, only: frozenset[str]) -> CaptionThings:
    return CaptionThings(tuple(kind for kind in row.mentioned if kind in only), row.present & only)
