"""Captions: true of their scene in every word that can be checked, short enough, and varied."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from mmslm.data.scenes import (
    KINDS,
    PLACES,
    PRIVATE_KINDS,
    PRIVATE_PLACES,
    STYLES,
    SYNONYMS,
    ScenePhoto,
    imagine,
    mentioned_kinds,
    present_kinds,
    public_photo,
    sentences,
)
from mmslm.data.scenes.dice import Dice
from mmslm.data.scenes.grammar import caption as grammar_caption

COLOURS = ("red", "yellow", "green", "blue", "purple", "brown", "black", "white")
COUNTS = {"two": 2, "three": 3}


def words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9']+", text)


@pytest.fixture(scope="module")
def told(public_photos: list[ScenePhoto], private_photos: list[ScenePhoto]) -> list[tuple[ScenePhoto, str, str]]:
    """(photo, style, caption), three wordings of each style."""
    return [
        (photo, style, photo.caption(style, variant))
        for photo in public_photos[:600] + private_photos[:600]
        for style in STYLES
        for variant in range(3)
    ]


def test_captions_are_lower_case_and_short_enough(told: list[tuple[ScenePhoto, str, str]]) -> None:
    for _, style, text in told:
        assert text == text.lower()
        assert re.fullmatch(r'[a-z0-9 ,.:"]+', text)
        assert "  " not in text
        assert 1 <= len(text.split()) <= (12 if style == "short" else 35)


def test_captions_name_only_what_is_there(told: list[tuple[ScenePhoto, str, str]]) -> None:
    for photo, _, text in told:
        named = mentioned_kinds(text)
        assert named
        assert named <= photo.scene.kinds, (text, photo.scene.kinds)


def test_colours_counts_and_sizes_are_true(told: list[tuple[ScenePhoto, str, str]]) -> None:
    """Read back from the text with a pattern that knows nothing of the grammar's rules."""
    forms = {word: kind for kind, phrases in SYNONYMS.items() for word in phrases}
    names = "|".join(sorted(map(re.escape, forms), key=len, reverse=True))
    pattern = re.compile(
        r"\b(?:(an?|two|three) )?(?:(small|little|large|big) )?(hot )?"
        rf"(?:({'|'.join(COLOURS)}) )?\b({names})\b(?: in ({'|'.join(COLOURS)})\b| in a? ?({'|'.join(COLOURS)}) pots?)?"
    )
    seen: Counter[str] = Counter()
    for photo, _, text in told:
        for match in pattern.finditer(re.sub(r'"[^"]*"', "", text)):
            number, size, hot, colour, name, dress, pot = match.groups()
            thing = photo.scene.thing(forms[name])
            if number in COUNTS:
                assert thing.count == COUNTS[number], text
                seen["count"] += 1
            if number in ("a", "an"):
                assert thing.count == 1, text
            if size:
                assert thing.size == {"small": "small", "little": "small"}.get(size, "large"), text
                seen["size"] += 1
            for said in (colour, dress, pot):
                if said:
                    assert thing.colour == said, text
                    seen["colour"] += 1
            if hot:
                assert thing.hot, text
    assert seen["count"] > 300
    assert seen["size"] > 300
    assert seen["colour"] > 3000


def test_articles_fit(told: list[tuple[ScenePhoto, str, str]]) -> None:
    for _, _, text in told:
        assert not re.search(r"\ba [aeiou]", text), text
        assert not re.search(r"\ban [^aeiou]", text), text
        assert not re.search(r"\b(is|are) (two|three)\b", text) or " are " in text
        assert not re.search(r"\bthere is (two|three)\b|\bthere are an? ", text), text


