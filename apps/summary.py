"""What matters in a pasted text or a list of notifications, in its own words.

The nano model cannot summarise, so none is asked: sentences are chosen by fixed rules (words that the text itself
repeats, the beginning, dates, amounts and requests) and given word for word, in their order. Notifications ("Bank: your
card was used") are grouped by who sent them. Dates, times and amounts are listed apart. Nothing is stored, nothing
reaches a model, so a text that says "ignore your instructions" is a sentence like any other.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass

from apps import safety

MAX_TEXT = 20_000
MOST_SENTENCES = 3
MOST_SENDERS = 8
MOST_FACTS = 8
_END = re.compile(r"(?<=[.!?…])[\"”’)]*\s+(?=[^\sa-z])|(?<=[。！？])|(?<=؟)\s+|\n+")
_WORD = re.compile(r"[^\W\d_]{3,}|[\u4e00-\u9fff]{2}")
_NOTIFICATION = re.compile(r"^\s*(?:\[?\d{1,2}[:.]\d{2}\]?\s*)?(?P<who>[^:：\n]{1,40}?)\s*[:：]\s+(?P<what>\S.*)$")
_MONTH = (
    r"(?:jan(?:uary|uar|vier)?|feb(?:ruary|ruar)?|f[eé]vrier|mar(?:ch|s|zo)?|m[aä]rz|apr(?:il)?|avril|abril|may|mai|mayo|june?|juin|juni|junio"
    r"|july?|juillet|juli|julio|aug(?:ust)?|ao[uû]t|agosto|sep(?:t(?:ember|embre|iembre)?)?|oct(?:ober|obre|ubre)?|oktober"
    r"|nov(?:ember|embre|iembre)?|dec(?:ember)?|d[eé]cembre|dezember|diciembre|enero|febrero|januar)"
)
_FACTS = re.compile(
    r"\d{4}年\d{1,2}月\d{1,2}日|\d{1,2}月\d{1,2}日"
    rf"|\b\d{{1,2}}(?:st|nd|rd|th|\.)?\s+(?:de\s+)?{_MONTH}\b(?:\s+(?:de\s+)?\d{{4}})?|\b{_MONTH}\s+\d{{1,2}}\b(?:,?\s+\d{{4}})?"
    r"|\b\d{1,4}[./-]\d{1,2}[./-]\d{2,4}\b|\b\d{1,2}[:.]\d{2}\b(?!\s*[€$£])(?:\s?[ap]\.?m\b\.?)?|\b\d{1,2}\s?[ap]m\b"
    r"|(?:[€$£¥]|\b(?:EUR|USD|GBP|CHF)\s)\s?\d[\d.,]*\d|[€$£¥]\s?\d\b|(?<![\d.,])\d[\d.,]*\s?(?:[€$£¥元]|(?:EUR|USD|GBP|CHF|euros?|dollars?|pounds?)\b)",
    re.I,
)
_ASKS = re.compile(
    r"[?？؟]|\b(?:please|must|need to|have to|deadline|urgent|important|due|confirm|reply|call|pay|por favor|debe|urgente"
    r"|veuillez|devez|s['’]il|bitte|m[uü]ss\w*|dringend|wichtig|frist)\b|请|必须|紧急|截止|يرجى|عاجل|يجب",
    re.I,
)


@dataclass(frozen=True)
class Summary:
    """``kind``: "sentences" or "notifications" (``senders``: who, how many, the last or most pressing message)."""

    kind: str
    total: int
    sentences: tuple[str, ...] = ()
    senders: tuple[tuple[str, int, str], ...] = ()
    facts: tuple[str, ...] = ()
    asks: bool = False


def summarise(text: str) -> Summary:
    """The most telling sentences of ``text``, or its notifications by sender. Raises ValueError for an empty or long one."""
    if not text.strip():
        raise ValueError("The text is empty: paste one.")
    if len(text) > MAX_TEXT:
        raise ValueError(f"The text has {len(text)} characters: paste at most {MAX_TEXT}.")
    facts = tuple(dict.fromkeys(safety.plain(found.group(0)) for found in _FACTS.finditer(text)))[:MOST_FACTS]
    lines = [line for line in text.splitlines() if line.strip()]
    messages = [match for match in map(_NOTIFICATION.match, lines) if match]
    if len(messages) >= 2 and len(messages) * 10 >= len(lines) * 8:
        return _notifications([(m.group("who").strip(), m.group("what").strip()) for m in messages], facts)
    sentences = [part.strip() for part in _END.split(text) if part and part.strip()]
    chosen = tuple(safety.plain(sentences[index]) for index in _best(sentences))
    return Summary("sentences", len(sentences), chosen, facts=facts, asks=bool(_ASKS.search(text)))


def _best(sentences: list[str]) -> list[int]:
    """Places of the most telling sentences, in the text's order."""
    if len(sentences) <= MOST_SENTENCES:
        return list(range(len(sentences)))
    words = [[word.lower() for word in _WORD.findall(sentence)] for sentence in sentences]
    spread = Counter(word for found in words for word in set(found))
    scores = []
    for place, (sentence, found) in enumerate(zip(sentences, words, strict=True)):
        # What several sentences share is the subject; what nearly all share is grammar.
        shared = sum(spread[word] - 1 for word in set(found) if spread[word] <= max(2, len(sentences) // 2))
        score = shared / math.sqrt(len(set(found)) or 1)
        score += 1.0 * (place == 0) + 1.0 * bool(_FACTS.search(sentence)) + 1.5 * bool(_ASKS.search(sentence))
        # A scrap of a line or a whole page tells little.
        scores.append(score * (0.5 if len(found) < 3 or len(sentence) > 400 else 1.0))
    ranked = sorted(range(len(sentences)), key=lambda place: (-scores[place], place))
    return sorted(ranked[:MOST_SENTENCES])


def _notifications(messages: list[tuple[str, str]], facts: tuple[str, ...]) -> Summary:
    grouped: dict[str, list[str]] = {}
    for who, what in messages:
        grouped.setdefault(who, []).append(what)

    def pressing(found: list[str]) -> str:
        return next((what for what in reversed(found) if _ASKS.search(what)), found[-1])

    rows = [(safety.plain(who), len(found), safety.plain(pressing(found))) for who, found in grouped.items()]
    # Who asks for something comes first, then who wrote most.
    rows.sort(key=lambda row: (not _ASKS.search(row[2]), -row[1]))
    asks = any(_ASKS.search(what) for _, what in messages)
    return Summary("notifications", len(messages), senders=tuple(rows[:MOST_SENDERS]), facts=facts, asks=asks)
