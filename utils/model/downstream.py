"""What steering does to the residual stream further up: the same tokens with and without it, layer by layer.

A text runs unsteered up to its first steered token, once. Behind that, every steering is a row that joins at its
own layer, so that all vectors, layers and multipliers of a text share one pass.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from utils.model.answer_rows import AnswerPair, BaseRows
from utils.model.chat_format import AnswerTokens, PromptTokens
from utils.model.steering import Steering, check_range, edit_outputs_only

if TYPE_CHECKING:
    from llama_wrapper import LlamaWrapper

Reducer = Callable[[int, Tensor, Tensor, Sequence[int]], None]
"""Takes a layer, its unsteered output [n_tokens, d_model], the steered ones [n, n_tokens, d_model], and which of the
steerings these are: a residual stream of every steering and layer would not fit into memory."""


def steered_text(tokens: PromptTokens, start: int | None = None) -> AnswerTokens:
    """A text that is steered from `start` on (default: from the end of its prompt), and read up to its last token but
    one: behind the last nothing is predicted."""
    first = tokens.steer_start if start is None else start
    return AnswerTokens(tokens.ids, first, len(tokens) - first - 1)


def follow(
    model: "LlamaWrapper",
    text: AnswerTokens,
    steerings: Sequence[Steering],
    reduce: Reducer,
    layers: Collection[int] | None = None,
    *,
    plainly: bool = False,
) -> None:
    """Run a text under every steering, and hand what comes out of the blocks to `reduce`.

    The packed pass is compared with the plain one on the first text of a model; where they differ, and where the
    model's attention cannot take its mask, the plain one runs.

    Args:
        model: The model.
        text: Tokens `steer_start` to the last but one are steered and read.
        steerings: One row each; of block outputs.
        reduce: Called once for each layer and some of the steerings at a time, from their own layer on.
        layers: Decoder blocks to read (default: all).
        plainly: One full sequence for each steering: the reference.

    Raises:
        UserError: If a steering leaves the range of the model's arithmetic, or the text its context.
    """
    check_range(steerings, model.dtype)
    read = sorted(set(range(model.n_layers) if layers is None else layers))
    if not plainly and _may_be_packed(model, text, steerings):
        _follow_packed(model, text, steerings, reduce, read)
    else:
        _follow_plainly(model, text, steerings, reduce, read)


def changes(
    model: "LlamaWrapper",
    text: AnswerTokens,
    steerings: Sequence[Steering],
    layers: Sequence[int] | None = None,
    *,
    plainly: bool = False,
) -> Tensor:
    """Steered minus unsteered residual stream, [n_steerings, n_layers, n_tokens, d_model] float32 on the CPU.

    0 below a steering's layer. For few steerings and short texts; arguments as for `follow`.
    """
    read = list(range(model.n_layers) if layers is None else layers)
    found = torch.zeros(len(steerings), len(read), text.n_steered - 1, model.d_model)

    def keep(layer: int, base: Tensor, steered: Tensor, which: Sequence[int]) -> None:
        found[list(which), read.index(layer)] = (steered.float() - base.float()).cpu()

    follow(model, text, steerings, keep, read, plainly=plainly)
    return found


@torch.no_grad()
def _follow_packed(
    model: "LlamaWrapper", text: AnswerTokens, steerings: Sequence[Steering], reduce: Reducer, read: Sequence[int]
) -> None:
    base = BaseRows(model.runtime, [AnswerPair(text, text)], one_answer=True)
    at_once = max(1, int(model.runtime.batcher.token_budget() // base.input_ids.numel()))
    order = sorted(range(len(steerings)), key=lambda i: steerings[i].layer)
    for start in range(0, len(order), at_once):
        chunk = order[start : start + at_once]

        def watch(layer: int, chunk: Sequence[int] = chunk) -> Callable[[Tensor], None]:
            def hook(hidden: Tensor) -> None:
                unsteered, steered = hidden[0], hidden[1:]
                if len(steered):
                    reduce(layer, unsteered, steered, chunk[: len(steered)])

            return hook

        lowest = steerings[chunk[0]].layer
        hooks = {model.layers[layer]: watch(layer) for layer in read if layer >= lowest}
        base.run([(steerings[i].placed(model.device),) for i in chunk], hooks)


@torch.no_grad()
def _follow_plainly(
    model: "LlamaWrapper", text: AnswerTokens, steerings: Sequence[Steering], reduce: Reducer, read: Sequence[int]
) -> None:
    """One full sequence for each steering."""
    model.runtime.check_lengths([len(text)])
    places = slice(text.steer_start, -1)
    unsteered = model.capture(text)[:, places]
    for which, steering in enumerate(steerings):
        steered = model.capture(text, steering)[:, places]
        for layer in read:
            if layer >= steering.layer:
                reduce(layer, unsteered[layer], steered[layer][None], [which])


def settle(model: "LlamaWrapper", text: AnswerTokens, steerings: Sequence[Steering]) -> None:
    """Compare packed with plain passes now: of several processes each must, also one that has no text of its own."""
    _may_be_packed(model, text, steerings)


def _may_be_packed(model: "LlamaWrapper", text: AnswerTokens, steerings: Sequence[Steering]) -> bool:
    runtime = model.runtime
    if not steerings or text.steer_start == 0 or not edit_outputs_only(steerings):
        return False
    if not runtime.packable([len(text)]) or runtime.switches_within(text.steer_start, len(text)):
        return False
    first = min(steerings, key=lambda one: one.layer)
    last = model.n_layers - 1
    sample = [first, replace(first, layer=last)]

    def ends(path: Callable[..., None]) -> Tensor:
        found = torch.zeros(2, text.n_steered - 1, model.d_model)

        def keep(layer: int, base: Tensor, steered: Tensor, which: Sequence[int]) -> None:  # noqa: ARG001
            found[list(which)] = steered.float().cpu()

        path(model, text, sample, keep, [last])
        return found

    return runtime.guard.allows("downstream", lambda: ends(_follow_packed), lambda: ends(_follow_plainly), by_row=True)
