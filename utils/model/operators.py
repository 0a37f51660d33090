"""What may be done with a steering vector, each by one name that command line, chat, server and benchmark read.

An operator edits every token by itself, and is a function of the form `steering.Operator`; `OPERATORS` is the table.
h is a token's residual stream, v the vector, u = v / |v|, m the multiplier. m = 0 never changes a bit.

    add             h + m v                                         (Rimsky et al. 2023)
    add_keep_norm   (h + m v) |h| / |h + m v|
    clamp           h + (m |v| - h.u) u                             the component becomes m |v|
    ablate          h - m (h.u) u                                   m = 1 takes it away (Arditi et al. 2024)
    cap             h - m max(h.u - q, 0) u                         at most the quantile q of neutral answers;
                                                                    m < 0: at least the quantile of the other side
    rotate          the part of h in a plane turns towards v by the share m of its angle (m < 0: towards -v)
    rotate_by       the part of h in a plane turns by m x 90 degrees, from v towards the plane's second axis

The plane is spanned by v and a second vector: the first principal component of the unit vectors of all layers. Both
rotations keep the norm; `rotate` at m = 1 or -1 is the angular steering of Vu and Nguyen (2025, arXiv 2510.26243) at
0 or 180 degrees.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from utils.errors import UserError
from utils.model.ablation import ablate
from utils.model.steering import Operator, add
from utils.settings import OPERATORS as NAMES
from utils.settings import known_operator


def _wide(hidden: Tensor, vector: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Residual stream in at least float32, unit vector [d_model], and component along it [...]."""
    wide = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
    long = vector.to(wide)
    unit = long / long.norm()
    return wide, unit, wide @ unit


def add_keep_norm(hidden: Tensor, vector: Tensor, multiplier: float) -> Tensor:
    """Add, then scale every token back to the norm that it had."""
    wide = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
    moved = wide + vector.to(wide) * multiplier
    norms = moved.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(wide.dtype).tiny)
    return (moved * (wide.norm(dim=-1, keepdim=True) / norms)).to(hidden.dtype)


def clamp(hidden: Tensor, vector: Tensor, multiplier: float) -> Tensor:
    """Set the component along the vector to multiplier x its norm; to take it away, `ablate`."""
    wide, unit, along = _wide(hidden, vector)
    value = multiplier * vector.to(wide).norm()
    return (wide + (value - along)[..., None] * unit).to(hidden.dtype)


@dataclass(frozen=True)
class Cap:
    """Keep the component along the vector at or below a value; with a negative multiplier, at or above another."""

    low: float
    high: float
    """In the unit of the residual stream."""

    def __call__(self, hidden: Tensor, vector: Tensor, multiplier: float) -> Tensor:
        wide, unit, along = _wide(hidden, vector)
        beyond = (along - self.high).clamp(min=0) if multiplier > 0 else (along - self.low).clamp(max=0)
        return (wide - abs(multiplier) * beyond[..., None] * unit).to(hidden.dtype)

    def put_in(self, vector: Tensor, multiplier: float) -> Tensor:
        """See `steering.put_in`."""
        return vector / vector.norm() * multiplier * max(1.0, abs(self.low), abs(self.high))


@dataclass(frozen=True, eq=False)
class Rotate:
    """Turn the part of the residual stream that lies in the plane of the vector and a second one."""

    second: Tensor
    """[d_model]; what of it is along the vector is left out."""
    by_angle: bool = False
    """By multiplier x 90 degrees, instead of by a share of the angle to the vector."""

    def __call__(self, hidden: Tensor, vector: Tensor, multiplier: float) -> Tensor:
        wide, unit, along = _wide(hidden, vector)
        second = self.second.to(wide)
        across = second - (second @ unit) * unit
        across = across / across.norm()
        beside = wide @ across
        angle = torch.atan2(beside, along)  # 0 is the vector, pi its opposite
        if self.by_angle:
            turned = angle + multiplier * math.pi / 2
        elif multiplier > 0:
            turned = angle * (1 - multiplier)
        else:
            turned = angle - multiplier * (torch.where(angle < 0, -math.pi, math.pi) - angle)
        length = torch.hypot(along, beside)
        change = (length * turned.cos() - along)[..., None] * unit + (length * turned.sin() - beside)[
            ..., None
        ] * across
        return (wide + change).to(hidden.dtype)

    def put_in(self, vector: Tensor, multiplier: float) -> Tensor:
        """See `steering.put_in`: nothing but what was there, turned."""
        return vector / vector.norm() * (1.0 if math.isfinite(multiplier) else multiplier)


# --- the table -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Parts:
    """What an operator may need beside its vector."""

    quantiles: Callable[[], tuple[float, float]]
    """Of the vector's component in neutral answers: the lower and the upper one."""
    second: Callable[[], Tensor]
    """The second axis of the plane, [d_model]."""


@dataclass(frozen=True)
class KnownOperator:
    """A line of the table."""

    what: str
    """For the help."""
    build: Callable[[Parts], Operator]


OPERATORS: Mapping[str, KnownOperator] = {
    "add": KnownOperator("add multiplier x vector", lambda _: add),
    "add_keep_norm": KnownOperator("add, and keep each token's norm", lambda _: add_keep_norm),
    "clamp": KnownOperator("set the component to multiplier x the vector's norm", lambda _: clamp),
    "ablate": KnownOperator("take the component away", lambda _: ablate),
    "cap": KnownOperator("keep the component at or below a quantile", lambda parts: Cap(*parts.quantiles())),
    "rotate": KnownOperator("turn towards the vector in a plane", lambda parts: Rotate(parts.second())),
    "rotate_by": KnownOperator("turn by multiplier x 90 degrees in a plane", lambda p: Rotate(p.second(), True)),
}
assert tuple(OPERATORS) == NAMES, "the flag --operator names the operators"


def operator_named(name: str, parts: Parts) -> Operator:
    """
    Raises:
        UserError: If there is none of that name (says the nearest), or its parts cannot be had.
    """
    return OPERATORS[known_operator(name)].build(parts)


def second_axis(vectors: Sequence[Tensor]) -> Tensor:
    """First principal component of unit vectors [d_model], the second axis of the plane of a rotation; float32.

    Raises:
        UserError: If there are fewer than two, or they do not differ.
    """
    if len(vectors) < 2:
        raise UserError("rotate needs vectors of at least two layers, which span its plane; make them, or take add")
    rows = torch.stack([vector.double() / vector.double().norm() for vector in vectors])
    rows = rows - rows.mean(dim=0)
    _, sizes, axes = torch.linalg.svd(rows, full_matrices=False)
    if not float(sizes[0]) > 1e-9:
        raise UserError("rotate needs vectors that differ from layer to layer, which span its plane; take add")
    return axes[0].float()
