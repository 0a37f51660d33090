"""Projections of the residual stream on vectors, for many sequences: padded batches, no logits, no layer too many."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from utils.model.runtime import Runtime
from utils.model.steering import capture_outputs


@dataclass(frozen=True, eq=False)
class Probe:
    """What is read at one layer."""

    layer: int
    """Decoder block whose output is projected."""
    unit: Tensor
    """[d_model] float32, of length 1."""


@dataclass(frozen=True, eq=False)
class SequenceProjections:
    """Of every token of one sequence, on the CPU."""

    values: Tensor
    """Dot product of the residual stream with each probe's unit vector, [n_probes, seq_len] float32."""
    norms: Tensor
    """Length of the residual stream at each probe's layer, of the same shape."""

    @property
    def cosines(self) -> Tensor:
        return self.values / self.norms


def project_sequences(
    runtime: Runtime, sequences: Sequence[Sequence[int]], probes: Sequence[Probe], batch_size: int | None = None
) -> Iterator[tuple[int, SequenceProjections]]:
    """Run sequences without steering and project every token's residual stream.

    Rows are padded at their end, which no token before it sees.

    Args:
        runtime: The model.
        sequences: Token ids, each within the model's context.
        probes: What to read.
        batch_size: Sequences in one pass; None for as many as fit.

    Yields:
        Index into `sequences`, in no particular order, and its projections.
    """
    reader = _Reader(runtime, probes)
    lengths = [len(ids) for ids in sequences]
    runtime.check_lengths(lengths)
    for group in runtime.apart(range(len(sequences)), lengths):
        widths = [float(lengths[i]) for i in group]

        def read(batch: list[int]) -> Tensor:
            return reader.read([sequences[i] for i in batch])

        for batch, found in runtime.batcher.run(group, widths, read, batch_size, shared=False):
            for place, index in enumerate(batch):
                values, norms = found[:, place, :, : lengths[index]].clone()
                yield index, SequenceProjections(values, norms)


class _Reader:
    def __init__(self, runtime: Runtime, probes: Sequence[Probe]) -> None:
        self.runtime = runtime
        self.layers = sorted({probe.layer for probe in probes})
        self.layer_at = [self.layers.index(probe.layer) for probe in probes]
        self.columns = torch.stack([probe.unit.float() for probe in probes], dim=1)  # [d_model, n_probes]

    @torch.no_grad()
    def read(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """[2, batch, n_probes, longest]: projections and lengths."""
        longest = max(map(len, rows))
        ids = torch.full((len(rows), longest), self.runtime.pad_id)
        mask = torch.zeros(len(rows), longest, dtype=torch.long)
        for place, row in enumerate(rows):
            ids[place, : len(row)] = torch.tensor(row)
            mask[place, : len(row)] = 1
        device = self.runtime.device
        modules = [self.runtime.layers[layer] for layer in self.layers]
        with capture_outputs(modules, self._project, stop_after_last=True) as captured:
            self.runtime.model.get_decoder()(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False)
        by_layer = torch.stack([captured[place].cpu() for place in range(len(self.layers))])
        values = torch.stack([by_layer[at, ..., probe] for probe, at in enumerate(self.layer_at)], dim=1)
        norms = torch.stack([by_layer[at, ..., -1] for at in self.layer_at], dim=1)
        return torch.stack([values, norms])

    def _project(self, hidden: Tensor) -> Tensor:
        """[batch, seq_len, n_probes + 1]: on every probe's vector, whatever its layer, and the length."""
        hidden = hidden.float()
        return torch.cat([hidden @ self.columns.to(hidden.device), hidden.norm(dim=-1, keepdim=True)], dim=-1)
