"""BLEU-1..4, ROUGE-L and CIDEr of captions, equal to the reference scorer of COCO captions.

The numbers are those of `pycocoevalcap` (the coco-caption code) on the same tokens, corpus and per image, to within
floating-point rounding; tests hold them to 1e-4 against its stored output. That includes its quirks, each marked below,
because a score that is "more correct" than everybody else's compares with nobody's.

Papers: BLEU, Papineni et al., ACL 2002; ROUGE-L, Lin, 2004; CIDEr (the CIDEr-D variant), Vedantam et al., CVPR 2015.

There is no METEOR here: the full metric needs WordNet paraphrase tables and a Java program, and less than that must not
carry the name. These functions refuse lists of unequal length, no captions at all and an image without references.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmslm.evaluation.tokens import tokenise

Tokens = Sequence[str]
Floats = NDArray[np.float64]

MAX_ORDER = 4
# The reference implementation's guards against a division by zero; they show in its per-image numbers.
_TINY, _SMALL = 1e-15, 1e-9
_ROUGE_BETA = 1.2
_CIDER_SIGMA = 6.0
_CIDER_SCALE = 10.0


@dataclass(frozen=True)
class CaptionScores:
    """Scores of N captions. `bleu` [4] is of the whole corpus (not a mean of images); the others are means of images.

    Ranges: BLEU and ROUGE-L 0 to 1, CIDEr 0 to 10. `per_image` maps "Bleu_1".."Bleu_4", "ROUGE_L" and "CIDEr" to [N].
    """

    bleu: tuple[float, float, float, float]
    rouge_l: float
    cider: float
    per_image: dict[str, Floats]

    def as_dict(self) -> dict[str, float]:
        """The corpus scores under the names that the reference scorer prints."""
        names = {f"Bleu_{k + 1}": self.bleu[k] for k in range(MAX_ORDER)}
        return {**names, "ROUGE_L": self.rouge_l, "CIDEr": self.cider}


class DocumentFrequency:
    """In how many images' references each n-gram occurs: what CIDEr calls common and therefore worth little.

    Keep one of the whole test set to score parts of it (one owner, one style) on the same scale. `images` is the number
    of images counted; with one image every n-gram is everywhere and CIDEr is 0 by its definition.
    """

    def __init__(self, references: Iterable[Sequence[Tokens]]) -> None:
        counts: Counter[tuple[str, ...]] = Counter()
        images = 0
        for captions in references:
            counts.update({gram for caption in captions for gram in _ngrams(caption)})
            images += 1
        self.images = images
        self._counts = counts

    def weight(self, gram: tuple[str, ...]) -> float:
        """Inverse document frequency of an n-gram in natural-log units; an n-gram never seen counts as seen once."""
        return math.log(self.images) - math.log(max(1.0, self._counts.get(gram, 0)))


def score_captions(
    hypotheses: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    tokenised: bool = False,
    frequency: DocumentFrequency | None = None,
) -> CaptionScores:
    """Scores N captions against each image's references, in the same order.

    With `tokenised=True` the texts are already PTB tokens joined by spaces and are only split; otherwise our own
    PTB-like tokeniser runs. `frequency` replaces the document frequencies of `references` in CIDEr.
    """
    split = str.split if tokenised else tokenise
    hyps: list[list[str]] = [split(text) for text in hypotheses]
    refs: list[list[list[str]]] = [[split(text) for text in texts] for texts in references]
    bleu_corpus, bleu_images = bleu(hyps, refs)
    rouge = rouge_l(hyps, refs)
    consensus = cider(hyps, refs, frequency)
    per_image = {f"Bleu_{k + 1}": bleu_images[:, k] for k in range(MAX_ORDER)}
    per_image |= {"ROUGE_L": rouge, "CIDEr": consensus}
    first, second, third, fourth = (float(value) for value in bleu_corpus)
    return CaptionScores((first, second, third, fourth), float(rouge.mean()), float(consensus.mean()), per_image)


def bleu(hypotheses: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> tuple[Floats, Floats]:
    """BLEU-1..4 of tokenised captions: (corpus [4], per image [N, 4]), brevity by the closest reference length.

    Corpus BLEU adds counts over images before it divides; the mean of the per-image values is a different number.
    """
    counts = bleu_counts(hypotheses, references)
    return bleu_from_counts(counts.sum(0)), bleu_from_counts(counts)


def bleu_counts(hypotheses: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> Floats:
    """What BLEU needs to know of each caption, [N, 10]: correct n-grams [4], all n-grams [4], length, closest length.

    Counts add up: the sum over any set of captions gives that set's corpus BLEU through `bleu_from_counts`.
    """
    _check(hypotheses, references)
    counts = np.zeros((len(hypotheses), 2 * MAX_ORDER + 2))
    for row, (tokens, captions) in enumerate(zip(hypotheses, references, strict=True)):
        ceiling: dict[tuple[str, ...], int] = {}
        for caption in captions:
            for gram, count in _ngrams(caption).items():
                ceiling[gram] = max(ceiling.get(gram, 0), count)
        for gram, count in _ngrams(tokens).items():
            counts[row, len(gram) - 1] += min(count, ceiling.get(gram, 0))
        counts[row, MAX_ORDER : 2 * MAX_ORDER] = np.maximum(0, len(tokens) - np.arange(MAX_ORDER))
        closest = min((abs(len(caption) - len(tokens)), len(caption)) for caption in captions)[1]
        counts[row, -2:] = len(tokens), closest
    return counts


def bleu_from_counts(counts: Floats) -> Floats:
    """BLEU-1..4 [..., 4] from summed counts [..., 10]: clipped precisions' geometric mean times the brevity penalty."""
    correct, guessed = counts[..., :MAX_ORDER], counts[..., MAX_ORDER : 2 * MAX_ORDER]
    precision = np.cumprod((correct + _TINY) / (guessed + _SMALL), axis=-1)
    value = precision ** (1.0 / np.arange(1, MAX_ORDER + 1))
    ratio = (counts[..., -2] + _TINY) / (counts[..., -1] + _SMALL)
    # An empty caption has a ratio near 1e-16; the exponential underflows to exactly 0, the score it deserves.
    penalty = np.where(ratio < 1, np.exp(1 - 1 / np.minimum(ratio, 1)), 1.0)
    return np.asarray(value * penalty[..., None], dtype=np.float64)


