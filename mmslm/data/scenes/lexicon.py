"""The words for things: what the grammar may say, and which kinds a text mentions (for recall and hallucination)."""

from __future__ import annotations

import re
from functools import lru_cache

from mmslm.data.scenes.catalogue import KINDS
from mmslm.data.scenes.truth import Scene

SYNONYMS: dict[str, tuple[str, ...]] = {
    name: tuple(dict.fromkeys(word for form in kind.forms for word in form)) for name, kind in KINDS.items()
}
SYNONYMS["medicine bottle"] += ("medicine", "medicines", "pills")
"""Kind -> every word or phrase for it, singular and plural."""


@lru_cache(maxsize=1)
def _pattern() -> tuple[re.Pattern[str], dict[str, str]]:
    owner = {phrase: kind for kind, phrases in SYNONYMS.items() for phrase in phrases}
    longest_first = sorted(owner, key=len, reverse=True)
    return re.compile(r"(?<![\w'])(?:" + "|".join(map(re.escape, longest_first)) + r")(?![\w'])"), owner


def mentioned_kinds(text: str) -> set[str]:
    """The kinds that a text names. The longest phrase wins ("medicine bottle" is no bottle); what stands in double
    quotes is printed text and names nothing."""
    pattern, owner = _pattern()
    plain = " ".join(re.sub(r'"[^"]*"', " | ", text.lower()).split())
    return {owner[match.group()] for match in pattern.finditer(plain)}


def present_kinds(scene: Scene) -> set[str]:
    """The kinds that are truly there; scenery such as wall, floor, sky or road never counts."""
    return set(scene.kinds)
