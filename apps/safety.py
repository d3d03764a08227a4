"""What stands between the model's words and a person who acts on them.

- ``notices``: fixed warnings when a description is about something dangerous; they are said before it.
- ``people``: no gender, age or race guessed from looks, unless the person asked for exactly that.
- ``quoted``: what was read in a picture is shown as a quotation, never followed as an instruction.
- ``plain``: what the model wrote becomes one line of plain text: no links, no markup, no control characters.
- ``shorten``: an alternative text: at most 125 characters, no "image of".
- ``redact``: e-mail addresses, phone and card numbers, IBANs and addresses are blacked out of whatever is stored,
  logged or exported. The owner of a photo still hears them: a captioner that withholds a letter's text helps nobody.

All of it is pattern matching on English words, so it errs towards warning; it is no substitute for looking.
"""

from __future__ import annotations

import re
import unicodedata

_HAZARDS: dict[str, str] = {
    "medicine": r"medicines?|medications?|pills?|tablets?|capsules?|syringes?|inhalers?|prescriptions?|dos(?:e|age)s?|drugs?"
    r"|medicine bottles?|ointments?",
    "traffic": r"traffic|crossings?|crosswalks?|zebra|roads?|street|cars?|bus(?:es)?|trucks?|lorr(?:y|ies)|trams?|trains?|vans?"
    r"|motorcycles?|motorbikes?|scooters?|rails?|platform",
    "food": r"allergens?|nuts?|peanuts?|ingredients?|gluten|milk|eggs?|shellfish|shrimps?|soya?|sesame",
    "electricity": r"electric(?:al|ity)?|sockets?|outlets?|plugs?|cables?|wires?|fuses?|high voltage|cords?",
    "heat": r"fires?|flames?|stoves?|hobs?|ovens?|kettles?|candles?|irons?|hot|boiling|steam(?:ing)?|smoke|burners?|grills?"
    r"|burning|lighters?|match(?:es)?",
    "sharp": r"kni(?:fe|ves)|scissors|blades?|razors?|broken glass|saws?|needles?|axes?|shards?",
    "fall": r"stairs?|staircases?|steps|stairway|ladders?|wet floor|slippery|kerbs?|curbs?|holes?|edge of|escalators?|drop",
    "money": r"money|banknotes?|coins?|cash|dollars?|euros?|pounds sterling|price|cheques?|checks? for|credit cards?|invoices?",
}
_HAZARD_PATTERNS = {name: re.compile(rf"\b(?:{words})\b", re.I) for name, words in _HAZARDS.items()}
_NEGATION = re.compile(r"\b(?:no|not|without|never|neither|nor)\b(?:\s+\w+){0,2}\s*$", re.I)

HAZARDS: tuple[str, ...] = tuple(_HAZARDS)


def notices(text: str, limit: int = 2) -> tuple[str, ...]:
    """Names of the fixed warnings that belong before ``text``, at most ``limit``, the earliest mention first.

    "No cars" is no warning about cars: a mention right after a negation does not count.
    """
    found: list[tuple[int, str]] = []
    for name, pattern in _HAZARD_PATTERNS.items():
        for match in pattern.finditer(text):
            if not _NEGATION.search(text[: match.start()]):
                found.append((match.start(), name))
                break
    return tuple(name for _, name in sorted(found)[:limit])


_AGES = r"(?:old|older|elderly|young|younger|middle-aged|teenage|adult)"
_ORIGINS = r"(?:black|white|asian|african|european|caucasian|hispanic|latino|latina|arab|indian|chinese|japanese)"
_ONE = (
    r"(?:man|woman|boy|girl|lady|gentleman|guy|male|female|grandmother|grandfather|mother|father|teenager|son|daughter)"
)
_MANY = r"(?:men|women|boys|girls|ladies|gentlemen|guys|males|females|grandparents|teenagers)"
_PERSON_ONE = re.compile(rf"\b(an?\s+)?(?:(?:{_AGES}|{_ORIGINS})[\s,-]+)*{_ONE}\b", re.I)
_PERSON_MANY = re.compile(rf"\b(?:(?:{_AGES}|{_ORIGINS})[\s,-]+)*{_MANY}\b", re.I)
_PERSON_BARE = re.compile(rf"\b(an?\s+)?(?:(?:{_AGES}|{_ORIGINS})[\s,-]+)+(person|people|child|children)\b", re.I)
_PRONOUNS = {"he": "they", "she": "they", "him": "them", "his": "their", "her": "their", "hers": "theirs"}
_PRONOUN = re.compile(r"\b(he|she|him|his|hers|her)\b(\s+(?:is|was|has)\b)?", re.I)
_AGREE = {"is": "are", "was": "were", "has": "have"}
_ASKS_FOR_LOOKS = re.compile(
    r"\b(?:gender|sex|male or female|man or (?:a )?woman|boy or (?:a )?girl|how old|what age|age of|ethnic\w*|race)\b",
    re.I,
)


