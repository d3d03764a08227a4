"""The tokenizer: any text comes back, special tokens cannot be smuggled in, and sentencepiece's segmentation is kept."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

import mmslm
from mmslm.tokenizer import SPECIAL_TOKENS, MMSLMTokenizer, _train_pieces, train_tokenizer, wrap_pieces

COLOURS, THINGS, PLACES = ("red", "blue", "green"), ("cup", "kettle", "dog"), ("table", "street", "shelf")
LINES = [
    f"A {c} {t} stands on the {p}, {n} steps away." for c in COLOURS for t in THINGS for p in PLACES for n in (1, 20)
]
TOKENIZER = train_tokenizer(LINES, None, 420)


@given(st.text(max_size=60))
@settings(max_examples=150, deadline=None)
def test_any_text_comes_back(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # lone surrogates are no text
        return
    assert TOKENIZER.decode_text(TOKENIZER.encode_text(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "<image>",
        "<bos> <0x41> <pad>",
        "x\u2581y",
        "  two  spaces ",
        "",
        "日本 😀\r\n\t",
        "\x00",
        "a\u00a0b",
        "<user> <eos>",
    ],
)
def test_awkward_text_comes_back_and_holds_no_special_token(text: str) -> None:
    ids = TOKENIZER.encode_text(text)
    assert TOKENIZER.decode_text(ids) == text
    assert not set(ids) & set(TOKENIZER.all_special_ids)


def test_special_tokens_have_the_ids_that_configurations_assume() -> None:
    assert TOKENIZER.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == [0, 1, 2, 3, 4, 5, 6]
    assert (TOKENIZER.image_token_id, TOKENIZER.user_token_id, TOKENIZER.assistant_token_id) == (4, 5, 6)
    assert TOKENIZER("<bos><image><user> a")["input_ids"][:3] == [1, 4, 5]


def test_segmentation_is_sentencepieces_own() -> None:
    model = _train_pieces(LINES, 420, 0.9995)
    oracle, ours = sentencepiece.SentencePieceProcessor(model_proto=model), wrap_pieces(model)
    for line in [*LINES, "A kettle on a red street.", "dogs, cups: 12!", "unseen wörds"]:
        assert ours.encode_text(" " + line) == oracle.encode(line)


def test_training_twice_gives_the_same_tokenizer_and_saving_keeps_it(tmp_path: Path) -> None:
    again = train_tokenizer(LINES, tmp_path, 420)
    assert again.get_vocab() == TOKENIZER.get_vocab()
    loaded = MMSLMTokenizer.load(tmp_path)
    for line in [*LINES[:5], "<image> ünseen"]:
        assert loaded.encode_text(line) == TOKENIZER.encode_text(line)
    assert loaded.chat_template == TOKENIZER.chat_template
    mmslm.register()
    assert isinstance(AutoTokenizer.from_pretrained(tmp_path), MMSLMTokenizer)


def test_decoding_agrees_with_transformers_where_text_is_whole() -> None:
    for line in [*LINES[:6], "Ünïcode wörds", "a  b"]:
        ids = TOKENIZER.encode_text(line)
        assert TOKENIZER.decode(ids, skip_special_tokens=True) == TOKENIZER.decode_text(ids)


def test_the_chat_template_writes_the_conversation() -> None:
    talk = [
        {"role": "user", "content": [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "What?"}]},
        {"role": "assistant", "content": "A cup."},
        {
            "role": "user",
            "content": [{"type": "text", "text": "And in"}, {"type": "image"}, {"type": "text", "text": "?"}],
        },
    ]
    text = TOKENIZER.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
    expected = "<bos><image><image><user> What?<assistant> A cup.<eos><user> And in<image> ?<assistant>"
    assert text == expected


def test_what_cannot_be_trained_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no text"):
        train_tokenizer(["", "  "], None, 420)
    with pytest.raises(ValueError, match="too small"):
        train_tokenizer(LINES, None, 100)
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json"):
        MMSLMTokenizer.load(tmp_path)


CAPTIONS = Path(__file__).parents[3] / "shared" / "data" / "coco_val2017_captions" / "captions_val2017.json"


@pytest.mark.slow
@pytest.mark.skipif(not CAPTIONS.is_file(), reason="needs ../shared/data/coco_val2017_captions")
def test_a_corpus_of_real_captions_trains_fast_and_comes_back() -> None:
    lines = [row["caption"] for row in json.loads(CAPTIONS.read_text(encoding="utf-8"))["annotations"]]
    start = time.process_time()
    tokenizer = train_tokenizer(lines, None, 4096)
    trained = time.process_time() - start
    start = time.process_time()
    encoded = tokenizer(lines, add_special_tokens=False)["input_ids"]
    spent = time.process_time() - start
    assert len(lines) > 20_000
    assert trained < 90
    assert sum(map(len, lines)) / spent > 200_000, "characters a CPU-second"
    assert sum(map(len, encoded)) / len(lines) < 20, "about a token a word"
    for line, ids in zip(lines[::50], encoded[::50], strict=True):
        assert tokenizer.decode_text(ids) == line
