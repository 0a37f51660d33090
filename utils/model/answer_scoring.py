"""Log-probabilities of answers under many steerings.

A prompt runs once up to its first steered token; its keys and values are shared. What is steered, the last
prompt token and the answer, is a row for each combination behind it:

    prefix (once)  | row of the base: unsteered, from the bottom up
                   | row of combination 1: joins behind the first layer that steers it, as an edited copy
                   | ...

Rows are used instead of one packed sequence because answers are long: in one sequence the attention would
grow with the square of all combinations' tokens.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from utils.model import processes
from utils.model.architectures import logit_scale
from utils.model.chat_format import AnswerTokens
from utils.model.packing import LayerInputs
from utils.model.padding import left_padded
from utils.model.prefixes import run_prefixes
from utils.model.runtime import Runtime
from utils.model.steering import (
    RowSteering,
    Steering,
    Steerings,
    as_tuple,
    edit_outputs_only,
    hidden_of,
    output_hooks,
    with_hidden,
)

# Answer tokens whose logits are held at once: a vocabulary is wide.
LOGITS_AT_ONCE = 256


@dataclass(frozen=True)
class AnswerPair:
    """One question with both of its answers, as tokens."""

    matching: AnswerTokens
    other: AnswerTokens

    @property
    def answers(self) -> tuple[AnswerTokens, AnswerTokens]:
        return self.matching, self.other

    @property
    def shares_prefix(self) -> bool:
        """Whether both have the same tokens before the first steered one, the last of the prompt."""
        starts = {answer.steer_start for answer in self.answers}
        prefixes = {answer.ids[: answer.steer_start] for answer in self.answers}
        is_steered_at_its_end = all(answer.n_steered == answer.n_answer + 1 for answer in self.answers)
        return len(starts) == 1 and starts != {0} and len(prefixes) == 1 and is_steered_at_its_end

    @property
    def longest(self) -> int:
        return max(len(answer) for answer in self.answers)


def score_answers(
    runtime: Runtime,
    pairs: Sequence[AnswerPair],
    steerings: Sequence[Steerings],
    batch_size: int | None,
    skip: Collection[int],
) -> Iterator[tuple[int, Tensor]]:
    """See `LlamaWrapper.score_answers`."""
    lengths = [pair.longest for pair in pairs]
    packable = [i for i in runtime.packable(lengths) if _may_be_packed(runtime, pairs[i])]
    packable = packable if edit_outputs_only(steerings) else []
    groups = runtime.apart(packable, lengths)
    if groups and not _is_exact(runtime, [pairs[i] for i in groups[0]], steerings):
        packable, groups = [], []

    def score_batch(batch: list[int]) -> list[Tensor]:
        return score_packed(runtime, [pairs[i] for i in batch], steerings)

    watch = runtime.guard.watch("answers")
    for group in groups:
        widths = [2 * len(steerings) * (lengths[i] - pairs[i].matching.steer_start) for i in group]
        for batch, scores in runtime.batcher.run(group, widths, score_batch, batch_size, skip):
            for i, scored in zip(batch, scores, strict=True):
                if i in skip:
                    continue
                if watch.is_due:
                    row = watch.n_compared % len(steerings)
                    watch.compare(
                        scored[row].exp(),
                        partial(lambda i, row: score_batch([i])[0][row].exp(), i, row),
                        partial(_one_combination, runtime, pairs[i], steerings[row]),
                        f"item {i}",
                    )
                yield i, scored
    rest = sorted(set(range(len(pairs))) - set(packable))
    done = {place for place, i in enumerate(rest) if i in skip}
    for place, scored in score_answers_plainly(runtime, [pairs[i] for i in rest], steerings, batch_size, done):
        yield rest[place], scored


def score_answers_plainly(
    runtime: Runtime,
    pairs: Sequence[AnswerPair],
    steerings: Sequence[Steerings],
    batch_size: int | None,
    skip: Collection[int],
) -> Iterator[tuple[int, Tensor]]:
    """One full sequence for every answer and steering: the reference."""
    runtime.check_lengths([pair.longest for pair in pairs])
    every = list(range(len(steerings)))
    for index, pair in enumerate(pairs):
        if index in skip or not processes.is_mine(index):
            continue
        scores = torch.empty(len(steerings), 2)
        for column, answer in enumerate(pair.answers):
            score_batch = partial(_score_some_rows, runtime, answer, steerings)
            widths = [len(answer)] * len(every)
            for rows, some in runtime.batcher.run(every, widths, score_batch, batch_size, shared=False):
                scores[rows, column] = some
        yield index, scores


def _score_some_rows(runtime: Runtime, answer: AnswerTokens, steerings: Sequence[Steerings], rows: list[int]) -> Tensor:
    return score_rows(runtime, [answer] * len(rows), [steerings[row] for row in rows])


def _one_combination(runtime: Runtime, pair: AnswerPair, steering: Steerings) -> Tensor:
    """[2]: geometric mean probability of a token of the matching and of the other answer, for the guard.

    Probabilities are compared, not their logarithms: the relative rounding of one near 1 would look large.
    """
    return torch.cat([score_rows(runtime, [answer], [steering]) for answer in pair.answers]).exp()


@torch.no_grad()
def score_rows(runtime: Runtime, answers: Sequence[AnswerTokens], steerings: Sequence[Steerings]) -> Tensor:
    """Mean log-probability of each row's answer tokens, [batch], from whole sequences with the model's own logits."""
    ids, mask = left_padded([answer.ids for answer in answers], runtime.pad_id, runtime.device)
    starts = torch.tensor([answer.steer_start for answer in answers], device=runtime.device)
    positions = mask.cumsum(1) - 1
    rows = RowSteering(steerings, runtime.layers)
    rows.positions = (positions >= starts[:, None]) & mask.bool()
    longest = 1 + max(answer.n_answer for answer in answers)  # the last prompt token and the answer
    with rows.applied():
        logits = runtime.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions.clamp(min=0),
            use_cache=False,
            logits_to_keep=longest,
        ).logits
    means = []
    for row, answer in zip(logits, answers, strict=True):
        n = answer.n_answer
        means.append(_log_probabilities(row[-n - 1 : -1], torch.tensor(answer.ids[-n:], device=row.device)).mean())
    return torch.stack(means).cpu()


def _log_probabilities(logits: Tensor, token_ids: Tensor) -> Tensor:
    """Of each row's token, [n] float32, from logits [n, vocab_size]."""
    logits = logits.float()
    return logits.gather(-1, token_ids[:, None])[:, 0] - logits.logsumexp(dim=-1)


