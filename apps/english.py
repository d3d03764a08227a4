"""Whether a question is in English, the only language that the model was taught.

Asked in another language the model answers all the same, with a word of its own that means nothing; so such a question
is refused with a sentence that says what to do, and nothing is guessed. Fixed lists decide: a question is refused where it
has a letter or a small word of the page's other languages, and no word that English alone asks with ("was", "will" and
"has" are German or Spanish too, so they prove nothing). What proves neither ("red cup?") is asked.
"""

from __future__ import annotations

import re
import unicodedata

# fmt: off
_ENGLISH = frozenset([
    "what", "what's", "which", "who", "who's", "whose", "where", "where's", "how", "why", "when", "is", "are", "were", "do",
    "does", "did", "could", "have", "any", "there", "the", "this", "that", "these", "those", "it", "they", "he", "she", "and",
    "of", "read", "tell", "describe", "show", "about", "see", "look",
])
_OTHERS = frozenset([
    "hay", "una", "uno", "el", "la", "los", "las", "del", "que", "donde", "cuantos", "cuantas", "es", "esta", "en", "tiene",
    "quien", "lee", "leer", "algo",
    "il", "une", "le", "les", "des", "du", "est", "ce", "combien", "ou", "quelle", "quel", "quels", "dans", "sur", "sont", "lis",
    "qui", "couleur",
    "ist", "das", "der", "die", "ein", "eine", "wie", "viele", "wo", "welche", "welcher", "welches", "hat", "ich", "sind", "wer",
    "farbe", "lies", "gibt",
])
# fmt: on
_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)?")


def english(question: str) -> bool:
    """Whether the model has a chance to understand ``question``."""
    text = unicodedata.normalize("NFC", question).lower()
    words = {word.replace("’", "'") for word in _WORD.findall(text)}
    if words & _ENGLISH:
        return True
    foreign = any(character in "¿¡" or (character.isalpha() and not character.isascii()) for character in text)
    return not (foreign or words & _OTHERS)
