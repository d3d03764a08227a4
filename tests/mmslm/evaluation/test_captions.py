"""Caption metrics equal the reference scorer's stored output, and their own definitions where that is absent."""

from __future__ import annotations

import itertools
import json
import math
import os
import random
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmslm.evaluation.captions import (
    DocumentFrequency,
    bleu,
    bleu_counts,
    bleu_from_counts,
    cider,
    rouge_l,
    score_captions,
)
from mmslm.evaluation.tokens import tokenise

SHARED = Path(os.environ.get("MMSLM_SHARED_DATA", Path(__file__).parents[3] / "../shared/data"))
FIXTURES = SHARED / "metric_fixtures"
FILES = ["edge_cases", "human_loo_500", "tylin_fakecap_126", "degenerate_200"]
needs_fixtures = pytest.mark.skipif(not FIXTURES.is_dir(), reason=f"no metric fixtures at {FIXTURES}")


@lru_cache(maxsize=8)
def fixture(name: str) -> dict[str, Any]:
    return dict(json.loads((FIXTURES / f"{name}.json").read_text(encoding="utf-8")))


@needs_fixtures
@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("tokenised", [True, False], ids=["their tokens", "our tokens"])
def test_scores_equal_the_reference_scorer_corpus_and_per_image(name: str, tokenised: bool) -> None:
    data = fixture(name)
    prefix = "tokenized_" if tokenised else ""
    scores = score_captions(
        [item[prefix + "hypothesis"] for item in data["items"]],
        [item[prefix + "references"] for item in data["items"]],
        tokenised=tokenised,
    )
    for metric, value in scores.as_dict().items():
        assert value == pytest.approx(data["expected"][metric], abs=1e-4)
    for metric, values in scores.per_image.items():
        official = [item["per_image"][metric] for item in data["items"]]
        np.testing.assert_allclose(values, official, atol=1e-4)


@needs_fixtures
def test_scores_equal_the_numbers_another_package_prints_for_its_examples() -> None:
    data = fixture("nlg_eval_tiny")
    for items, expected in (
        (data["items"], data["expected"]),
        ([data["individual"][0]], data["individual"][0]["expected"]),
    ):
        scores = score_captions(
            [item["hypothesis"] for item in items], [item["references"] for item in items], tokenised=True
        )
        for metric, value in scores.as_dict().items():
            assert value == pytest.approx(expected[metric], abs=2e-6)


@needs_fixtures
def test_our_tokeniser_agrees_with_the_java_original_on_the_fixtures() -> None:
    same = total = 0
    for name in FILES:
        for item in fixture(name)["items"]:
            texts = [item["hypothesis"], *item["references"]]
            theirs = [item["tokenized_hypothesis"], *item["tokenized_references"]]
            for text, tokens in zip(texts, theirs, strict=True):
                total += 1
                same += " ".join(tokenise(text)) == tokens
    assert total > 4000
    assert same / total > 0.999


def test_perfect_captions_get_the_most_and_unrelated_ones_nothing() -> None:
    captions = ["a red bus stops at the corner", "two cats sleep on a warm sofa", "a kettle boils in the kitchen"]
    perfect = score_captions(captions, [[caption] for caption in captions])
    assert perfect.bleu == pytest.approx((1, 1, 1, 1), abs=1e-6)
    assert perfect.rouge_l == 1
    assert perfect.cider == pytest.approx(10)
    wrong = score_captions(["zzz yyy xxx www"] * 3, [[caption] for caption in captions])
    assert max(wrong.bleu) < 1e-6
    assert wrong.rouge_l == wrong.cider == 0


def test_an_empty_caption_scores_zero_everywhere_and_breaks_nothing() -> None:
    scores = score_captions(["", " . ", "a dog"], [["a dog runs"], ["a cat"], ["a dog"]])
    for values in scores.per_image.values():
        assert values[0] == values[1] == 0
        assert np.isfinite(values).all()
    assert all(math.isfinite(value) for value in scores.as_dict().values())


def test_an_empty_reference_beside_a_real_one_changes_no_match() -> None:
    scores = score_captions(["a dog runs", "b"], [["a dog runs", ""], ["b c", ""]])
    assert scores.per_image["ROUGE_L"][0] == 1
    assert scores.per_image["Bleu_3"][0] == pytest.approx(1, abs=1e-6)
    assert np.isfinite(scores.per_image["CIDEr"]).all()


