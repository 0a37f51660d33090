"""One reply to a conversation, in one or several columns, token by token: what every front of the chat shows.

A column is the conversation's answer under one steering. All columns are rows of one batch behind one prompt, which
runs once. A column without steering, or with multiplier 0, is the model as it is: both are the same row.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from utils.errors import UserError
from utils.evaluation.kinds import row_seed
from utils.model.chat_format import Message, PromptTokens
from utils.model.generation import Decoding, DecodingState, GenerationRow
from utils.model.steering import Steering, check_range

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from llama_wrapper import LlamaWrapper

EndReason = Literal["stop", "length", "context"]
"""The model ended its answer; it is as long as was asked for; the model's context is full."""
_UNREADABLE = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True, eq=False)
class Probe:
    """What tokens are projected on: a vector, at the output of a layer."""

    layer: int
    vector: Tensor
    """[d_model]."""


@dataclass(frozen=True, eq=False)
class ReplySettings:
    """How to answer."""

    columns: tuple[tuple[Steering, ...], ...] = ((),)
    """The steerings of each column; none for the model as it is."""
    probe: Probe | None = None
    system_prompt: str | None = None
    temperature: float = 0.0
    """0 takes the most likely token."""
    seed: int = 0
    max_new_tokens: int = 200


@dataclass(frozen=True)
class Token:
    """A token of a column's answer."""

    column: int
    token_id: int
    text: str
    """What it adds to the answer; empty for a part of a character."""
    projection: float | None
    """Cosine of the residual stream with the probe's vector where this token goes in, steering included."""


@dataclass(frozen=True)
class End:
    """A column's answer is whole."""

    column: int
    reason: EndReason
    text: str
    """Without special tokens and without blanks around it, as results have it."""
    token_ids: tuple[int, ...]
    """The end token, where one came, is the last."""
    rest: str = ""
    """Of the text, what no token has brought: parts of a character that has stayed one."""


def reply(model: "LlamaWrapper", history: Sequence[Message], settings: ReplySettings) -> Iterator[Token | End]:
    """Answer a conversation.

    A token comes when it has gone through the model, which is when its projection is known.

    Args:
        model: Who answers.
        history: The turns so far; the last one is the user's.
        settings: How, and in which columns.

    Yields:
        The tokens of all columns as they come, and each column's end.

    Raises:
        UserError: If the conversation does not fit into the model's context, or a steering leaves the range of its
            arithmetic.
    """
    prompt = model.chat_format.encode_conversation(history, settings.system_prompt)
    n_new, reason = room_for_answer(model, prompt, settings.max_new_tokens)
    columns = [tuple(one for one in column if one.multiplier != 0) for column in settings.columns]
    check_range(columns, model.dtype)
    rows, columns_of = _distinct_rows(prompt, columns, settings.seed)
    decoding = Decoding(n_new, model.end_ids, model.runtime.pad_id, settings.temperature)
    for event in _answer_rows(model, rows, decoding, settings.probe, reason):
        for column in columns_of[event.column]:
            yield _in_column(event, column)


def room_for_answer(model: "LlamaWrapper", prompt: PromptTokens, max_new_tokens: int) -> tuple[int, EndReason]:
    """How many tokens an answer may have, and why it ends where it is longer.

    Raises:
        UserError: If there is no room for one.
    """
    switch = model.runtime.switch  # behind it positions are encoded anew, and nothing computed before can be kept
    left = min(getattr(model.runtime.config, "max_position_embeddings", None) or switch, switch) - len(prompt)
    if left >= max_new_tokens:
        return max_new_tokens, "length"
    if left < 1:
        raise UserError(
            f"the conversation has {len(prompt)} tokens, and {model.label} has no room for an answer behind them; "
            "begin a new one"
        )
    return int(left), "context"


