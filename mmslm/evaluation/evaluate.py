"""Asks a narrator about photos and scores what it says: captions, things named and invented, answers.

`evaluate` wants a caption of each photo in each style and answers to some of its questions, and returns an
`Evaluation` (`mmslm.evaluation.results`): one row per caption and per answer, so that a number that looks odd can be
looked up. Captions are scored against references of the style that was asked for, where photos have them (the scenes
do).

Any object with `say_batch(images, prompts, max_new_tokens) -> list` of replies with `.text` will do. Where it also has
`look_batch(images)`, each picture is looked at once and `say_batch` gets what that returned; where replies also have
`.confidence`, it is kept for calibration.

CIDEr uses the document frequencies of the evaluated photos' references: compare models on the same photos only
(`mmslm.evaluation.compare` refuses anything else). It refuses an empty list of photos and a narrator that returns
another number of replies than it was asked for.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Protocol

from PIL import Image

from mmslm.data.photo import Photo, Question
from mmslm.evaluation.captions import bleu_counts, cider, rouge_l
from mmslm.evaluation.hallucination import SceneThings, Things
from mmslm.evaluation.intervals import DRAWS
from mmslm.evaluation.results import CaptionRow, Evaluation
from mmslm.evaluation.tokens import tokenise
from mmslm.evaluation.vqa import AnswerRow

CAPTION_TOKENS = 48
ANSWER_TOKENS = 12


class Talker(Protocol):
    """What evaluation needs of a narrator: one reply (with `.text`) per image and prompt, in order."""

    def say_batch(
        self, images: Sequence[Image.Image], prompts: Sequence[str], max_new_tokens: int
    ) -> Sequence[Any]: ...


def evaluate(
    narrator: Talker,
    photos: Sequence[Photo],
    *,
    styles: Sequence[str] = ("short", "detailed", "hazard"),
    questions_per_photo: int = 4,
    batch_size: int = 16,
    progress: Callable[[int, int], None] | None = None,
    image_size: int | None = None,
    prompts: Mapping[str, str] | None = None,
    things: Things | None = None,
    private_kinds: Collection[str] | None = None,
    seed: int = 0,
    draws: int = DRAWS,
) -> Evaluation:
    """Asks `narrator` about every photo and scores what it says.

    `image_size` is the side at which photos are drawn for the narrator (their own size by default): give the size that
    the model was trained on. `prompts` maps styles to caption prompts (the house's by default); `things` says what
    texts name and photos show (the embedded scenes' truth by default); `private_kinds` are those whose recall is
    reported apart (the scenes' private-only kinds by default). `progress(done, total)` counts replies, after each
    batch. `seed` chooses the questions (the same for every narrator) and the resamples of the intervals.
    """
    photos = list(photos)
    _check(photos, styles, questions_per_photo, batch_size)
    prompts = _house_prompts() if prompts is None else prompts
    unknown = [style for style in styles if style not in prompts]
    if unknown:
        raise ValueError(f"no prompt for the caption style {unknown[0]!r}; choose from {sorted(prompts)}")
    things = SceneThings() if things is None else things
    if private_kinds is None:
        private_kinds = _scene_private_kinds() if isinstance(things, SceneThings) else ()

    chosen = [_choose(photo, questions_per_photo, seed) for photo in photos]
    total = len(photos) * len(styles) + sum(map(len, chosen))
    captioned: dict[tuple[int, int], Any] = {}  # (style, photo) -> reply
    answered: dict[tuple[int, int], Any] = {}  # (photo, question) -> reply

    def advance() -> None:
        if progress is not None:
            progress(len(captioned) + len(answered), total)

    # A chunk of photos at a time: each is drawn once for all its prompts, and few are in memory at once.
    for start in range(0, len(photos), batch_size):
        chunk = range(start, min(start + batch_size, len(photos)))
        drawn = [photos[place].image(image_size) for place in chunk]
        # A narrator that can look once and answer often is spared the repeated looking.
        look = getattr(narrator, "look_batch", None)
        images: dict[int, Any] = dict(zip(chunk, look(drawn) if callable(look) else drawn, strict=True))
        for number, style in enumerate(styles):
            replies = _ask(narrator, list(images.values()), [prompts[style]] * len(chunk), CAPTION_TOKENS)
            captioned |= {(number, place): reply for place, reply in zip(chunk, replies, strict=True)}
            advance()
        asked = [(place, number) for place in chunk for number in range(len(chosen[place]))]
        # Questions of one kind have prompts of like length, and their answers end at the same time.
        asked.sort(key=lambda key: chosen[key[0]][key[1]].kind)
        for first in range(0, len(asked), batch_size):
            batch = asked[first : first + batch_size]
            texts = [chosen[place][number].question for place, number in batch]
            replies = _ask(narrator, [images[place] for place, _ in batch], texts, ANSWER_TOKENS)
            answered |= dict(zip(batch, replies, strict=True))
            advance()
    # Rows in one order whatever the batches were, so that sums are the same to the last bit.
    said = [(photos[place], styles[number], captioned[number, place]) for number, place in sorted(captioned)]
    answers = [_answer_row(photos[p], chosen[p][number], answered[p, number]) for p, number in sorted(answered)]
    return Evaluation(
        _caption_rows(said, things),
        tuple(answers),
        frozenset(private_kinds),
        n_photos=len(photos),
        n_owners=len({photo.owner for photo in photos}),
        seed=seed,
        draws=draws,
    )


def _ask(narrator: Talker, images: Sequence[Any], prompts: Sequence[str], tokens: int) -> Sequence[Any]:
    replies = narrator.say_batch(images, prompts, tokens)
    if len(replies) != len(prompts):
        raise ValueError(f"the narrator gave {len(replies)} replies to {len(prompts)} prompts; expected one each")
    return replies


def _caption_rows(captioned: Sequence[tuple[Photo, str, Any]], things: Things) -> tuple[CaptionRow, ...]:
    """Scores all captions together (CIDEr weighs words by the whole set) and makes one row of each."""
    if not captioned:
        return ()
    tokens = [tokenise(reply.text) for _, _, reply in captioned]
    cited = [_references(photo, style) for photo, style, _ in captioned]
    references = [[tokenise(caption) for caption in captions] for captions in cited]
    consensus, common, counts = cider(tokens, references), rouge_l(tokens, references), bleu_counts(tokens, references)
    rows = []
    for place, (photo, style, reply) in enumerate(captioned):
        there = things.present(photo)
        rows.append(
            CaptionRow(
                photo=str(photo.id),
                owner=str(photo.owner),
                style=style,
                caption=reply.text,
                references=cited[place],
                cider=float(consensus[place]),
                rouge_l=float(common[place]),
                bleu_counts=tuple(float(value) for value in counts[place]),
                mentioned=None if there is None else tuple(things.mentions(reply.text)),
                present=None if there is None else tuple(sorted(there)),
                confidence=_confidence(reply),
            )
        )
    return tuple(rows)


def _references(photo: Photo, style: str) -> tuple[str, ...]:
    """People's captions in the style that was asked for, where the photo has such, else all of its captions."""
    of_style = getattr(photo, "references", None)
    return tuple(of_style(style)) if callable(of_style) else tuple(photo.captions)


def _answer_row(photo: Photo, question: Question, reply: Any) -> AnswerRow:
    return AnswerRow(
        photo=str(photo.id),
        owner=str(photo.owner),
        kind=question.kind,
        question=question.question,
        expected=question.answer,
        given=reply.text,
        confidence=_confidence(reply),
    )


def _check(photos: Sequence[Photo], styles: Sequence[str], questions: int, batch_size: int) -> None:
    if not photos:
        raise ValueError("no photos were given to evaluate; give at least one")
    if not styles and not questions:
        raise ValueError("neither a caption style nor questions were asked for; give at least one of them")
    if len(set(styles)) != len(styles):
        raise ValueError(f"styles {list(styles)} repeat one; give each once")
    if questions < 0 or batch_size < 1:
        raise ValueError(
            f"questions_per_photo={questions} and batch_size={batch_size} were given; expected at least 0 and 1"
        )
    seen: set[tuple[str, str]] = set()
    for photo in photos:
        if not photo.captions:
            raise ValueError(f"photo {photo.id} has no reference caption to score against; leave it out")
        if (str(photo.owner), str(photo.id)) in seen:
            raise ValueError(f"photo {photo.id} of {photo.owner} was given twice; give each photo once")
        seen.add((str(photo.owner), str(photo.id)))


def _choose(photo: Photo, count: int, seed: int) -> list[Question]:
    """Up to `count` questions, spread over kinds, chosen by the photo alone so that every narrator gets the same."""
    # The salt is text, which Python's generator hashes the same way in every process and on every platform.
    shuffled = random.Random(f"{seed}/{photo.owner}/{photo.id}").sample(list(photo.questions), len(photo.questions))
    turn: dict[str, int] = {}
    ranked = []
    for place, question in enumerate(shuffled):
        turn[question.kind] = turn.get(question.kind, 0) + 1
        ranked.append((turn[question.kind], place, question))
    ranked.sort(key=lambda entry: entry[:2])
    return [question for _, _, question in ranked[:count]]


def _confidence(reply: Any) -> float | None:
    value = getattr(reply, "confidence", None)
    return None if value is None else float(value)


def _house_prompts() -> Mapping[str, str]:
    from mmslm.prompts import CAPTION_PROMPTS

    return CAPTION_PROMPTS


def _scene_private_kinds() -> Collection[str]:
    from mmslm.data.scenes import PRIVATE_KINDS

    return PRIVATE_KINDS
