"""Follow-ups such as "and the other one?" or "what colour is it?", rewritten by fixed rules into whole questions.

The model is asked one question at a time and remembers nothing; what a pronoun stands for is settled here, from the
person's own last question, or from a thing of the model's closed vocabulary that its last answer named. So neither an
answer nor words printed in a picture ever become part of a prompt: at most one known noun does. The page shows the
question as it was asked. English only, as the model is; "the other one" is understood in six languages. What cannot be
settled is refused rather than guessed.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from functools import cache

MAX_SUBJECT = 40


@dataclass(frozen=True)
class Before:
    """The last turn: the question as asked (or "" for a level), its answer, and the photos it was about."""

    question: str = ""
    level: str = ""
    answer: str = ""
    photos: tuple[str, ...] = ()


@dataclass(frozen=True)
class Followed:
    """A whole question (or a level), and which photos it turns to: None for the ticked ones."""

    question: str
    level: str = ""
    photos: tuple[str, ...] | None = None


_OTHER = re.compile(
    r"^(?:and |what about |how about )?(?:(?:in|on) )?(?:the )?others?(?: (?:one|ones|photos?|pictures?))?\W*$"
    r"|^¿?y (?:(?:en )?(?:el|la|los|las) )?otr[oa]s?(?: (?:foto|fotos))?\W*$"
    r"|^et (?:(?:dans|sur) )?(?:l['’]|les )autres?(?: photos?)?\W*$"
    r"|^und (?:(?:auf|in) )?(?:das|der|die|dem|den) andere[nr]?(?: fotos?)?\W*$"
    r"|^(?:那)?另(?:外)?一?(?:张|个|幅)(?:照片)?(?:呢)?\W*$"
    r"|^و(?:ماذا عن )?(?:ال)?(?:أخرى|آخر|صورة الأخرى)\W*$"
)
# "In the other one" turns to a photo, never to other things of the same one.
_A_PHOTO = re.compile(r"\b(?:in|on|en|dans|sur|auf|photos?|pictures?|fotos?)\b|照片|张|صورة")
_NUMBERED = re.compile(
    r"^(?:and |what about |how about )?(?:(?:in|on) )?(?:the )?"
    r"(?:(?:photo|picture) (?:number )?(?P<digit>[1-9])|(?P<word>first|second|third|fourth|last)(?: (?:one|photo|picture))?)\W*$"
)
_ORDINALS = {"first": 0, "second": 1, "third": 2, "fourth": 3, "last": -1}
_ABOUT = re.compile(r"^(?:and|what about|how about)\s+(?:the |an? |any )?(?P<thing>[a-z][a-z' -]{0,38}?)\W*$")
_ASKING = r"(?:what|where|who|whose|which|how many|how much|is|are|was|were|do|does|did|can|has|have|why|when)\b"
_ENDS = r"(?=\s+(?:is|are|was|were|on|in|at|of|near|next|there|here|stand\w*|says?|looks?|do|does|have|has|or|and)\b|[?.!,]|$)"
_SUBJECT = re.compile(rf"\b(?:the|an?|any|many|my|this|that|another)\s+(?P<thing>[a-z][a-z' -]{{0,38}}?){_ENDS}")
_PRONOUN = re.compile(r"\b(?:it|they|them|that one|this one)\b")
_COUNT = re.compile(r"^(?:and )?how many(?: (?:are there|of them(?: are there)?))?\W*$")
# Questions about the picture as a whole: "it" stands for nothing that was named before.
_WHOLE = re.compile(
    r"^(?:what|who|which)(?: is|'s) it\W*$|\bwhat time\b|\b(?:is|was) it (?:day|night|raining|sunny|dark|inside|outside)\b"
)
_NO_THING = frozenset({"photo", "picture", "image", "text", "other", "one", "other one", "same", "rest"})


def follow(question: str, before: Before, photos: tuple[str, ...]) -> Followed | None:
    """``question`` as a whole one; None where it points to something that is not known.

    ``photos``: the names of all photos on the shelf, in order.
    """
    plain = re.sub(r"\s+", " ", unicodedata.normalize("NFC", question).strip().lower())
    if _OTHER.match(plain):
        return _other(before, photos, elsewhere=bool(_A_PHOTO.search(plain)))
    numbered = _NUMBERED.match(plain)
    if numbered:
        digit = numbered.group("digit")
        place = int(digit) - 1 if digit else _ORDINALS[numbered.group("word")]
        if not (before.question or before.level) or place >= len(photos):
            return None
        return Followed(before.question, before.level, (photos[place],))
    plain = re.sub(rf"^and (?={_ASKING})", "", plain)
    about = _ABOUT.match(plain)
    if about:
        thing = about.group("thing")
        if not before.question or subject(before.question) is None:
            return None
        return Followed(_replaced(before.question, thing))
    thing = subject(before.question) or named(before.answer)
    if _COUNT.match(plain):
        return None if thing is None else Followed(f"how many {_plural(thing)} are there?")
    if thing and _PRONOUN.search(plain) and not _WHOLE.search(plain) and subject(plain) is None:
        return Followed(_PRONOUN.sub(f"the {thing}", plain, count=1))
    return Followed(question)


def _other(before: Before, photos: tuple[str, ...], *, elsewhere: bool) -> Followed | None:
    if not (before.question or before.level):
        return None
    rest = tuple(name for name in photos if name not in before.photos)
    if rest:
        return Followed(before.question, before.level, rest)
    thing = subject(before.question)
    if elsewhere or thing is None or thing.startswith("other "):
        return None
    return Followed(_replaced(before.question, f"other {thing}"))


def subject(question: str) -> str | None:
    """The thing that a question is about: "what colour is the cup?" -> "cup"; None when it names none."""
    for match in _SUBJECT.finditer(question.lower()):
        thing = match.group("thing").strip()
        if thing not in _NO_THING and len(thing) <= MAX_SUBJECT:
            return thing
    return None


def named(answer: str) -> str | None:
    """The first thing of the model's own vocabulary that an answer names; nothing else of it is ever used."""
    found = _vocabulary().search(answer.lower())
    return found.group(0) if found else None


def _replaced(question: str, thing: str) -> str:
    old = subject(question)
    lowered = question.lower()
    at = lowered.index(old) if old else 0
    start = lowered[:at]
    # "is there a cup" -> "is there an apple"
    if re.search(r"\ban? $", start):
        start = re.sub(r"\ban? $", "an " if thing[0] in "aeiou" else "a ", start)
    return start + thing + lowered[at + len(old or "") :]


@cache
def _forms() -> dict[str, str]:
    from mmslm.data.scenes.catalogue import KINDS

    return {singular: plural for kind in KINDS.values() for singular, plural in kind.forms}


@cache
def _vocabulary() -> re.Pattern[str]:
    words = sorted({*_forms(), *_forms().values()}, key=len, reverse=True)
    return re.compile(r"(?<![\w'])(?:" + "|".join(map(re.escape, words)) + r")(?![\w'])")


def _plural(thing: str) -> str:
    if thing in _forms():
        return _forms()[thing]
    return thing if thing.endswith("s") else thing + "s"
