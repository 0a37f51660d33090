"""Log-probabilities of answers under many steerings: packed behind their questions, or plainly."""

from collections.abc import Collection, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from utils.model import processes
from utils.model.answer_rows import AnswerPair, BaseRows, log_probabilities
from utils.model.chat_format import AnswerTokens
from utils.model.padding import left_padded
from utils.model.runtime import Runtime
from utils.model.steering import RowSteering, Steerings, as_tuple, edit_outputs_only


def score_answers(
    runtime: Runtime,
    pairs: Sequence[AnswerPair],
    steerings: Sequence[Steerings],
    batch_size: int | None,
    skip: Collection[int],
) -> Iterator[tuple[int, Tensor]]:
    """See `LlamaWrapper.score_answers`."""
    lengths = [pair.longest for pair in pairs]
    groups = packable_groups(runtime, pairs, steerings)
    packable = {i for group in groups for i in group}

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
    rest = sorted(set(range(len(pairs))) - packable)
    done = {place for place, i in enumerate(rest) if i in skip}
    for place, scored in score_answers_plainly(runtime, [pairs[i] for i in rest], steerings, batch_size, done):
        yield rest[place], scored


def packable_groups(runtime: Runtime, pairs: Sequence[AnswerPair], steerings: Sequence[Steerings]) -> list[list[int]]:
    """Pairs that may run behind their prefixes, in groups that may share a pass; none where that is not exact."""
    lengths = [pair.longest for pair in pairs]
    packable = [i for i in runtime.packable(lengths) if _may_be_packed(runtime, pairs[i])]
    groups = runtime.apart(packable if edit_outputs_only(steerings) else [], lengths)
    return groups if groups and _is_exact(runtime, [pairs[i] for i in groups[0]], steerings) else []


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
    return scores_of_rows(runtime, answers, steerings).cpu()


def scores_of_rows(runtime: Runtime, answers: Sequence[AnswerTokens], steerings: Sequence[Steerings]) -> Tensor:
    """The same on the model's device, and with its gradient where one is wanted."""
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
        means.append(log_probabilities(row[-n - 1 : -1], torch.tensor(answer.ids[-n:], device=row.device)).mean())
    return torch.stack(means)


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
