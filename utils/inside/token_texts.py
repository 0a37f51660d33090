"""Tokens as text: by themselves, in context, and with what is invisible in them spelled out."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BLANK_MARK = "\N{OPEN BOX}"
_SENTENCEPIECE_BLANK = "\N{LOWER ONE EIGHTH BLOCK}"  # how sentencepiece tokenizers write a blank before a word
_UNREADABLE = "\N{REPLACEMENT CHARACTER}"


def vocabulary_texts(tokenizer: "PreTrainedTokenizerBase", token_ids: Iterable[int]) -> Mapping[int, str]:
    """Each token as a text of its own, by id: with its leading blank, and unlike any other token's where it can be.

    A token that is only part of a character is written as its bytes, e.g. <0xe2>.
    """
    return {token_id: _vocabulary_text(tokenizer, token_id) for token_id in sorted(set(token_ids))}


def _vocabulary_text(tokenizer: "PreTrainedTokenizerBase", token_id: int) -> str:
    piece = tokenizer.convert_ids_to_tokens(token_id)
    if not isinstance(piece, str):
        return f"<token {token_id}>"  # the output embeddings have more rows than the tokenizer has tokens
    text = str(tokenizer.decode([token_id], skip_special_tokens=False, clean_up_tokenization_spaces=False))
    if not text or _UNREADABLE in text:
        return _bytes_text(piece) or piece.replace(_SENTENCEPIECE_BLANK, " ")
    return f" {text}" if piece.startswith(_SENTENCEPIECE_BLANK) and not text.startswith(" ") else text


def _bytes_text(piece: str) -> str | None:
    """The bytes of a byte-level tokenizer's piece; None where it is none."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    byte_of = {character: byte for byte, character in bytes_to_unicode().items()}
    if not all(character in byte_of for character in piece):
        return None
    raw = bytes(byte_of[character] for character in piece)
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError:
        return f"<0x{raw.hex()}>"
    return None  # readable: a piece like <0xE2> spells out its byte itself


def texts_in_context(tokenizer: "PreTrainedTokenizerBase", token_ids: Iterable[int]) -> tuple[str, ...]:
    """What each token adds to the text, special tokens and blanks included: joined, the whole text.

    Where several tokens make up one character, the last of them bears it and each of the others is
    written as the replacement character.
    """
    ids = list(token_ids)
    texts, done = [], ""
    for end in range(1, len(ids) + 1):
        so_far = str(tokenizer.decode(ids[:end], skip_special_tokens=False, clean_up_tokenization_spaces=False))
        if so_far.endswith(_UNREADABLE):
            texts.append(_UNREADABLE)
            continue
        texts.append(so_far[len(done) :].lstrip(_UNREADABLE))
        done = so_far
    return tuple(texts)


def visible_text(text: str) -> str:
    """A token's text in one line: blanks as open boxes, line breaks and control characters spelled out."""
    return "".join(BLANK_MARK if character == " " else spelled_out(character) for character in text) or "(nothing)"


def spelled_out(character: str) -> str:
    """The character, or where it cannot be seen its escape, e.g. \\n."""
    return character if character.isprintable() else escaped(character)


def escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