def test_place_light_and_sides_are_true(told: list[tuple[ScenePhoto, str, str]]) -> None:
    place_of = {form: name for name, place in PLACES.items() for form in (name, *place.forms)}
    for photo, _, text in told:
        scene = photo.scene
        plain = re.sub(r'"[^"]*"', "", text)
        for form, name in place_of.items():
            if re.search(rf"\b{form}\b(?! (?:sign|kni))", plain):
                assert name == scene.place, text
        for word, light in {
            "dim": "dim",
            "dark": "dim",
            "warm": "warm",
            "bright": "bright",
            "well lit": "bright",
        }.items():
            if re.search(rf"\b{word}\b", plain):
                assert scene.light == light, text
        positions = {thing.position for thing in scene.things}
        for phrase, position in {"on the left": "left", "to the right": "right", "in the centre": "middle"}.items():
            if phrase in plain:
                assert position in positions, text


def test_quoted_text_is_printed_in_the_scene(told: list[tuple[ScenePhoto, str, str]]) -> None:
    quotes = 0
    for photo, _, text in told:
        for quoted in re.findall(r'"([^"]*)"', text):
            assert quoted in photo.scene.texts, text
            quotes += 1
    assert quotes > 200


def test_relations_are_true_of_the_boxes(public_photos: list[ScenePhoto], private_photos: list[ScenePhoto]) -> None:
    count: Counter[str] = Counter()
    for photo in public_photos + private_photos:
        for relation in photo.scene.relations:
            first, second = photo.scene.thing(relation.subject).box, photo.scene.thing(relation.object).box
            count[relation.word] += 1
            overlaps = min(first[2], second[2]) - max(first[0], second[0])
            if relation.word == "above":
                assert first[3] < second[1] + 0.05
                assert overlaps > 0
            elif relation.word == "under":
                assert overlaps == pytest.approx(first[2] - first[0])
                assert first[3] <= second[3] + 0.02
            elif relation.word == "on":
                assert overlaps > 0
                assert second[1] < first[3] < second[3]
            else:
                assert overlaps > -0.22
    assert set(count) == {"above", "under", "on", "next to"}
    assert min(count.values()) > 20


def test_dangers_come_first_and_only_where_there_are_any(told: list[tuple[ScenePhoto, str, str]]) -> None:
    seen = {True: 0, False: 0}
    for photo, style, text in told:
        if style != "hazard":
            continue
        hazards = set(photo.scene.hazards)
        seen[bool(hazards)] += 1
        first = text.split(". ")[0]
        if hazards:
            assert re.match(r"(careful|watch out|warning|danger): ", text), text
            assert mentioned_kinds(first.replace("on the table", "")) <= hazards, text
            assert mentioned_kinds(first), text
        else:
            assert re.match(r"(no danger seen|nothing dangerous here|all clear)\. ", text), text
    assert min(seen.values()) > 200


def test_what_is_a_danger(public_photos: list[ScenePhoto], private_photos: list[ScenePhoto]) -> None:
    for photo in public_photos + private_photos:
        scene = photo.scene
        for thing in scene.things:
            expected = (
                thing.kind in ("stairs", "knife", "medicine bottle")
                or (thing.kind in ("car", "bus") and scene.place == "street")
                or (thing.kind in ("stove", "kettle") and thing.hot)
            )
            assert thing.hazard == expected


def test_five_captions_of_mixed_styles(public_photos: list[ScenePhoto]) -> None:
    for photo in public_photos[:200]:
        assert len(photo.captions) == 5
        assert photo.captions[0] == photo.caption("short")
        assert photo.captions[2:4] == (photo.caption("detailed"), photo.caption("detailed", 1))
        assert photo.captions[4] == photo.caption("hazard")


def test_references_vary_but_are_repeatable(public_photos: list[ScenePhoto]) -> None:
    different = [len(set(photo.references("detailed"))) for photo in public_photos[:300]]
    assert sum(different) / len(different) > 4
    assert public_photos[3].references("short", 7) == public_photo(3).references("short", 7)
    assert len(public_photos[3].references("hazard", 7)) == 7


