"""Answers compare as people mean them, and yes/no questions show a model that always says yes."""

from __future__ import annotations

import pytest

from mmslm.evaluation.vqa import AnswerRow, normalise_answer, read_yes_no, score_answers, yes_no_balance


def row(expected: str, given: str, kind: str = "presence", owner: str = "a") -> AnswerRow:
    return AnswerRow("p", owner, kind, "?", expected, given)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("Two.", "2"),
        ("the left", "left"),
        ("On the LEFT!", "on left"),
        ("an umbrella", "umbrella"),
        ("don't", "dont"),
        ("1,000", "1000"),
        ("10:30.", "10:30"),
        ("none", "0"),
        ("red,  blue", "red blue"),
    ],
)
def test_answers_that_mean_the_same_compare_equal(left: str, right: str) -> None:
    assert normalise_answer(left) == normalise_answer(right)


@pytest.mark.parametrize(
    ("left", "right"),
    [("10:30", "1030"), ("2.5", "25"), ("t-shirt", "shirt"), ("a", ""), ("left", "right")],
)
def test_answers_that_differ_stay_different(left: str, right: str) -> None:
    assert normalise_answer(left) != normalise_answer(right)


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("Yes.", "yes"),
        ("No, there is none.", "no"),
        ("nothing", None),
        ("", None),
        ("yesterday", None),
        ("a yes", None),
    ],
)
def test_yes_and_no_are_read_and_never_guessed(text: str, read: str | None) -> None:
    assert read_yes_no(text) == read


def test_always_yes_gets_half_of_balanced_questions_and_shows_it() -> None:
    rows = [row("yes" if index % 2 else "no", "yes", owner=str(index // 4)) for index in range(40)]
    balance = yes_no_balance(rows)
    assert balance is not None
    assert (balance.accuracy, balance.yes_given, balance.yes_expected) == (0.5, 1.0, 0.5)
    assert (balance.precision, balance.recall) == (0.5, 1.0)
    assert balance.f1 == pytest.approx(2 / 3)
    assert score_answers(rows).accuracy == 0.5


def test_an_unreadable_answer_is_wrong_and_counted() -> None:
    balance = yes_no_balance([row("no", "maybe"), row("no", "no")])
    assert balance is not None
    assert (balance.accuracy, balance.unreadable, balance.precision, balance.recall) == (0.5, 0.5, None, None)


def test_accuracy_is_told_by_kind_with_counts_and_an_interval_over_owners() -> None:
    rows = [row("2", "two", "count", str(index)) for index in range(6)]
    rows += [row("red", "blue", "colour", str(index)) for index in range(6)]
    scores = score_answers(rows)
    assert scores.by_kind == {"colour": 0.0, "count": 1.0}
    assert scores.counts == {"colour": 6, "count": 6}
    assert scores.accuracy == 0.5
    assert scores.interval is not None
    assert scores.interval.low == scores.interval.high == 0.5  # every owner has one right and one wrong
    assert scores.yes_no is None


def test_no_answers_are_no_accuracy() -> None:
    scores = score_answers([])
    assert (scores.count, scores.accuracy, scores.interval, scores.by_kind) == (0, None, None, {})
    assert scores.to_json()["accuracy"] is None
