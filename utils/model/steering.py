"""Editing a residual stream, and reading it: operators and the forward hooks.

Hooks are always removed, also when a forward pass fails.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from utils.errors import UserError
from utils.files.reading import load_vector
from utils.model.architectures import branch_end
from utils.paths import REPOSITORY, DataPaths
from utils.settings import VectorKind

Operator = Callable[[Tensor, Tensor, float], Tensor]
"""Residual stream [..., d_model], vector [d_model], multiplier -> the edited residual stream, in the same shape and
dtype. Each token is edited by itself: that is what lets steered tokens be packed and batched."""


Site = Literal["output", "input", "attention", "mlp"]
"""Where in its block a steering edits: the residual stream behind it or before it, or what its attention or its MLP
adds to the residual stream."""


def add(hidden: Tensor, vector: Tensor, multiplier: float) -> Tensor:
    """Add `multiplier` x `vector` to every token (CAA, Rimsky et al. 2023)."""
    return hidden + (vector * multiplier).to(hidden)


@dataclass(frozen=True, eq=False)
class Condition:
    """A gate: which prompts are steered (CAST, Lee et al. 2024, arXiv 2409.05907, with a signed cosine).

    A prompt's score is the cosine of its mean residual stream with a condition vector, over its tokens up to the
    first steered one, without the sequence's first.
    """

    layer: int
    vector: Tensor
    """[d_model]."""
    threshold: float
    opens_above: bool = True
    """Whether it opens for scores of at least the threshold, or for those below."""

    def score(self, mean: Tensor) -> float:
        """The cosine with a prompt's mean residual stream, [d_model]."""
        return float(torch.cosine_similarity(mean.double(), self.vector.double().to(mean.device), dim=0))

    def is_open(self, mean: Tensor) -> bool:
        return (self.score(mean) >= self.threshold) == self.opens_above


@dataclass(frozen=True, eq=False)
class Steering:
    """Edit decoder block `layer`, by default its output: by default, add `multiplier` x `vector` to it."""

    layer: int
    multiplier: float
    vector: Tensor
    """[d_model], any float dtype and device."""
    operator: Operator = add
    site: Site = "output"
    condition: Condition | None = None
    """Steer only prompts that open it; `utils.model.conditions` opens and closes it, before a pass."""

    @classmethod
    def load(
        cls,
        source: str | Path,
        layer: int,
        multiplier: float = 1.0,
        *,
        model: str | None = None,
        root: Path = REPOSITORY,
        kind: VectorKind | None = None,
    ) -> "Steering":
        """Steering with a vector from a file.

        Args:
            source: A behavior's id, for its normalised vector; or a path to a `.pt` file.
            layer: Decoder block to steer, counted from 0.
            multiplier: Of the vector.
            model: Label of the model whose vector it is; needed only where the behavior has several models' vectors.
            root: Folder that holds normalized_vectors/.
            kind: Where the vector was read and how it was made; the default is the published one.

        Raises:
            UserError: If there is no such vector, several models have one, or the file does not hold one.
        """
        path = Path(source)
        if path.suffix != ".pt":
            path = DataPaths(root).find_vector(str(source), layer, model, kind or VectorKind())
        return cls(layer, float(multiplier), load_vector(path))

    def edit(self, hidden: Tensor) -> Tensor:
        """The residual stream [..., d_model] as this steering leaves it; the given one stays as it is."""
        assert self.condition is None, "a gate is opened or closed before a pass"
        if self.multiplier == 0:
            return hidden
        return self.operator(hidden, self.vector, self.multiplier)

    def placed(self, device: torch.device) -> "Steering":
        """The same with its vector on a device."""
        return replace(self, vector=self.vector.to(device))

    @property
    def size(self) -> float:
        """Norm of multiplier x vector."""
        return abs(self.multiplier) * float(self.vector.double().norm())


Steerings = Steering | Sequence[Steering] | None
"""What is done to one row or combination: nothing, one steering, or several (of any layers)."""


def as_tuple(steerings: Steerings) -> tuple[Steering, ...]:
    """Every steering of a row, by ascending layer; those of one layer in the order given."""
    if steerings is None:
        return ()
    several = (steerings,) if isinstance(steerings, Steering) else tuple(steerings)
    return tuple(sorted(several, key=lambda steering: steering.layer))


def edit_outputs_only(steerings: Sequence[Steerings]) -> bool:
    """Whether all of them edit block outputs, which is all that the packed passes know."""
    return all(one.site == "output" for row in steerings for one in as_tuple(row))


def check_range(steerings: Sequence[Steerings], dtype: torch.dtype) -> None:
    """Refuse steering that leaves the range of the model's arithmetic.

    A norm squares the residual stream in float32. Beyond the square root of that type's range the square is
    infinite and the stream becomes zero: every answer would be as likely as every other, without a word.

    Raises:
        UserError: Names layer and multiplier.
    """
    largest = torch.finfo(torch.float32).max ** 0.5
    for steering in {one: None for row in steerings for one in as_tuple(row)}:
        entries = put_in(steering)
        fits = float(entries.norm()) < largest and float(entries.abs().max()) <= torch.finfo(dtype).max
        if not fits:
            raise UserError(
                f"layer {steering.layer}, multiplier {steering.multiplier:g}: what is put in then has norm "
                f"{float(entries.norm()):.3g}, beyond what {str(dtype).removeprefix('torch.')} arithmetic can hold; "
                "use smaller --multipliers"
            )


def put_in(steering: Steering) -> Tensor:
    """The largest vector that a steering puts into the residual stream by itself, [d_model] float64.

    An operator that depends on more than multiplier x vector says so by a method `put_in(vector, multiplier)`.
    """
    own = getattr(steering.operator, "put_in", None)
    vector = steering.vector.double()
    entries: Tensor = vector * steering.multiplier if own is None else own(vector, steering.multiplier)
    return entries