def test_the_vocabulary_is_small_but_not_poor(told: list[tuple[ScenePhoto, str, str]]) -> None:
    vocabulary = {word for _, _, text in told for word in words(text)}
    assert 180 < len(vocabulary) < 500
    shapes = {re.sub("|".join(map(re.escape, vocabulary & set(COLOURS))), "C", text) for _, _, text in told}
    assert len(shapes) > 0.5 * len(told)


def test_sentences_speak_of_everything_also_the_private() -> None:
    lines = [line for index in range(600) for line in sentences(index)]
    assert len(lines) == 3 * 600
    named = set().union(*(mentioned_kinds(line) for line in lines))
    assert named == set(KINDS)
    text = " ".join(lines)
    for place in PLACES:
        assert f" {place}" in text
    share = sum(bool(mentioned_kinds(line) & set(PRIVATE_KINDS)) for line in lines) / len(lines)
    assert share > 0.25
    assert all(f" {place}" in text for place in PRIVATE_PLACES)


def test_mentioned_kinds_takes_the_longest_phrase() -> None:
    assert mentioned_kinds("a medicine bottle on the left") == {"medicine bottle"}
    assert mentioned_kinds("a bottle and medicine") == {"bottle", "medicine bottle"}
    assert mentioned_kinds("a stop sign") == {"stop sign"}
    assert mentioned_kinds("a Sign, two people and a COUCH.") == {"sign", "person", "sofa"}
    assert mentioned_kinds("a letter box") == {"mailbox"}
    assert mentioned_kinds("a frying pan near a walking stick") == {"frying pan", "cane"}
    assert mentioned_kinds("kitchen knives") == {"knife"}
    assert mentioned_kinds("a pair of shoes") == {"shoes"}


def test_mentioned_kinds_ignores_parts_of_words_quotes_and_scenery() -> None:
    assert mentioned_kinds("a carpet, a bookish category, the catalogue and cups-and-balls") == {"cup", "ball"}
    assert mentioned_kinds('the box says "books"') == {"box"}
    assert mentioned_kinds("a wall, a floor, the sky and a road") == set()
    assert mentioned_kinds("") == set()


def test_synonyms_are_of_one_kind_only() -> None:
    owners = Counter(phrase for phrases in SYNONYMS.values() for phrase in phrases)
    assert max(owners.values()) == 1
    assert set(SYNONYMS) == set(KINDS)
    for kind, phrases in SYNONYMS.items():
        for phrase in phrases:
            assert mentioned_kinds(f"there is {phrase} here") == {kind}


def test_present_kinds_are_the_things(public_photos: list[ScenePhoto]) -> None:
    scene = public_photos[0].scene
    assert present_kinds(scene) == {thing.kind for thing in scene.things}


def test_unknown_styles_are_refused() -> None:
    with pytest.raises(ValueError, match="expected one of short, detailed, hazard"):
        public_photo(0).caption("poetic")
    with pytest.raises(ValueError, match="expected one of short, detailed, hazard"):
        grammar_caption(public_photo(0).scene, "poetic", Dice(0))


def test_a_scene_without_the_kind_says_so() -> None:
    with pytest.raises(KeyError, match="there is no kettle"):
        public_photo(0).scene.thing("kettle")


def test_imagined_scenes_are_told_and_asked_truly() -> None:
    seen = set()
    for index in range(200):
        imagined = imagine(index)
        seen |= imagined.scene.kinds
        assert [text for _, text in imagined.captions] == sentences(index)
        assert [style for style, _ in imagined.captions] == list(STYLES)
        for _, text in imagined.captions:
            assert mentioned_kinds(text) <= imagined.scene.kinds
        for question in imagined.questions:
            if question.kind == "presence":
                assert question.answer == (
                    "yes" if mentioned_kinds(question.question) <= imagined.scene.kinds else "no"
                )
    assert seen >= set(PRIVATE_KINDS)
