"""The tokenizer: sentencepiece trains the pieces (unigram, byte fallback), transformers carries them.

Any text comes back as it was, byte for byte: characters outside the vocabulary become byte tokens, spaces are kept as
they are (no U+2581 stands for them inside the wrapper, so a text that holds that character survives too), and text from
people is never read as a special token unless the caller says so (`encode_text`). Unigram segmentation is by Kudo 2018
(arXiv:1804.10959). Words carry their leading space, so replies in a conversation start with one.

It refuses vocabularies that are too small for the bytes, and an empty corpus.
"""

import io
import logging
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

logger = logging.getLogger(__name__)

PAD, BOS, EOS, UNK, IMAGE, USER, ASSISTANT = "<pad>", "<bos>", "<eos>", "<unk>", "<image>", "<user>", "<assistant>"
SPECIAL_TOKENS = (PAD, BOS, EOS, UNK, IMAGE, USER, ASSISTANT)
_META = "\u2581"  # sentencepiece's sign for a space
_PRINTABLE = "".join(chr(code) for code in range(33, 127))
SMALLEST_VOCABULARY = len(SPECIAL_TOKENS) + 256 + len(_PRINTABLE) + 2

# A conversation: <bos> images <user> PROMPT <assistant> REPLY <eos>. Pictures before the first word of a user's turn
# stand before <user>; pictures between words stand where they are.
CHAT_TEMPLATE = """\
{{- bos_token -}}
{%- for message in messages -%}
{%- set ns = namespace(opened=false) -%}
{%- set parts = [{'type': 'text', 'text': message.content}] if message.content is string else message.content -%}
{%- for part in parts -%}
{%- if part.type == 'image' -%}<image>
{%- else -%}
{%- if not ns.opened -%}{{- '<' + message.role + '>' -}}{%- set ns.opened = true -%}{%- endif -%}
{{- ' ' + part.text -}}
{%- endif -%}
{%- endfor -%}
{%- if message.role == 'assistant' -%}{{- eos_token -}}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}<assistant>{%- endif -%}
"""


