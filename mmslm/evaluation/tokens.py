"""A Penn-Treebank-like tokeniser for captions, in pure Python.

The reference scorer of COCO captions runs Stanford's Java `PTBTokenizer` with `-lowerCase` and then drops a fixed list
of punctuation tokens. This file does the same to ordinary captions without Java: lower case, contractions split
(`isn't` -> `is n't`, `it's` -> `it 's`, `cannot` -> `can not`), hyphens kept inside words, full stops kept in
abbreviations and acronyms, brackets written `-lrb-`, quotation marks and punctuation dropped.

It is not the same program, so it never claims to be: on 27,823 human captions and archival titles it agrees with the
original on all but one, on text full of telephone numbers and form fields on 90 to 95 % (docs/evaluation.md). Scores
that must equal published ones to the last digit should be computed from text that the original has tokenised.

It refuses anything that is not a string.
"""

from __future__ import annotations

import re

# Tokens the reference scorer throws away. Its bracket names are upper case while its tokens are lower case, so brackets
# survive there, and must survive here for the scores to be comparable.
PUNCTUATION = frozenset({"''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"})

# Abbreviations that keep their full stop. The second list is words of their own when written small ("a car wash."), so
# there the capital decides, which is why the text is lower-cased only after it was cut.
_ABBREVIATIONS = (
    "mr mrs ms messrs mme mlle dr drs prof sen sens rep reps gov attys atty supt det lieut lt col brig cmdr adm capt "
    "cpl maj sgt pvt pfc rev st ste hon jr sr bros ph[.]d m[.]sc esq inc corp ltd plc bancorp blvd rd ave cos univ ft "
    "bldg dept etc vs al viz cf jan feb apr jun jul aug sept nov dec tues thu thurs ct vt wisc tenn penn calif"
).replace(" ", "|")
_CAPITALISED = (
    "Mar Sep Oct Mon Tue Wed Fri Ala Ariz Az Ark Colo Conn Dak Del Fla Ga Ill Ind Kans Kan Ken Ky La Mass Md Mich Minn "
    "Miss Mo Mont Neb Nev Okla Ore Pa Tex Va Wash Wis Wyo Co Gen Mt Mts Wm Spc Ln Tel"
).replace(" ", "|")
# "No. 42" is a number, "no." at the end of a sentence is not: these keep the stop only before a digit.
_BEFORE_DIGIT = "no|nos|art|fig|figs|pp|op|prop|ca"
_WORD = r"\w"
_LETTER = r"[^\W\d_]"
_CLITIC = r"(?i:s|m|d|re|ve|ll)\b"

_TOKEN = re.compile(
    rf"""
      (?P<url>(?i:https?://|www\.)[^\s"<>|]+[^\s"<>|.!?,;:)\]])
    | (?P<mail>[\w.+-]+@[\w-]+(?:\.[\w-]+)+)
    | (?P<cannot>(?<!\w)(?i:can(?=not\b)))
    | (?P<informal>(?<!\w)(?i:gon(?=na\b)|got(?=ta\b)|wan(?=na\b)))
    | (?P<stopped>(?<!\w)(?:(?i:{_ABBREVIATIONS})|{_CAPITALISED}|{_CAPITALISED.upper()})
        \.(?!\w))
    | (?P<numbered>(?<!\w)(?i:{_BEFORE_DIGIT})\.(?=\s?\d))
    | (?P<acronym>(?<!\w){_LETTER}(?:\.{_LETTER})+(?!\w)\.?)
    | (?P<initial>(?<!\w)(?!I\.){_LETTER}\.(?!\w|\s*$))
    | (?P<before_comma>(?<!\w){_LETTER}+\.(?=,))
    | (?P<stem>{_WORD}+?)(?=n't\b|N'T\b)
    | (?P<clitic>(?i:n't)\b|'{_CLITIC})
    | (?P<aphaeresis>(?<!\w)'(?i:em|til|tis|twas|n)\b)
    | (?P<clock>\d+:\d+(?::\d+)?)
    | (?P<fraction>(?:\d+[ -])?\d+(?:/\d+)+)
    | (?P<choice>{_LETTER}+(?:/{_LETTER}+)+)
    | (?P<glued>(?<!\w){_LETTER}+\.{_LETTER}+(?!\w))
    | (?P<number>\d+(?:[.,]\d+)+(?:-{_WORD}+)*(?!{_LETTER}))
    | (?P<firm>(?<!\w)[A-Z]+(?:&[A-Z]+)+(?!\w))
    | (?P<word>{_WORD}+(?:-{_WORD}+|'(?!{_CLITIC}){_WORD}+)*)
    | (?P<ellipsis>\.\.\.+)
    | (?P<dashes>--+)
    | (?P<shout>[?!]{(2,)})
    | (?P<other>\S)
    """,
    re.VERBOSE,
)

_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_PLAIN = str.maketrans({"’": "'", "‘": "'", "“": '"', "”": '"', "–": " -- ", "—": " -- ", "…": " ... "})
# Characters that only ever separate or quote; the original drops them or turns them into dropped tokens.
_DROPPED = PUNCTUATION | {'"', "«", "»", "·"}


def tokenise(text: str) -> list[str]:
    """The caption's tokens, lower case, punctuation dropped: `"It's a dog."` -> `["it", "'s", "a", "dog"]`.

    Raises TypeError when `text` is not a string. Empty and blank text give an empty list.
    """
    if not isinstance(text, str):
        raise TypeError(
            f"tokenise was given {type(text).__name__}, it expects one caption as a string; pass each alone"
        )
    tokens: list[str] = []
    for match in _TOKEN.finditer(text.translate(_PLAIN)):
        token = match.group().lower()
        if match.lastgroup == "fraction":
            # A mixed fraction is one token; the original joins its parts with a no-break space, and so do we.
            token = token.replace(" ", "\N{NO-BREAK SPACE}")
        if token not in _DROPPED:
            tokens.append(_BRACKETS.get(token, token))
    return tokens
