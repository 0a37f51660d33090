"""The residual stream over a text, in portions of one size: computed, or read from the cache.

A portion is what the shuffle buffer holds: it is filled, used up in random order and filled again, so that memory
does not grow with the tokens of a run. Small runs keep their portions on the disk, and every run on the same text,
model and layer shares them. The first token of each sequence is left out: it is an attention sink, with a norm a
hundred times that of the others.
"""

import hashlib
import json
import logging
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from utils.cli.progress import progress
from utils.errors import UserError
from utils.files.writing import atomic_file, write_json
from utils.model import processes
from utils.model.steering import capture_outputs
from utils.paths import DataPaths
from utils.saes.plan import ActivationPlan
from utils.saes.text import token_sequences, too_short

if TYPE_CHECKING:
    from llama_wrapper import LlamaWrapper

log = logging.getLogger(__name__)


class ActivationStore:
    """Gives the portions of a plan, in any order; forwards is cheap."""

    def __init__(
        self,
        model: "LlamaWrapper",
        plan: ActivationPlan,
        paths: DataPaths,
        *,
        keep: bool,
        batch_size: int | None = None,
    ) -> None:
        """
        Args:
            model: Runs up to the plan's layer.
            plan: What to compute.
            paths: Where text is, and the cache.
            keep: Whether portions are kept on the disk, and read from there.
            batch_size: Sequences in one pass; None for as many as fit.

        Raises:
            UserError: If the sequences are longer than the model takes.
        """
        model.runtime.check_lengths([plan.context])
        self.model, self.plan, self._paths = model, plan, paths
        self._batch_size = batch_size
        self._sequences: Iterator[list[int]] = iter(())
        self._next = -1  # the portion that `_sequences` stands before
        self.folder = paths.sae_activations(self.key) if keep else None

    @property
    def key(self) -> str:
        """Names what the activations are of; a fact that changes them changes it."""
        return hashlib.sha256(json.dumps(self.identity(), sort_keys=True).encode()).hexdigest()[:16]

    def identity(self) -> dict[str, Any]:
        plan = self.plan
        whole = {"layer": plan.layer, "context": plan.context, "buffer": plan.buffer, "stored_dtype": plan.dtype}
        of_model = {"model": self.model.label, "weights_fingerprint": self.model.fingerprint}
        return {**of_model, **plan.source.identity(), **whole, "split": plan.split, "dtype": str(self.model.dtype)}

    def portion(self, index: int) -> Tensor:
        """The activations of portion `index`, [n_rows(index), d_model], in the stored dtype, on the CPU.

        Every process of several must ask for it; the main one gets it, the others an empty tensor.

        Raises:
            UserError: If the text ends before it.
        """
        n_rows = self.plan.n_rows(index)
        if (kept := self._read(index, n_rows)) is not None:
            return kept
        rows = self._compute(index)
        if self.folder is not None and processes.is_main():
            _write(self.folder, index, rows, self.identity())
        return rows

    def _file(self, index: int) -> Path | None:
        return None if self.folder is None else self.folder / f"portion_{index:05d}.safetensors"

    def _read(self, index: int, n_rows: int) -> Tensor | None:
        """What was kept of a portion that is as long or longer; None where nothing was."""
        from safetensors import SafetensorError, safe_open

        path = self._file(index)
        is_there = bool(path and path.is_file())
        if not processes.from_main(is_there) or path is None:
            return None
        try:
            with safe_open(path, framework="pt") as file:
                stored = file.get_slice("activations")
                if stored.get_shape()[0] < n_rows:
                    return None
                return stored[:n_rows]
        except (SafetensorError, KeyError, OSError):
            log.warning("%s is damaged; computing it again", path)
            return None

    def _compute(self, index: int) -> Tensor:
        sequences = self._token_ids(index)
        of_pass = self._batch_size or max(1, int(self.model.runtime.batcher.token_budget() // self.plan.context))
        batches = [sequences[start : start + of_pass] for start in range(0, len(sequences), of_pass)]
        found = {
            number: read_layer(self.model, batch, self.plan.layer)[:, 1:].flatten(0, 1).to(self._dtype).cpu()
            for number, batch in enumerate(progress(batches, desc=self._label(index), unit="pass", leave=False))
            if processes.is_mine(number)
        }
        shares = processes.gather_to_main(found)
        if not shares:
            return torch.empty(0, self.model.d_model, dtype=self._dtype)
        rows = torch.cat([shares[number % processes.count()][number] for number in range(len(batches))])
        if not bool(torch.isfinite(rows).all()):
            raise UserError(
                f"activations of layer {self.plan.layer} of {self.model.label} are beyond the range of "
                f"{self.plan.dtype}; use --store_dtype bfloat16 or float32"
            )
        return rows

    def _label(self, index: int) -> str:
        of_all = f", portion {index + 1} of {self.plan.n_portions}" if self.plan.n_portions > 1 else ""
        return f"activations of {self.plan.source.label}{of_all}"

    @property
    def _dtype(self) -> torch.dtype:
        return getattr(torch, self.plan.dtype)

    def _token_ids(self, index: int) -> Tensor:
        """The sequences of a portion, [n_sequences, context]; those before it are passed over."""
        plan = self.plan
        if self._next < 0 or index < self._next:
            chat_format = self.model.chat_format
            self._sequences = token_sequences(plan.source, self._paths, chat_format, plan.context, plan.split)
            self._next = 0
        for _ in islice(self._sequences, (index - self._next) * plan.sequences_per_portion):
            pass
        self._next = index + 1
        wanted = plan.n_rows(index) // (plan.context - 1)
        found = list(islice(self._sequences, plan.sequences_per_portion))[:wanted]
        if len(found) < wanted:
            before = index * plan.sequences_per_portion
            raise too_short(plan.source, plan.split, before + len(found), plan.n_sequences, plan.context)
        return torch.tensor(found)


def _write(folder: Path, index: int, rows: Tensor, identity: dict[str, Any]) -> None:
    from safetensors.torch import save

    write_json(folder / "about.json", identity)
    with atomic_file(folder / f"portion_{index:05d}.safetensors") as file:
        file.write(save({"activations": rows}))


@torch.no_grad()
def read_layer(model: "LlamaWrapper", token_ids: Tensor, layer: int) -> Tensor:
    """The output of block `layer` for whole sequences; nothing above it runs.

    Args:
        model: The model.
        token_ids: [batch, seq_len], without padding.
        layer: The block.

    Returns:
        [batch, seq_len, d_model], in the model's dtype and on its device.
    """
    with capture_outputs([model.layers[layer]], stop_after_last=True) as captured:
        model.model(input_ids=token_ids.to(model.device), use_cache=False, logits_to_keep=1)
    return captured[0]
