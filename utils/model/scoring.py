"""Probabilities of next tokens under many steerings, in one pass.

The prompt runs once; the last few tokens, which are steered, are packed behind it once for every steering.
"""

from collections.abc import Collection, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor
from transformers import DynamicCache

from utils.model import processes
from utils.model.chat_format import PromptTokens
from utils.model.packing import PackedBatch, tails_enter_late
from utils.model.padding import left_padded
from utils.model.prefixes import n_tokens, run_opening
from utils.model.runtime import Runtime
from utils.model.steering import RowSteering, Steerings, as_tuple, edit_outputs_only

# Steered tails longer than this are not packed: a prompt that is steered from its beginning shares nothing.
LONGEST_PACKED_TAIL = 32


def score(
    runtime: Runtime,
    prompts: Sequence[PromptTokens],
    steerings: Sequence[Steerings],
    token_ids: Sequence[Sequence[int]],
    batch_size: int | None,
    skip: Collection[int],
) -> Iterator[tuple[int, Tensor]]:
    """See `LlamaWrapper.score`."""
    packable = runtime.packable([len(prompt) for prompt in prompts])
    packable = [i for i in packable if prompts[i].n_steered <= LONGEST_PACKED_TAIL and edit_outputs_only(steerings)]
    groups = _groups(runtime, prompts, packable)
    openings = [_opening(runtime, [prompts[i] for i in group]) for group in groups]
    if groups and not _is_exact(runtime, [(prompts[i], token_ids[i]) for i in groups[0]], steerings, openings[0]):
        packable, groups = [], []

    def score_batch(batch: list[int], opening: DynamicCache | None) -> list[Tensor]:
        return score_packed(runtime, [prompts[i] for i in batch], steerings, [token_ids[i] for i in batch], opening)

    def score_alone(i: int) -> Tensor:
        return next(score_plainly(runtime, [prompts[i]], steerings, [token_ids[i]], batch_size, (), shared=False))[1]

    watch = runtime.guard.watch("scoring")
    for group, opening in zip(groups, openings, strict=False):
        once = n_tokens(opening)
        widths = [len(prompts[i]) - once + len(steerings) * prompts[i].n_steered for i in group]
        for batch, scores in runtime.batcher.run(
            group, widths, partial(score_batch, opening=opening), batch_size, skip
        ):
            for i, scored in zip(batch, scores, strict=True):
                if i in skip:
                    continue
                if not bool(scored.isfinite().all()):
                    # what overflows in one tail reaches the others through the attention's sums: 0 x infinity
                    scored = score_alone(i)
                elif watch.is_due:
                    row = watch.n_compared % len(steerings)  # a different combination each time
                    watch.compare(
                        scored[row],
                        partial(lambda i, row, opening: score_batch([i], opening)[0][row], i, row, opening),
                        partial(_one_row, runtime, prompts[i], steerings[row], token_ids[i]),
                        f"item {i}",
                    )
                yield i, scored
    rest = sorted(set(range(len(prompts))) - set(packable))
    rest_prompts, rest_ids = [prompts[i] for i in rest], [token_ids[i] for i in rest]
    done = {place for place, i in enumerate(rest) if i in skip}
    for place, scores_of_one in score_plainly(runtime, rest_prompts, steerings, rest_ids, batch_size, done):
        yield rest[place], scores_of_one


def _groups(runtime: Runtime, prompts: Sequence[PromptTokens], items: Sequence[int]) -> list[list[int]]:
    """Items that may share a packed pass: with equally many steered tokens."""
    lengths = [len(prompt) for prompt in prompts]
    groups = []
    for n_steered in sorted({prompts[i].n_steered for i in items}):
        groups += runtime.apart([i for i in items if prompts[i].n_steered == n_steered], lengths)
    return groups


def _opening(runtime: Runtime, prompts: Sequence[PromptTokens]) -> DynamicCache | None:
    """Keys and values of what the prompts' unsteered parts begin with, where that saves work."""
    return run_opening(runtime.model, [prompt.ids[: prompt.steer_start] for prompt in prompts], max(map(len, prompts)))


def score_plainly(
    runtime: Runtime,
    prompts: Sequence[PromptTokens],
    steerings: Sequence[Steerings],
    token_ids: Sequence[Sequence[int]],
    batch_size: int | None,
    skip: Collection[int],
    *,
    shared: bool = True,
) -> Iterator[tuple[int, Tensor]]:
    """One full sequence for every prompt and steering: the reference.

    `shared` says whether other processes take their share of the prompts.
    """
    runtime.check_lengths([len(prompt) for prompt in prompts])
    every = list(range(len(steerings)))
    for index, (prompt, ids) in enumerate(zip(prompts, token_ids, strict=True)):
        if index in skip or (shared and not processes.is_mine(index)):
            continue
        scores = torch.empty(len(steerings), len(ids))

        def score_batch(rows: list[int], prompt: PromptTokens = prompt, ids: Sequence[int] = ids) -> list[Tensor]:
            return score_rows(runtime, [prompt] * len(rows), [steerings[row] for row in rows], [ids] * len(rows))

        widths = [len(prompt)] * len(every)
        for rows, some in runtime.batcher.run(every, widths, score_batch, batch_size, shared=False):
            scores[rows] = torch.stack(some)
        yield index, scores


