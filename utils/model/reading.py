"""Activations of contrast pairs: what both halves share runs once, and nothing above the last layer that is read."""

from collections.abc import Collection, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor
from transformers import DynamicCache

from utils.model import processes
from utils.model.packing import PackedBatch
from utils.model.pairs import HalfTokens, PairTokens, read_mask
from utils.model.prefixes import n_tokens, run_opening
from utils.model.runtime import Runtime
from utils.model.steering import capture_outputs

PairBatch = tuple[list[int], Tensor, Tensor]
"""Indices of pairs, and the activations of their positive and negative halves, each [batch, n_layers, d_model]."""


def read_pairs(
    runtime: Runtime, pairs: Sequence[PairTokens], layers: Sequence[int], batch_size: int | None, skip: Collection[int]
) -> Iterator[PairBatch]:
    """See `LlamaWrapper.answer_activations`."""

    def read(batch: list[int], opening: DynamicCache | None) -> Tensor:
        return read_packed(runtime, [pairs[i] for i in batch], layers, opening)

    lengths = [pair.longest for pair in pairs]
    packable = [i for i in runtime.packable(lengths) if not runtime.switches_within(pairs[i].shortest, lengths[i])]
    groups = runtime.apart(packable, lengths)
    openings = [_opening(runtime, [pairs[i] for i in group]) for group in groups]
    if groups and not _is_exact(runtime, [pairs[i] for i in groups[0]], layers, openings[0]):
        packable, groups = [], []
    watch = runtime.guard.watch("reading")
    for group, opening in zip(groups, openings, strict=False):
        once = n_tokens(opening)
        widths = [pairs[i].packed_length - once for i in group]
        for batch, halves in runtime.batcher.run(group, widths, partial(read, opening=opening), batch_size, skip):
            if watch.is_due:
                first = batch[0]
                watch.compare(
                    halves[0],
                    partial(lambda i, opening: read([i], opening)[0], first, opening),
                    partial(read_plainly, runtime, pairs[first], layers),
                    f"pair {first}",
                    by_row=True,
                )
            yield batch, halves[:, 0], halves[:, 1]
    rest = sorted(set(range(len(pairs))) - set(packable))
    done = {place for place, i in enumerate(rest) if i in skip}
    for batch, positive, negative in read_pairs_plainly(runtime, [pairs[i] for i in rest], layers, done):
        yield [rest[i] for i in batch], positive, negative


def _opening(runtime: Runtime, pairs: Sequence[PairTokens]) -> DynamicCache | None:
    """Keys and values of what the pairs' prefixes begin with, where that saves work."""
    return run_opening(runtime.model, [pair.prefix for pair in pairs], max(pair.longest for pair in pairs))


def read_pairs_plainly(
    runtime: Runtime, pairs: Sequence[PairTokens], layers: Sequence[int], skip: Collection[int]
) -> Iterator[PairBatch]:
    """One full sequence for each half of each pair: the reference."""
    runtime.check_lengths([pair.longest for pair in pairs])
    for index, pair in enumerate(pairs):
        if index not in skip and processes.is_mine(index):
            positive, negative = read_plainly(runtime, pair, layers)
            yield [index], positive[None], negative[None]


def read_plainly(runtime: Runtime, pair: PairTokens, layers: Sequence[int]) -> Tensor:
    """Both halves of a pair, each in a sequence of its own, [2, n_layers, d_model], float32, on the CPU."""
    return torch.stack([_read_half(runtime, half, layers) for half in (pair.positive, pair.negative)])


@torch.no_grad()
def _read_half(runtime: Runtime, half: HalfTokens, layers: Sequence[int]) -> Tensor:
    ids = torch.tensor([half.ids], device=runtime.device)
    with capture_outputs([runtime.layers[layer] for layer in layers]) as captured:
        runtime.model(input_ids=ids, use_cache=False, logits_to_keep=1)
    streams = torch.stack([captured[index][0, half.read_from :].float().cpu() for index in range(len(layers))])
    return streams.mean(dim=1)


@torch.no_grad()
def read_packed(
    runtime: Runtime, pairs: Sequence[PairTokens], layers: Sequence[int], opening: DynamicCache | None = None
) -> Tensor:
    """Both halves of pairs in one pass, [batch, 2, n_layers, d_model], float32, on the CPU.

    `opening`: of what all of them begin with; it is not run again.
    """
    prefixes, tails = [pair.prefix for pair in pairs], [pair.tails for pair in pairs]
    packed = PackedBatch(prefixes, tails, runtime.pad_id, runtime.device, runtime.dtype, opening)
    is_read = read_mask(pairs, packed.tail_length)
    weights = (is_read / is_read.sum(dim=-1, keepdim=True)).flatten(0, 1)[:, None]  # [batch x 2, 1, tail]

    def average(hidden: Tensor) -> Tensor:
        halves = hidden[:, packed.prefix_length :].unflatten(1, (2, packed.tail_length)).flatten(0, 1)
        return torch.bmm(weights.to(halves.device), halves.float())[:, 0]  # [batch x 2, d_model]

    modules = [runtime.layers[layer] for layer in layers]
    with capture_outputs(modules, average, stop_after_last=True) as captured:
        runtime.model.get_decoder()(**packed.model_inputs())
    streams = torch.stack([captured[index].cpu() for index in range(len(layers))], dim=1)
    return streams.unflatten(0, (len(pairs), 2))


def _is_exact(
    runtime: Runtime, pairs: Sequence[PairTokens], layers: Sequence[int], opening: DynamicCache | None
) -> bool:
    """Whether the shortest pair, padded by the longest, is read as it is read alone."""
    sample = [min(pairs, key=lambda pair: pair.longest), max(pairs, key=lambda pair: pair.longest)]

    def packed() -> Tensor:
        read = runtime.batcher.run_halving(
            [0, 1], lambda batch: read_packed(runtime, [sample[i] for i in batch], layers, opening)
        )
        return next(read)[1][0]

    return runtime.guard.allows("reading", packed, lambda: read_plainly(runtime, sample[0], layers), by_row=True)