class MMSLMTokenizer(PreTrainedTokenizerFast):
    """The transformers tokenizer around the trained pieces; `save_pretrained` writes tokenizer.json and its config."""

    model_input_names = ["input_ids", "attention_mask", "mm_token_type_ids"]  # noqa: RUF012

    @property
    def image_token(self) -> str:
        """The placeholder of a picture in text."""
        return IMAGE

    @property
    def image_token_id(self) -> int:
        """Its id."""
        return self._id(IMAGE)

    @property
    def user_token_id(self) -> int:
        """The id that opens a question."""
        return self._id(USER)

    @property
    def assistant_token_id(self) -> int:
        """The id that opens a reply."""
        return self._id(ASSISTANT)

    def _id(self, token: str) -> int:
        found = self.convert_tokens_to_ids(token)
        assert isinstance(found, int)
        return found

    def encode_text(self, text: str) -> list[int]:
        """Ids of a person's text, in which `<image>` and the like are plain characters."""
        ids = self(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return list(ids)

    def decode_text(self, ids: Sequence[int]) -> str:
        """The text of ids without special tokens; exact inverse of `encode_text`. Broken UTF-8 becomes U+FFFD."""
        table = self.token_bytes
        return b"".join(table[i] for i in ids).decode("utf-8", errors="replace")

    @cached_property
    def token_bytes(self) -> tuple[bytes, ...]:
        """What each id adds to a text, as UTF-8 bytes; nothing for special tokens."""
        special = set(self.all_special_ids)
        pieces = self.convert_ids_to_tokens(list(range(len(self))))
        decoder = str(self.backend_tokenizer.decoder)
        if "ByteLevel" in decoder:  # a converted checkpoint whose pieces spell bytes with letters (GPT-2's alphabet)
            alphabet = _letters_of_bytes()
            return tuple(
                b""
                if i in special
                else bytes(alphabet[c] for c in piece)
                if set(piece) <= set(alphabet)
                else piece.encode()
                for i, piece in enumerate(pieces)
            )
        spaced = _META in decoder  # a converted checkpoint whose pieces spell spaces with U+2581
        byte = re.compile(r"<0x([0-9A-F]{2})>")
        found = []
        for index, piece in enumerate(pieces):
            match = byte.fullmatch(piece)
            text = piece.replace(_META, " ") if spaced else piece
            found.append(b"" if index in special else bytes.fromhex(match[1]) if match else text.encode())
        return tuple(found)

    @classmethod
    def load(cls, folder: str | Path) -> "MMSLMTokenizer":
        """From a model directory. Raises FileNotFoundError with what is missing."""
        path = Path(folder)
        if not (path / "tokenizer.json").is_file():
            raise FileNotFoundError(f"{path} holds no tokenizer.json; give a model directory that mmslm wrote.")
        loaded = cls.from_pretrained(path, local_files_only=True)
        assert isinstance(loaded, cls)
        return loaded


def _letters_of_bytes() -> dict[str, int]:
    """The letters with which byte-level tokenizers write the 256 bytes: printable ones stand for themselves, the others
    are numbered from U+0100 in order."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + k): byte for k, byte in enumerate(others)}


def _train_pieces(lines: Iterable[str], vocab_size: int, character_coverage: float) -> bytes:
    import sentencepiece

    if vocab_size < SMALLEST_VOCABULARY:
        raise ValueError(
            f"A vocabulary of {vocab_size} is too small: specials, 256 bytes and printable ASCII take "
            f"{SMALLEST_VOCABULARY}; give more."
        )
    kept = (line for line in lines if line.strip())
    first = next(iter(kept), None)
    if first is None:
        raise ValueError("The corpus has no text to train a tokenizer on; give at least one line that is not blank.")

    def sentences() -> Iterable[str]:
        yield first
        yield from kept

    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences()),
            model_writer=model,
            model_type="unigram",
            vocab_size=vocab_size,
            byte_fallback=True,
            character_coverage=character_coverage,
            required_chars=_PRINTABLE,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=True,
            split_digits=True,
            hard_vocab_limit=False,
            pad_id=0,
            bos_id=1,
            eos_id=2,
            unk_id=3,
            pad_piece=PAD,
            bos_piece=BOS,
            eos_piece=EOS,
            unk_piece=UNK,
            control_symbols=[IMAGE, USER, ASSISTANT],
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise ValueError(f"sentencepiece could not train a vocabulary of {vocab_size}: {error}") from error
    return model.getvalue()


def wrap_pieces(model: bytes) -> MMSLMTokenizer:
    """A transformers tokenizer from a serialised sentencepiece unigram model with byte fallback."""
    import sentencepiece

    pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
    scores = [pieces.get_score(i) for i in range(pieces.get_piece_size())]
    ordinary = [
        i
        for i in range(len(scores))
        if not (pieces.is_control(i) or pieces.is_byte(i) or pieces.is_unknown(i) or pieces.is_unused(i))
    ]
    # Control and byte pieces must not win against the characters that spell them, which are all in the vocabulary.
    never = 10.0 * min((scores[i] for i in ordinary), default=-1.0) - 100.0
    plain = set(ordinary)
    vocab = [
        (
            pieces.id_to_piece(i).replace(_META, " ") if i in plain else pieces.id_to_piece(i),
            scores[i] if i in plain else never,
        )
        for i in range(len(scores))
    ]
    tokenizer = Tokenizer(models.Unigram(vocab, unk_id=pieces.unk_id(), byte_fallback=True))
    # One space belongs to the word after it; pieces never reach across words, as in training.
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r" ?[^ ]+| +(?= )| +$"), behavior="isolated")
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    return MMSLMTokenizer(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNK,
        extra_special_tokens=[IMAGE, USER, ASSISTANT],
        clean_up_tokenization_spaces=False,
        padding_side="right",
        chat_template=CHAT_TEMPLATE,
    )


def train_tokenizer(
    lines: Iterable[str], path: str | Path | None, vocab_size: int, *, character_coverage: float = 0.9995
) -> MMSLMTokenizer:
    """Train on `lines` (one sentence each) and write the tokenizer to the folder `path` (None: do not write).

    vocab_size: pieces, specials and bytes included; a small corpus may give fewer. The same lines give the same
    tokenizer. Raises ValueError for a corpus without text or a vocabulary that is too small.
    """
    tokenizer = wrap_pieces(_train_pieces(lines, vocab_size, character_coverage))
    if path is not None:
        Path(path).mkdir(parents=True, exist_ok=True)
        tokenizer.save_pretrained(path)
        logger.info("Wrote a tokenizer of %d pieces to %s", len(tokenizer), path)
    return tokenizer


__all__: list[Any] = ["SPECIAL_TOKENS", "MMSLMTokenizer", "train_tokenizer", "wrap_pieces"]