def _distinct_rows(
    prompt: PromptTokens, columns: Sequence[tuple[Steering, ...]], seed: int
) -> tuple[list[GenerationRow], list[list[int]]]:
    """A row for each different steering, and the columns that show it."""
    shown: dict[tuple, list[int]] = {}
    for index, column in enumerate(columns):
        key = tuple((one.layer, one.multiplier, id(one.vector), one.operator) for one in column)
        shown.setdefault(key, []).append(index)
    rows = [GenerationRow(prompt, columns[places[0]], seed_of(columns[places[0]], seed)) for places in shown.values()]
    return rows, list(shown.values())


def seed_of(steerings: Sequence[Steering], seed: int) -> int:
    """What `prompting_with_steering.py` draws its first answer with, at this seed, layer and multiplier."""
    if not steerings:
        return row_seed(seed, 0, 0.0, 0)
    return row_seed(seed, steerings[0].layer, float(steerings[0].multiplier), 0)


def _answer_rows(
    model: "LlamaWrapper", rows: Sequence[GenerationRow], decoding: Decoding, probe: Probe | None, at_limit: EndReason
) -> Iterator[Token | End]:
    """The tokens and ends of rows; `column` is the index into `rows`."""
    unit = None if probe is None else (probe.vector.double() / probe.vector.double().norm()).to(model.device)
    state = DecodingState(model.model, model.layers, rows, decoding, () if probe is None else (probe.layer,))
    answers = [Answer(model.tokenizer) for _ in rows]
    with torch.no_grad():
        logits = state.prefill()
    while True:
        chosen = state.choose(logits)
        for row, token in zip(state.active, chosen, strict=True):
            if token in decoding.end_ids:
                yield answers[row].end(row, "stop", token)
        stays = [place for place, token in enumerate(chosen) if token not in decoding.end_ids]
        if not stays:
            return
        if len(stays) < len(chosen):
            stays = state.keep(stays)
        with torch.no_grad():
            logits = state.step([chosen[place] for place in stays])
        projections = [None] * len(stays) if unit is None else project(state.read[probe.layer], unit)  # type: ignore[union-attr]
        for row, place, projection in zip(state.active, stays, projections, strict=True):
            yield Token(row, chosen[place], answers[row].add(chosen[place]), projection)
        if len(answers[state.active[0]].token_ids) == decoding.max_new_tokens:
            for row in state.active:
                yield answers[row].end(row, at_limit)
            return


def project(hidden: Tensor, unit: Tensor) -> list[float]:
    """Cosines of residual streams [batch, d_model] with a vector of length 1."""
    hidden = hidden.double()
    cosines: list[float] = ((hidden @ unit.to(hidden.device)) / hidden.norm(dim=-1)).tolist()
    return cosines


class Answer:
    """An answer as it grows."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        self.tokenizer = tokenizer
        self.token_ids: list[int] = []
        self._shown = ""

    def add(self, token_id: int) -> str:
        """Append a token; returns what it adds to the text."""
        self.token_ids.append(token_id)
        text = self._text()
        if text.endswith(_UNREADABLE) or not text.startswith(self._shown):
            return ""  # part of a character, or what came before is read anew
        added = text[len(self._shown) :]
        self._shown = text
        return added

    def rest(self) -> str:
        """What was held back as a part of a character, and stays one."""
        text = self._text()
        return text[len(self._shown) :] if text.startswith(self._shown) else ""

    def end(self, column: int, reason: EndReason, end_token: int | None = None) -> End:
        ids = self.token_ids if end_token is None else [*self.token_ids, end_token]
        return End(column, reason, self._text().strip(), tuple(ids), self.rest())

    def _text(self) -> str:
        return str(self.tokenizer.decode(self.token_ids, skip_special_tokens=True))


def _in_column(event: Token | End, column: int) -> Token | End:
    if isinstance(event, Token):
        return Token(column, event.token_id, event.text, event.projection)
    return End(column, event.reason, event.text, event.token_ids, event.rest)