def test_rouge_finds_the_longest_common_subsequence_of_random_texts() -> None:
    rng = random.Random(3)
    for _ in range(60):
        first = rng.choices("abcd", k=rng.randint(1, 9))
        second = rng.choices("abcd", k=rng.randint(1, 9))
        longest = max(
            size
            for size in range(len(first) + 1)
            for part in itertools.combinations(first, size)
            if _is_subsequence(part, second)
        )
        precision, recall = longest / len(first), longest / len(second)
        expected = 2.44 * precision * recall / (recall + 1.44 * precision) if longest else 0.0
        assert rouge_l([first], [[second]])[0] == pytest.approx(expected)


def _is_subsequence(part: tuple[str, ...], whole: list[str]) -> bool:
    rest = iter(whole)
    return all(token in rest for token in part)


def test_long_captions_need_no_more_than_machine_words() -> None:
    text = [str(number % 7) for number in range(300)]
    assert rouge_l([text], [[text]])[0] == 1


def test_corpus_bleu_of_a_part_follows_from_the_counts_of_its_captions() -> None:
    hyps = [tokenise(text) for text in ("a dog runs on the grass", "a cat", "the red bus is here now")]
    refs = [[tokenise(text)] for text in ("a dog runs on the lawn", "a cat sits", "a red bus is here")]
    counts = bleu_counts(hyps, refs)
    np.testing.assert_allclose(bleu_from_counts(counts[1:].sum(0)), bleu(hyps[1:], refs[1:])[0])
    np.testing.assert_allclose(bleu_from_counts(counts.sum(0)), bleu(hyps, refs)[0])


def test_cider_of_a_part_keeps_its_scale_with_the_whole_sets_frequencies() -> None:
    hyps = [["a", "dog"], ["a", "cat"], ["a", "bus"]]
    refs = [[["a", "dog", "runs"]], [["a", "cat", "sits"]], [["a", "big", "bus"]]]
    frequency = DocumentFrequency(refs)
    np.testing.assert_allclose(cider(hyps[:1], refs[:1], frequency), cider(hyps, refs)[:1])
    assert cider(hyps[:1], refs[:1])[0] == 0  # one image: every word is in every image
    assert frequency.images == 3


def test_cider_gives_nothing_for_repeating_the_right_word() -> None:
    refs = [[tokenise("a grey kettle on the stove")], [tokenise("a bus in the street")]]
    once = cider([tokenise("a kettle"), ["a"]], refs)[0]
    often = cider([tokenise("a kettle kettle kettle kettle kettle"), ["a"]], refs)[0]
    assert often < once


@pytest.mark.parametrize(
    ("hyps", "refs", "message"),
    [
        (["a"], [], "1 captions were given with 0 sets"),
        ([], [], "no captions"),
        (["a"], [[]], "without a reference"),
    ],
)
def test_what_cannot_be_scored_is_refused_in_one_sentence(hyps: list[str], refs: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        score_captions(hyps, refs)


def test_strings_instead_of_tokens_are_refused() -> None:
    with pytest.raises(TypeError, match="one string"):
        cider(["a dog"], [["a dog"]])  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("A dog, a cat; and a bird!", "a dog a cat and a bird"),
        ("It's the dog's ball.", "it 's the dog 's ball"),
        ("They can't, don't and cannot.", "they ca n't do n't and can not"),
        ('A sign says "EXIT".', "a sign says exit"),
        ("An upside-down cup (chipped)", "an upside-down cup -lrb- chipped -rrb-"),
        ("Dr. Smith lives on Oak St. near No. 42.", "dr. smith lives on oak st. near no. 42"),
        ("A car wash.", "a car wash"),
        ("Seattle, Wash. in the U.S.", "seattle wash. in the u.s."),
        ("A clock at 10:30 and 1,000 people", "a clock at 10:30 and 1,000 people"),
        ("black/white photo", "black/white photo"),
        ("a bowl of — what? — soup…", "a bowl of what soup"),
        ("  ", ""),
    ],
)
def test_tokens_are_those_of_the_penn_treebank_less_punctuation(text: str, tokens: str) -> None:
    assert " ".join(tokenise(text)) == tokens


def test_only_strings_are_tokenised() -> None:
    with pytest.raises(TypeError, match="expects one caption as a string"):
        tokenise(["a", "dog"])  # type: ignore[arg-type]