@torch.no_grad()
def score_packed(
    runtime: Runtime,
    prompts: Sequence[PromptTokens],
    steerings: Sequence[Steerings],
    token_ids: Sequence[Sequence[int]],
    opening: DynamicCache | None = None,
) -> list[Tensor]:
    """Scores of prompts with equally many steered tokens, in one pass; each [len(steerings), n_tokens].

    `opening`: of what all of them begin with; it is not run again.
    """
    combinations = [tuple(one.placed(runtime.device) for one in as_tuple(row)) for row in steerings]
    steered = sorted((i for i, row in enumerate(combinations) if row), key=lambda i: combinations[i][0].layer)
    prefixes = [prompt.ids[: prompt.steer_start] for prompt in prompts]
    tails = [[prompt.ids[prompt.steer_start :]] * (1 + len(steered)) for prompt in prompts]
    packed = PackedBatch(prefixes, tails, runtime.pad_id, runtime.device, runtime.dtype, opening)
    with tails_enter_late(packed, runtime.layers, [combinations[i] for i in steered]):
        logits = runtime.model(**packed.model_inputs(), logits_to_keep=packed.tail_ends()).logits
    tail_of = {i: 1 + place for place, i in enumerate(steered)}  # unsteered ones read tail 0
    order = torch.tensor([tail_of.get(i, 0) for i in range(len(steerings))], device=logits.device)
    return [probabilities_of(row, ids)[order].cpu() for row, ids in zip(logits, token_ids, strict=True)]


@torch.no_grad()
def score_rows(
    runtime: Runtime,
    prompts: Sequence[PromptTokens],
    steerings: Sequence[Steerings],
    token_ids: Sequence[Sequence[int]],
) -> list[Tensor]:
    """Scores of one padded batch, each row with its own prompt and steerings; each [n_tokens]."""
    ids, mask = left_padded([prompt.ids for prompt in prompts], runtime.pad_id, runtime.device)
    rows = RowSteering(steerings, runtime.layers)
    starts = torch.tensor([prompt.steer_start for prompt in prompts], device=runtime.device)
    positions = mask.cumsum(1) - 1
    rows.positions = (positions >= starts[:, None]) & mask.bool()
    with rows.applied():
        output = runtime.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions.clamp(min=0),
            use_cache=False,
            logits_to_keep=1,
        )
    return [probabilities_of(row, wanted)[0].cpu() for row, wanted in zip(output.logits, token_ids, strict=True)]


def _one_row(runtime: Runtime, prompt: PromptTokens, steering: Steerings, token_ids: Sequence[int]) -> Tensor:
    return score_rows(runtime, [prompt], [steering], [token_ids])[0]


def _is_exact(
    runtime: Runtime,
    asked: Sequence[tuple[PromptTokens, Sequence[int]]],
    steerings: Sequence[Steerings],
    opening: DynamicCache | None,
) -> bool:
    """Whether the shortest prompt, padded by the longest, scores what it scores alone.

    Compared without steering, at the lowest and the highest layer, and with the strongest steering.
    """
    steered = sorted((row for row in steerings if as_tuple(row)), key=lambda row: as_tuple(row)[0].layer)
    strongest = sorted(steered, key=lambda row: max(one.size for one in as_tuple(row)))[-1:]
    sample: list[Steerings] = [None, *steered[:1], *steered[-1:], *strongest]
    prompt, token_ids = min(asked, key=lambda one: len(one[0]))
    longest, _ = max(asked, key=lambda one: len(one[0]))
    kept: list[Steerings] = []  # without what overflows by itself, which says nothing about packing

    def plain() -> Tensor:
        rows = {i: _one_row(runtime, prompt, steering, token_ids) for i, steering in enumerate(sample)}
        finite = {i: row for i, row in rows.items() if bool(row.isfinite().all())}
        kept.extend(sample[i] for i in finite)
        return torch.stack(list(finite.values())) if finite else torch.empty(0, len(token_ids))

    def packed() -> Tensor:
        both = [prompt, longest]
        passes = runtime.batcher.run_halving(
            [0, 1],
            lambda batch: score_packed(runtime, [both[i] for i in batch], kept, [token_ids] * len(batch), opening),
        )
        return next(passes)[1][0]

    return runtime.guard.allows("scoring", packed, plain)


def probabilities_of(logits: Tensor, token_ids: Sequence[int]) -> Tensor:
    """Softmax probabilities of some tokens, [..., len(token_ids)] float32, from logits [..., vocab_size]."""
    logits = logits.float()
    wanted = logits[..., torch.tensor(list(token_ids), device=logits.device)]
    return (wanted - logits.logsumexp(dim=-1, keepdim=True)).exp()