def asks_for_looks(question: str) -> bool:
    """Whether the person asked for exactly what ``people`` leaves out; the answer is then given as an unsure one."""
    return bool(_ASKS_FOR_LOOKS.search(question))


def people(text: str) -> str:
    """``text`` with guessed gender, age and origin taken out: "an old woman in a red coat" -> "a person in a red coat"."""

    def named(match: re.Match[str], noun: str, article: str | None = None) -> str:
        if article:
            return ("A " if article[0].isupper() else "a ") + noun
        # A capital may belong to "Asian" rather than to a sentence's start.
        starts = not text[: match.start()].strip() or text[: match.start()].rstrip().endswith((".", "!", "?"))
        return noun.capitalize() if starts and match.group(0)[0].isupper() else noun

    def one(match: re.Match[str]) -> str:
        return named(match, "person", match.group(1))

    def many(match: re.Match[str]) -> str:
        return named(match, "people")

    def bare(match: re.Match[str]) -> str:
        return named(match, match.group(2).lower(), match.group(1))

    def pronoun(match: re.Match[str]) -> str:
        word = _PRONOUNS[match.group(1).lower()]
        verb = match.group(2) or ""
        if verb and word == "they":
            verb = " " + _AGREE[verb.strip().lower()]
        return (word.capitalize() if match.group(1)[0].isupper() else word) + verb

    for pattern, replace in ((_PERSON_ONE, one), (_PERSON_MANY, many), (_PERSON_BARE, bare), (_PRONOUN, pronoun)):
        text = pattern.sub(replace, text)
    return text


_TRAILING = re.compile(rf"(?:\b(?:an?|the|some|two|three)\s+)?(?:\b(?:{_AGES}|{_ORIGINS})\b[\s,-]*)+$", re.I)


def settled(text: str) -> str:
    """The part of an unfinished text that ``people`` will not change any more: "A cat and an old" -> "A cat and "."""
    return _TRAILING.sub("", text)


_LINK = re.compile(r"\b(?:https?|ftp|javascript|data|file|mailto):\S+|\bwww\.\S+", re.I)
_MARKUP = re.compile(r"<[^<>]{0,400}>|!?\[([^\]]{0,200})\]\([^)]{0,400}\)")


def plain(text: str) -> str:
    """One line of plain text: control and direction marks gone, links and markup removed, white space folded.

    Even a model that was trained, or told by a picture, to write a link or an image cannot make the page fetch one.
    """
    text = unicodedata.normalize("NFC", text)
    text = "".join(c if unicodedata.category(c)[0] != "C" or c in "\n\t" else "" for c in text)
    text = _MARKUP.sub(lambda match: match.group(1) or "", text)
    text = _LINK.sub("[link removed]", text)
    return re.sub(r"\s+", " ", text).strip()


_NO_TEXT = re.compile(r"^(?:there is |i see |it has )?no (?:text|words?|writing)\b", re.I)


def quoted(text: str) -> str:
    """Words read in a picture, in quotation marks, unless they already are or there were none."""
    inner = text.strip()
    if not inner or _NO_TEXT.match(inner) or re.search(r'["“”«»]', inner):
        return inner
    return f"“{inner}”"