def rouge_l(hypotheses: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> Floats:
    """ROUGE-L per image [N]: F-measure (beta 1.2) of the longest common subsequence.

    As in the reference scorer, the best precision and the best recall may come from different captions.
    """
    _check(hypotheses, references)
    scores = np.zeros(len(hypotheses))
    for row, (tokens, captions) in enumerate(zip(hypotheses, references, strict=True)):
        positions: dict[str, int] = {}
        for place, token in enumerate(tokens):
            positions[token] = positions.get(token, 0) | (1 << place)
        precision = recall = 0.0
        for caption in captions:
            common = _common_length(positions, len(tokens), caption)
            precision = max(precision, common / max(1, len(tokens)))
            recall = max(recall, common / max(1, len(caption)))
        if precision > 0 and recall > 0:
            square = _ROUGE_BETA**2
            scores[row] = (1 + square) * precision * recall / (recall + square * precision)
    return scores


def _common_length(positions: dict[str, int], length: int, other: Tokens) -> int:
    """Length of the longest common subsequence, one machine word per row of the table (Hyyro, 2004).

    `positions` holds for each token of the first text the bit mask of its places; a cleared bit marks a step of the
    subsequence, so that the count of cleared bits is the answer.
    """
    mask = (1 << length) - 1
    state = mask
    for token in other:
        hits = state & positions.get(token, 0)
        state = ((state + hits) | (state - hits)) & mask
    return length - state.bit_count()


def cider(
    hypotheses: Sequence[Tokens],
    references: Sequence[Sequence[Tokens]],
    frequency: DocumentFrequency | None = None,
) -> Floats:
    """CIDEr-D per image [N], 0 to 10: tf-idf weighted n-gram similarity to the references, clipped, length-penalised.

    Document frequencies come from `references` unless `frequency` is given. A caption that repeats a word gains nothing
    (counts are clipped to the reference's), one of another length is damped by a Gaussian of sigma 6.
    """
    _check(hypotheses, references)
    frequency = frequency or DocumentFrequency(references)
    scores = np.zeros(len(hypotheses))
    for row, (tokens, captions) in enumerate(zip(hypotheses, references, strict=True)):
        vectors, norms = _weighted(tokens, frequency)
        total = 0.0
        for caption in captions:
            other, other_norms = _weighted(caption, frequency)
            # The reference measures length in bigrams: one less than tokens, but 0 for one token and for none alike.
            difference = max(0, len(tokens) - 1) - max(0, len(caption) - 1)
            damping = math.exp(-(difference**2) / (2 * _CIDER_SIGMA**2))
            for order in range(MAX_ORDER):
                scale = norms[order] * other_norms[order]
                if scale == 0:
                    continue
                theirs = other[order]
                product = sum(
                    min(value, theirs[gram]) * theirs[gram] for gram, value in vectors[order].items() if gram in theirs
                )
                total += damping * product / scale
        scores[row] = _CIDER_SCALE * total / (MAX_ORDER * len(captions))
    return scores


def _weighted(tokens: Tokens, frequency: DocumentFrequency) -> tuple[list[dict[tuple[str, ...], float]], list[float]]:
    """tf-idf vectors of a text, one for each order 1..4, and their Euclidean norms."""
    vectors: list[dict[tuple[str, ...], float]] = [{} for _ in range(MAX_ORDER)]
    for gram, count in _ngrams(tokens).items():
        vectors[len(gram) - 1][gram] = count * frequency.weight(gram)
    return vectors, [math.sqrt(sum(value * value for value in vector.values())) for vector in vectors]


def _ngrams(tokens: Tokens) -> Counter[tuple[str, ...]]:
    """Counts of all n-grams of orders 1..4."""
    words = list(tokens)
    counts: Counter[tuple[str, ...]] = Counter()
    for order in range(1, MAX_ORDER + 1):
        counts.update(zip(*(words[start:] for start in range(order)), strict=False))
    return counts


def _check(hypotheses: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> None:
    if len(hypotheses) != len(references):
        raise ValueError(
            f"{len(hypotheses)} captions were given with {len(references)} sets of references; give one set per caption"
        )
    if not hypotheses:
        raise ValueError("no captions were given to score; give at least one caption with its references")
    for row, captions in enumerate(references):
        if not captions:
            raise ValueError(f"caption {row} came without a reference; give at least one or leave the image out")
    for kind, texts in (("caption", hypotheses[:1]), ("reference", references[0][:1])):
        if isinstance(texts[0], str):
            raise TypeError(
                f"a {kind} was given as one string; expected a list of tokens: use tokenise or score_captions"
            )