# --- rows behind a shared prefix -------------------------------------------------------------------


@torch.no_grad()
def score_packed(runtime: Runtime, pairs: Sequence[AnswerPair], steerings: Sequence[Steerings]) -> list[Tensor]:
    """Mean log-probabilities of pairs of answers behind their prefixes; each [len(steerings), 2]."""
    combinations = [tuple(one.placed(runtime.device) for one in as_tuple(row)) for row in steerings]
    steered = sorted((i for i, row in enumerate(combinations) if row), key=lambda i: combinations[i][0].layer)
    base = BaseRows(runtime, pairs)
    scores = torch.empty(len(steerings), 2 * len(pairs))
    unsteered = [i for i, row in enumerate(combinations) if not row]
    at_once = max(1, int(runtime.batcher.token_budget() // base.input_ids.numel()))
    chunks = [steered[start : start + at_once] for start in range(0, len(steered), at_once)] or [[]]
    for chunk in chunks:
        found = base.score([combinations[i] for i in chunk])  # [1 + len(chunk), rows of the base]
        scores[unsteered] = found[0].cpu()
        scores[chunk] = found[1:].cpu()
    return [scores[:, 2 * place : 2 * place + 2] for place in range(len(pairs))]


class BaseRows:
    """Both answers of some questions as rows behind their questions' prefixes, which run once."""

    def __init__(self, runtime: Runtime, pairs: Sequence[AnswerPair], *, one_answer: bool = False) -> None:
        """
        Args:
            runtime: Of the model.
            pairs: With shared prefixes.
            one_answer: Take the matching answers only.
        """
        self.runtime = runtime
        self._rows_per_prefix = 1 if one_answer else 2
        answers = [answer for pair in pairs for answer in pair.answers[: self._rows_per_prefix]]
        tails = [answer.ids[answer.steer_start : -1] for answer in answers]  # nothing is predicted behind the last
        length = max(len(tail) for tail in tails)
        device = runtime.device
        padded = [[*tail, *[runtime.pad_id] * (length - len(tail))] for tail in tails]
        self.input_ids = torch.tensor(padded, device=device)  # [rows, length]
        starts = torch.tensor([answer.steer_start for answer in answers], device=device)
        self.position_ids = starts[:, None] + torch.arange(length, device=device)
        self.is_predicting = torch.arange(length, device=device) < torch.tensor(
            [[len(tail)] for tail in tails], device=device
        )
        self.targets = torch.tensor([token for answer in answers for token in answer.ids[answer.steer_start + 1 :]])
        self.counts = torch.tensor([len(tail) for tail in tails])
        prefixes = [pair.matching.ids[: pair.matching.steer_start] for pair in pairs]
        self._prefix, prefix_mask = run_prefixes(runtime.model, prefixes, DynamicCache(), runtime.pad_id)
        self._mask = self._build_mask(prefix_mask.bool().repeat_interleave(self._rows_per_prefix, dim=0), length)

    def _build_mask(self, prefix_mask: Tensor, length: int) -> Tensor:
        """Every tail token sees its prefix and the tail up to itself, [rows, 1, length, prefix + length]."""
        causal = torch.ones(length, length, dtype=torch.bool, device=prefix_mask.device).tril()
        rows = len(prefix_mask)
        visible = torch.cat(
            [prefix_mask[:, None].expand(rows, length, -1), causal.expand(rows, length, length)], dim=-1
        )
        dtype = self.runtime.dtype
        blocked = torch.finfo(dtype).min
        return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill(~visible, blocked)[:, None]

    def score(self, combinations: Sequence[tuple[Steering, ...]]) -> Tensor:
        """Mean log-probability of every row's answer, unsteered and under each combination.

        Args:
            combinations: By ascending first layer.

        Returns:
            [1 + len(combinations), rows], float32.
        """
        predicting = self._predicting(combinations)  # [1 + n, tokens, d_model]
        targets = self.targets.to(predicting.device).expand(len(predicting), -1)
        each = [
            _log_probabilities(logits, ids.to(logits.device))
            for logits, ids in zip(
                self._logits(predicting.flatten(0, 1)), targets.flatten().split(LOGITS_AT_ONCE), strict=True
            )
        ]
        scores = torch.cat(each).unflatten(0, targets.shape)
        row_of = torch.arange(len(self.counts)).repeat_interleave(self.counts).to(scores.device)
        sums = torch.zeros(len(scores), len(self.counts), device=scores.device, dtype=scores.dtype)
        return sums.index_add_(1, row_of, scores) / self.counts.to(scores.device)

    def kl(self, combinations: Sequence[tuple[Steering, ...]]) -> Tensor:
        """KL(unsteered || steered) of the next-token distribution at every answer token.

        Args:
            combinations: By ascending first layer.

        Returns:
            [len(combinations), n_tokens], float32, in nats.
        """
        predicting = self._predicting(combinations)
        expected = torch.cat([logits.float().log_softmax(-1) for logits in self._logits(predicting[0])])
        rows = []
        for steered in predicting[1:]:
            found = torch.cat([logits.float().log_softmax(-1) for logits in self._logits(steered)])
            rows.append((expected.exp() * (expected - found)).sum(-1).clamp(min=0))
        return torch.stack(rows)

    def _predicting(self, combinations: Sequence[tuple[Steering, ...]]) -> Tensor:
        """Hidden states behind the final norm where an answer token is predicted, [1 + n, tokens, d_model]."""
        return self.run(combinations)[:, self.is_predicting]

    def run(
        self,
        combinations: Sequence[tuple[Steering, ...]],
        watch: Mapping[nn.Module, Callable[[Tensor], Tensor | None]] | None = None,
    ) -> Tensor:
        """Run the rows unsteered and under each combination.

        Args:
            combinations: By ascending first layer.
            watch: Called with what its decoder block gives, [copies x rows, length, d_model]: the base rows, then
                the rows of each combination that has come in. What it returns takes its place.

        Returns:
            Hidden states behind the final norm, [1 + n, rows, length, d_model].
        """
        with rows_enter_late(self.runtime.layers, len(self.input_ids), combinations), output_hooks(watch or {}):
            hidden = self.runtime.model.get_decoder()(
                input_ids=self.input_ids,
                attention_mask=self._mask,
                position_ids=self.position_ids,
                past_key_values=_SharedPrefixes(self._prefix, rows_per_prefix=self._rows_per_prefix),
                use_cache=True,
            )[0]
        return hidden.unflatten(0, (1 + len(combinations), -1))

    def _logits(self, hidden: Tensor) -> Iterator[Tensor]:
        """Logits of hidden states [n, d_model] behind the final norm, some rows at a time."""
        head: nn.Module = self.runtime.model.get_output_embeddings()
        scale = logit_scale(self.runtime.config)
        for some in hidden.split(LOGITS_AT_ONCE):
            logits = head(some) * scale.factor
            yield logits if scale.softcap is None else torch.tanh(logits / scale.softcap) * scale.softcap


class _SharedPrefixes(DynamicCache):
    """Keys and values of prefixes, handed to every row behind them; what rows add is not kept."""

    def __init__(self, prefixes: DynamicCache, rows_per_prefix: int) -> None:
        super().__init__()
        self.layers = prefixes.layers
        self._rows_per_prefix = rows_per_prefix

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any) -> Any:
        layer: Any = self.layers[layer_idx]
        return self._behind(layer.keys, key_states), self._behind(layer.values, value_states)

    def _behind(self, prefix: Tensor, states: Tensor) -> Tensor:
        rows = prefix.repeat_interleave(self._rows_per_prefix, dim=0)
        copies = states.shape[0] // rows.shape[0]
        return torch.cat([rows.repeat(copies, 1, 1, 1), states], dim=2)


@contextmanager
def rows_enter_late(
    layers: Sequence[nn.Module], n_base: int, combinations: Sequence[tuple[Steering, ...]]
) -> Iterator[None]:
    """For the block: the base rows run unsteered, and each combination's rows join behind its first layer.

    They join as edited copies of the base rows: below its first layer a steered row equals the unsteered one.

    Args:
        layers: The decoder blocks.
        n_base: Rows of the batch.
        combinations: What is done to each copy, by ascending layer; the first layers ascend as well.
    """
    copies = 1
    with ExitStack() as stack:
        for index, layer in enumerate(layers):
            if copies > 1:
                tile = partial(_tiled, copies=copies, n_base=n_base)
                stack.callback(LayerInputs(layer).changed_by(tile).remove)
            edits = [
                (1 + place, tuple(one for one in steerings if one.layer == index))
                for place, steerings in enumerate(combinations)
            ]
            if any(here for _, here in edits):
                stack.callback(layer.register_forward_hook(_edit_copies(n_base, copies, edits)).remove)
                copies += sum(steerings[0].layer == index for steerings in combinations)
        yield


# what a decoder block is given for every row, beside the residual stream; some of it may be shared by all rows
_PER_ROW = ("attention_mask", "position_ids", "position_embeddings")


def _tiled(name: str, value: Tensor, copies: int, n_base: int) -> Tensor:
    """An input of a block as all copies need it: what has a row for each base row is repeated."""
    if name not in _PER_ROW or value.shape[0] != n_base:
        return value
    return value.repeat(copies, *[1] * (value.dim() - 1))


def _edit_copies(
    n_base: int, copies: int, edits: Sequence[tuple[int, tuple[Steering, ...]]]
) -> Callable[[nn.Module, Any, Any], Any]:
    def hook(module: nn.Module, args: Any, output: Any) -> Any:  # noqa: ARG001
        parts = list(hidden_of(output).split(n_base))  # the base, then every copy that is in, [n_base, length, d_model]
        assert len(parts) == copies
        for copy, steerings in edits:
            rows = parts[copy] if copy < copies else parts[0]
            for steering in steerings:
                rows = steering.placed(rows.device).edit(rows)
            if copy < copies:
                parts[copy] = rows
            elif steerings:
                parts.append(rows)
        return with_hidden(output, torch.cat(parts))

    return hook


# --- the guard -------------------------------------------------------------------------------------


def _may_be_packed(runtime: Runtime, pair: AnswerPair) -> bool:
    lengths = [len(answer) for answer in pair.answers]
    return pair.shares_prefix and not runtime.switches_within(min(pair.matching.steer_start, *lengths), max(lengths))


def _is_exact(runtime: Runtime, pairs: Sequence[AnswerPair], steerings: Sequence[Steerings]) -> bool:
    """Whether the shortest pair, beside the longest, scores what it scores alone: without steering, at the lowest and
    the highest layer, and with the strongest steering."""
    steered = sorted((row for row in steerings if as_tuple(row)), key=lambda row: as_tuple(row)[0].layer)
    strongest = sorted(steered, key=lambda row: max(one.size for one in as_tuple(row)))[-1:]
    sample: list[Steerings] = [None, *steered[:1], *steered[-1:], *strongest]
    both = [min(pairs, key=lambda pair: pair.longest), max(pairs, key=lambda pair: pair.longest)]

    def plain() -> Tensor:
        return torch.stack([_one_combination(runtime, both[0], steering) for steering in sample])

    def packed() -> Tensor:
        passes = runtime.batcher.run_halving(
            [0, 1], lambda batch: score_packed(runtime, [both[i] for i in batch], sample)
        )
        return next(passes)[1][0].exp()

    return runtime.guard.allows("answers", packed, plain)
