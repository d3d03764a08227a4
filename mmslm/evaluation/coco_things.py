"""Things in COCO photos and captions, after the CHAIR benchmark's synonym list.

The list (one line per COCO category: its name, then words that mean it) comes from a file that the caller names; it is
not part of the package. As in the benchmark a photo shows what its object annotations say and, too, what people named
in its reference captions, and words inside other words do not count: "baby elephant" is no person, "train track" no
train, "home plate" no plate.

Own reading of plurals: a word is made singular only when that makes it a word of the list, so there is no dictionary
and no guess. It inherits the list's known blind spots ("orange" is always the fruit).
It refuses a file that is no such list.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from mmslm.data.photo import Photo
from mmslm.evaluation.tokens import tokenise

_IRREGULAR = {
    "men": "man",
    "women": "woman",
    "people": "people",
    "geese": "goose",
    "mice": "mouse",
    "oxen": "ox",
    "policemen": "policeman",
    "firemen": "fireman",
    "servicemen": "serviceman",
    "feet": "foot",
}
_ANIMALS = ("bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe")
_VEHICLES = ("bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat")
# Words before a thing that would otherwise be read as a person.
_BEFORE_ANIMAL = frozenset({"baby", "adult", "male", "female"})
_BEFORE_VEHICLE = frozenset({"passenger"})
# Phrases in which a listed word means something else; they name nothing.
_NOT_THINGS = (
    ("train", "track"),
    ("home", "plate"),
    ("bus", "stop"),
    ("toilet", "paper"),
    ("computer", "mouse", "pad"),
)
_SAME_THING = {("toilet", "seat"): "toilet", ("bow", "tie"): "tie", ("computer", "mouse"): "mouse"}


class CocoThings:
    """Mentions by the synonym list, presence by a photo's object annotations and reference captions.

    Annotations are a photo's own `details["objects"]` (as `mmslm.data.coco` keeps them), or `objects`, which maps photo
    ids to category names. A photo with neither is unknown (None).
    """

    def __init__(self, synonyms: dict[str, Sequence[str]], objects: dict[str, Iterable[str]] | None = None) -> None:
        if not synonyms:
            raise ValueError("an empty synonym list was given; expected at least one category with its words")
        phrases: dict[tuple[str, ...], str] = {}
        for kind, words in synonyms.items():
            for word in (kind, *words):
                # A word may stand in two lines ("couch" once, "mouse" once); the first line that has it keeps it.
                phrases.setdefault(tuple(word.lower().split()), kind)
        phrases |= {phrase: kind for phrase, kind in _SAME_THING.items() if kind in synonyms}
        for modifiers, kinds in ((_BEFORE_ANIMAL, _ANIMALS), (_BEFORE_VEHICLE, _VEHICLES)):
            heads = [phrase for phrase, kind in phrases.items() if kind in kinds and len(phrase) == 1]
            phrases |= {(modifier, *head): phrases[head] for modifier in modifiers for head in heads}
        self.kinds = tuple(synonyms)
        self._phrases: dict[tuple[str, ...], str | None] = {**phrases, **dict.fromkeys(_NOT_THINGS)}
        self._words = frozenset(word for phrase in self._phrases for word in phrase)
        self._longest = max(len(phrase) for phrase in self._phrases)
        self._objects = {str(key): frozenset(value) for key, value in (objects or {}).items()}
        for found in self._objects.values():
            self._known(found)

    @classmethod
    def from_file(cls, path: str | Path, objects: dict[str, Iterable[str]] | None = None) -> CocoThings:
        """Reads the benchmark's list: one line per category, comma-separated, the category's name first."""
        synonyms: dict[str, Sequence[str]] = {}
        for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), start=1):
            words = [word.strip() for word in line.split(",") if word.strip()]
            if not words:
                continue
            if any(len(word) > 40 for word in words):
                raise ValueError(f"{path}, line {number} holds no list of words; give the CHAIR synonyms file")
            synonyms[words[0]] = words[1:]
        return cls(synonyms, objects)

    def mentions(self, caption: str) -> list[str]:
        """The categories that the caption names, in order, one entry per mention: the longest phrase wins."""
        return list(self._read([self._singular(word) for word in tokenise(caption)]))

    def present(self, photo: Photo) -> frozenset[str] | None:
        """Annotated categories and those that the photo's reference captions name; None without annotations."""
        annotated = self._objects.get(str(photo.id))
        if annotated is None:
            own = getattr(photo, "details", {}).get("objects")
            if own is None:
                return None
            annotated = self._known(frozenset(own))
        return annotated.union(*(self.mentions(caption) for caption in photo.captions))

    def _known(self, kinds: frozenset[str]) -> frozenset[str]:
        unknown = sorted(kinds - frozenset(self.kinds))
        if unknown:
            raise ValueError(f"objects {unknown} are no categories of the synonym list; use COCO's own names")
        return kinds

    def _read(self, words: list[str]) -> Iterator[str]:
        place = 0
        while place < len(words):
            for length in range(min(self._longest, len(words) - place), 0, -1):
                phrase = tuple(words[place : place + length])
                if phrase in self._phrases:
                    kind = self._phrases[phrase]
                    if kind is not None:
                        yield kind
                    place += length
                    break
            else:
                place += 1

    def _singular(self, word: str) -> str:
        if word in self._words:
            return word
        candidates = [_IRREGULAR.get(word, "")]
        if word.endswith("ies"):
            candidates.append(word[:-3] + "y")
        if word.endswith("ves"):
            candidates += [word[:-3] + "f", word[:-3] + "fe"]
        if word.endswith("es"):
            candidates.append(word[:-2])
        if word.endswith("s"):
            candidates.append(word[:-1])
        return next((candidate for candidate in candidates if candidate in self._words), word)
