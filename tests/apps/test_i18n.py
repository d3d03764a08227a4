"""Every sentence exists in every language, with the same placeholders, and every key that a page uses exists."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from apps import i18n, purpose, safety, theme
from apps.captioner import LEVELS
from apps.quality import FLAWS


@pytest.fixture(autouse=True)
def fresh() -> None:
    i18n.words.cache_clear()


def test_all_languages_are_complete_and_translated() -> None:
    words = i18n.words()
    assert list(words) == ["en", "zh", "es", "fr", "de", "ar"]
    for code, sentences in words.items():
        if code != "en":
            same = [key for key, text in sentences.items() if text == words["en"][key]]
            # Some words are the same word: "Photo", "Pages", "Conversation", "Assistant", "Verdict".
            assert len(same) < 12, (code, same)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda words: words.pop("captioner.title"), "lack"),
        (lambda words: words.update(extra="x"), "too many"),
        (lambda words: words.update({"captioner.title": " "}), "empty"),
        (lambda words: words.update({"assistant.photo": "Foto"}), "placeholders"),
    ],
)
def test_an_incomplete_translation_is_refused_at_the_start(
    change: object, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for code in i18n.LANGUAGES:
        words = json.loads((i18n._FOLDER / f"{code}.json").read_text(encoding="utf-8"))
        if code == "de":
            change(words)  # type: ignore[operator]
        (tmp_path / f"{code}.json").write_text(json.dumps(words), encoding="utf-8")
    monkeypatch.setattr(i18n, "_FOLDER", tmp_path)
    with pytest.raises(ValueError, match=message):
        i18n.words()
    i18n.words.cache_clear()


def test_placeholders_are_filled_and_an_unknown_key_is_an_error() -> None:
    assert i18n.say("assistant.photo", "de", number=3) == "Foto 3"
    assert i18n.say("assistant.photo", "xx", number=3) == "Photo 3"
    assert i18n.say("assistant.photo") == "Photo {number}"
    with pytest.raises(KeyError):
        i18n.say("no.such.key")


def test_every_key_that_pages_scripts_and_rooms_use_exists() -> None:
    english = i18n.words()["en"]
    used: set[str] = set()
    for path in theme.STATIC.glob("*.html"):
        used |= set(re.findall(r'data-i18n(?:-label|-placeholder)?="([\w.]+)"', path.read_text(encoding="utf-8")))
    for path in theme.STATIC.glob("*.js"):
        text = path.read_text(encoding="utf-8")
        used |= set(
            re.findall(
                r'"((?:app|captioner|assistant|privacy|say|error|tier|again|notice|advice|quick|purpose|history|summary)\.\w+)"',
                text,
            )
        )
    for path in Path(i18n.__file__).parent.glob("*.py"):
        text = path.read_text(encoding="utf-8")
        used |= set(re.findall(r'(?:Trouble|say)\(\s*"([\w]+\.[\w]+)"', text))
    used |= {f"notice.{name}" for name in (*safety.HAZARDS, *purpose.NOTICES, "unseen")} | {
        f"advice.{name}" for name in FLAWS
    }
    used |= {f"level.{name}" for name in LEVELS} | {f"tier.{name}" for name in ("sure", "unsure", "unknown")}
    used |= {f"verdict.{name}" for name in ("pass", "flag", "fail", "not_applicable")}
    used |= {f"privacy.outcome_{name}" for name in ("pass", "flag", "fail")}
    used |= {f"page.{name}" for name in ("captioner", "assistant", "privacy")}
    used |= {f"purpose.{name}" for name in (*purpose.PLANS, "other")}
    assert sorted(used - english.keys()) == []
    assert len(used) > 120


def test_sentences_are_short_enough_to_be_heard() -> None:
    for code, sentences in i18n.words().items():
        long = [key for key, text in sentences.items() if len(text) > 200]
        assert long == [], code