def sentence(text: str) -> str:
    """``text`` as a person writes it: capitals first, a full stop last. Quoted words stay as they were read."""
    text = text[:1].upper() + text[1:]
    if '"' not in text and "“" not in text:
        text = re.sub(r"(?<=[.!?] )[a-z]", lambda match: match.group(0).upper(), text)
    return text if not text or text[-1] in ".!?…”»" else text + "."


MAX_ALT = 125
_OPENERS = re.compile(
    r"^(?:(?:this|here) is |there is |it is )?(?:an? |the )?(?:image|picture|photo|photograph|screenshot)"
    r"(?: (?:shows?|of|showing|depicts?|depicting))+\s+",
    re.I,
)


def shorten(text: str, limit: int = MAX_ALT) -> str:
    """``text`` without "image of", as at most ``limit`` characters: whole sentences if one fits, else whole words
    and "…".
    """
    text = _OPENERS.sub("", text.strip())
    text = text[:1].upper() + text[1:]
    if len(text) <= limit:
        return text
    sentence = max((m.end() for m in re.finditer(r"[.!?](?=\s)", text[: limit + 1])), default=0)
    if sentence >= limit // 4:
        return text[:sentence].strip()
    cut = text[: limit - 1]
    return (cut[: cut.rfind(" ")] if " " in cut else cut).rstrip(" ,;:-") + "…"


_EMAIL = re.compile(r"\b[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63})+\b")
_IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?:[ ]?[A-Z0-9]{4}){2,7}(?:[ ]?[A-Z0-9]{1,3})?\b", re.I)
_CARD = re.compile(r"\b\d(?:[ -]?\d){12,18}\b")
_PHONE = re.compile(
    r"(?<![\w.])(?:\+|00)?\(?\d{1,4}\)?(?:[ ./-]?\(?\d{1,4}\)?){2,6}(?:[ ]?(?:x|ext\.?)[ ]?\d{1,6})?(?![\w])"
)
_STREET = (
    r"Street|St|Road|Rd|Avenue|Ave|Lane|Ln|Drive|Dr|Court|Ct|Boulevard|Blvd|Way|Place|Square|Terrace|Close|Crescent"
)
_ADDRESS = re.compile(
    rf"\b\d{{1,5}}[a-zA-Z]?\s+(?:[A-Z][\w'.-]*\s+){{1,4}}(?:{_STREET})\b\.?(?:,?\s+(?:[A-Z][\w'-]*\s*){{1,3}})?(?:,?\s*\d{{4,5}}\b)?"
    rf"|\b(?:[A-Z]\w+(?:straße|strasse|gasse|weg|platz)|(?:rue|avenue|calle|via)\s+(?:[\w'-]+\s+){{0,4}}[A-Z][\w'-]+),?\s+\d{{1,4}}[a-z]?\b"
)


def luhn(digits: str) -> bool:
    """Whether a string of digits carries a valid Luhn check digit, as card numbers do (ISO/IEC 7812-1)."""
    total = 0
    for place, digit in enumerate(reversed(digits)):
        value = int(digit) * (2 if place % 2 else 1)
        total += value - 9 if value > 9 else value
    return len(digits) > 1 and total % 10 == 0


def iban(text: str) -> bool:
    """Whether a string is a valid IBAN (ISO 13616: the number rearranged leaves 1 modulo 97)."""
    compact = text.replace(" ", "").upper()
    if not 15 <= len(compact) <= 34 or not compact.isalnum():
        return False
    return int("".join(str(int(c, 36)) for c in compact[4:] + compact[:4])) % 97 == 1


def redact(text: str) -> str:
    """``text`` with e-mail addresses, cards, IBANs, phone numbers and street addresses replaced by what they were."""
    text = _EMAIL.sub("[e-mail]", text)
    text = _IBAN.sub(lambda match: "[IBAN]" if iban(match.group(0)) else match.group(0), text)
    text = _CARD.sub(lambda match: "[card]" if luhn(re.sub(r"\D", "", match.group(0))) else match.group(0), text)
    text = _ADDRESS.sub("[address]", text)

    def phone(match: re.Match[str]) -> str:
        digits = re.sub(r"\D", "", match.group(0))
        return "[phone]" if 7 <= len(digits) <= 19 else match.group(0)

    return _PHONE.sub(phone, text)