def hidden_of(output: Any) -> Tensor:
    """The residual stream [batch, seq_len, d_model] in what a decoder block returned (a tensor or a tuple)."""
    return output[0] if isinstance(output, tuple) else output


def with_hidden(output: Any, hidden: Tensor) -> Any:
    """What the block returned, with another residual stream in it."""
    return (hidden, *output[1:]) if isinstance(output, tuple) else hidden


@contextmanager
def output_hooks(hooks: Mapping[nn.Module, Callable[[Tensor], Tensor | None]]) -> Iterator[None]:
    """For the block: call each hook with its module's output residual stream; a returned tensor replaces it."""

    def wrap(hook: Callable[[Tensor], Tensor | None]) -> Callable[..., Any]:
        def forward_hook(module: nn.Module, args: Any, output: Any) -> Any:  # noqa: ARG001
            replacement = hook(hidden_of(output))
            return None if replacement is None else with_hidden(output, replacement)

        return forward_hook

    with ExitStack() as stack:
        for module, hook in hooks.items():
            handle = module.register_forward_hook(wrap(hook))
            stack.callback(handle.remove)
        yield


@contextmanager
def site_hook(block: nn.Module, site: Site, hook: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
    """For the block: call the hook with what is at one site of a decoder block; a returned tensor replaces it.

    Raises:
        UserError: If the block's attention or MLP cannot be told.
    """
    if site != "input":
        with output_hooks({block if site == "output" else branch_end(block, site): hook}):
            yield
        return

    def pre_hook(module: nn.Module, args: Any, kwargs: Any) -> Any:  # noqa: ARG001
        replacement = hook(args[0] if args else kwargs["hidden_states"])
        if replacement is None:
            return None
        return ((replacement, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": replacement})

    handle = block.register_forward_pre_hook(pre_hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


class _ForwardStopped(Exception):
    """Unwinds a forward pass of which nothing more is wanted."""


@contextmanager
def capture_outputs(
    layers: Sequence[nn.Module],
    keep: Callable[[Tensor], Tensor] | None = None,
    *,
    stop_after_last: bool = False,
) -> Iterator[dict[int, Tensor]]:
    """For the block: collect each module's output residual stream, copied, under its index in `layers`.

    Args:
        layers: Decoder blocks in the order in which they run.
        keep: What to keep of a residual stream [batch, seq_len, d_model]; None for all of it.
        stop_after_last: End the forward pass behind the last of them. The pass then returns nothing:
            it must be the block's last statement.
    """
    captured: dict[int, Tensor] = {}

    def keeper(index: int) -> Callable[[Tensor], None]:
        def hook(hidden: Tensor) -> None:
            kept = hidden if keep is None else keep(hidden)
            captured[index] = kept.detach().clone()
            if stop_after_last and index == len(layers) - 1:
                raise _ForwardStopped

        return hook

    with output_hooks({layer: keeper(index) for index, layer in enumerate(layers)}):
        try:
            yield captured
        except _ForwardStopped:
            if not stop_after_last:
                raise


class RowSteering:
    """Steers the rows of a batch: every row has its own steerings, or none."""

    def __init__(self, rows: Sequence[Steerings], layers: Sequence[nn.Module]) -> None:
        self._layers = layers
        self._n_rows = len(rows)
        # layer and site -> what is done to which rows, in order
        self._edits: dict[tuple[int, Site], list[tuple[Steering, Tensor]]] = {}
        of_rows: dict[tuple[int, Steering], list[int]] = {}  # place in its row, steering -> rows
        for index, row in enumerate(rows):
            for place, steering in enumerate(as_tuple(row)):
                of_rows.setdefault((place, steering), []).append(index)
        for (_, steering), indices in sorted(of_rows.items(), key=lambda entry: entry[0][0]):
            self._edits.setdefault((steering.layer, steering.site), []).append((steering, torch.tensor(indices)))
        self.positions: Tensor | None = None
        """[batch, seq_len] bool: which tokens of the coming forward pass are steered; None for all."""

    def keep_rows(self, rows: Tensor) -> None:
        """Go on with some rows of the batch only; `rows` are their indices."""
        place = torch.full((self._n_rows,), -1)
        place[rows.cpu()] = torch.arange(len(rows))
        self._n_rows = len(rows)
        for where, edits in self._edits.items():
            moved = [(steering, place[indices.cpu()]) for steering, indices in edits]
            self._edits[where] = [(steering, at[at >= 0]) for steering, at in moved if bool((at >= 0).any())]

    @contextmanager
    def applied(self) -> Iterator[None]:
        """For the block: steer every forward pass."""
        with ExitStack() as stack:
            for layer, site in self._edits:
                stack.enter_context(site_hook(self._layers[layer], site, self._hook_at(layer, site)))
            yield

    def _hook_at(self, layer: int, site: Site) -> Callable[[Tensor], Tensor]:
        def edit(hidden: Tensor) -> Tensor:
            edits = [(one.placed(hidden.device), at.to(hidden.device)) for one, at in self._edits[layer, site]]
            self._edits[layer, site] = edits
            positions = None if self.positions is None else self.positions.to(hidden.device)[:, :, None]
            edited = hidden
            for steering, rows in edits:
                if len(rows) == self._n_rows:
                    new = steering.edit(edited)
                    edited = new if positions is None else torch.where(positions, new, edited)
                    continue
                before = edited[rows]
                new = steering.edit(before)
                edited = edited.index_copy(
                    0, rows, new if positions is None else torch.where(positions[rows], new, before)
                )
            return edited

        return edit
