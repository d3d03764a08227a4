"""The words of the interface in six languages; one JSON file each under ``static/words``, English the master.

``words()`` refuses a file that lacks a key, has one too many, or whose ``{placeholders}`` differ from English: a
missing sentence is found when the app starts, never by the person who needed it. What the model says stays in its
own language.
"""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path

LANGUAGES = {"en": "English", "zh": "中文", "es": "Español", "fr": "Français", "de": "Deutsch", "ar": "العربية"}
RIGHT_TO_LEFT = frozenset({"ar"})
_FOLDER = Path(__file__).parent / "static" / "words"
_PLACEHOLDER = re.compile(r"\{(\w+)\}")


@cache
def words() -> dict[str, dict[str, str]]:
    """``{"en": {"captioner.title": "Describe a photo", ...}, "zh": ...}``; ValueError where a translation is incomplete."""
    found = {code: json.loads((_FOLDER / f"{code}.json").read_text(encoding="utf-8")) for code in LANGUAGES}
    english = found["en"]
    for code, sentences in found.items():
        missing, extra = sorted(english.keys() - sentences.keys()), sorted(sentences.keys() - english.keys())
        if missing or extra:
            raise ValueError(f"The words of {code!r} lack {missing} and have {extra} too many; mend {code}.json.")
        for key, sentence in sentences.items():
            if not sentence.strip():
                raise ValueError(f"The sentence {key!r} of {code!r} is empty; translate it.")
            if sorted(_PLACEHOLDER.findall(sentence)) != sorted(_PLACEHOLDER.findall(english[key])):
                raise ValueError(f"The sentence {key!r} of {code!r} has other placeholders than English; mend it.")
    return found


def say(key: str, language: str = "en", **values: object) -> str:
    """One sentence, with its placeholders filled; KeyError for a key that no language has."""
    sentence = words().get(language, words()["en"])[key]
    return _PLACEHOLDER.sub(lambda match: str(values.get(match.group(1), match.group(0))), sentence)
