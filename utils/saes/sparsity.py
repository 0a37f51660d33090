"""How few latents make up a direction: the error that is left when k of them are combined freely.

`delta = mean f(harmful) - mean f(harmless)`; for each k the k latents of largest |delta| get the coefficients that come
nearest to r; what is left is |sum - r|^2 / |r|^2. Methods:

- lstsq: the exact optimum, from one orthogonalisation of the ordered decoder rows (default);
- adam: the published fit of the same loss, Adam at 0.01 for 1000 steps from random coefficients;
- omp: orthogonal matching pursuit, which chooses the latents by r itself instead of by delta.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from utils.saes.dictionary import SAE
from utils.saes.fidelity import Sides

FloatArray = NDArray[np.float64]
Method = Literal["lstsq", "adam", "omp"]
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
_DEPENDENT = 1e-9
"""A row counts as a combination of those before it where less than this share of its length is left."""
_ADAM_STEPS, _ADAM_LR = 1000, 0.01


@dataclass(frozen=True)
class Curve:
    """Error left against the number of latents."""

    sizes: tuple[int, ...]
    """Without those beyond the number of latents with a non-zero delta."""
    errors: tuple[float, ...]
    n_nonzero: int
    """Latents with a non-zero delta."""


def sparsity_curve(sides: Sides, sae: SAE, method: Method = "lstsq", seed: int = 0) -> Curve:
    """The curve of one dictionary; see the module's text."""
    return curve_of(sides.difference, unit_rows(sae), sides.codes(sae).difference, method, seed)


def unit_rows(sae: SAE) -> Tensor:
    """Decoder rows at norm 1, [d_sae, d_model] float64; a row of zeros stays."""
    return torch.nn.functional.normalize(sae.W_dec.double(), dim=1)


def curve_of(r: Tensor, rows: Tensor, delta: Tensor, method: Method, seed: int) -> Curve:
    """
    Args:
        r: The direction, [d_model].
        rows: Decoder rows at norm 1, [d_sae, d_model].
        delta: Mean difference of the latents' activations, [d_sae].
        method: How latents and coefficients are found.
        seed: Of adam's start.
    """
    order = ordered_latents(delta)
    n_usable = len(rows) if method == "omp" else len(order)
    sizes = tuple(size for size in SIZES if size <= n_usable)
    if not sizes or not float(r.norm()) > 0:
        return Curve((), (), len(order))
    if method == "omp":
        errors = _omp_errors(r, rows, sizes)
    elif method == "adam":
        errors = [_adam_error(r, rows[order[:size]], seed) for size in sizes]
    else:
        left = errors_left(r, rows[order[: sizes[-1]]])
        errors = [float(left[size - 1]) for size in sizes]
    return Curve(sizes, tuple(errors), len(order))


def ordered_latents(delta: Tensor) -> Tensor:
    """Latents with a non-zero delta, by falling |delta|."""
    order = delta.abs().argsort(descending=True, stable=True)
    return order[: int((delta != 0).sum())]


def errors_left(r: Tensor, rows: Tensor) -> Tensor:
    """|r - its projection on the first k rows|^2 / |r|^2 for k = 1, 2, ..., [n] float64; never rises."""
    r, rows = r.double(), rows.double()
    q, upper = torch.linalg.qr(rows.T)  # [d_model, m]: at most d_model columns
    own = upper.diagonal().abs()
    if bool((own <= _DEPENDENT * rows[: len(own)].norm(dim=1)).any()):
        q = _orthogonal(rows)
    explained = torch.zeros(len(rows), dtype=torch.float64)
    explained[: q.shape[1]] = (q.T @ r).square()
    return (1 - explained.cumsum(dim=0) / r.square().sum()).clamp(min=0.0)


def _orthogonal(rows: Tensor) -> Tensor:
    """For each row what those before it do not span, at norm 1, [d_model, n]; zeros where they span it."""
    basis = torch.zeros(rows.shape[1], len(rows), dtype=rows.dtype)
    for place, row in enumerate(rows):
        left = row
        for _ in range(2):  # once more, for the digits that the first subtraction lost
            left = left - basis[:, :place] @ (basis[:, :place].T @ left)
        length = float(left.norm())
        if length > _DEPENDENT * float(row.norm()):
            basis[:, place] = left / length
    return basis


def _adam_error(r: Tensor, rows: Tensor, seed: int) -> float:
    rows, target = rows.float(), r.float()
    drawn = torch.randn(len(rows), generator=torch.Generator().manual_seed(seed))
    coefficients = drawn.clone().requires_grad_(True)
    optimizer = torch.optim.Adam([coefficients], lr=_ADAM_LR)
    for _ in range(_ADAM_STEPS):
        optimizer.zero_grad()
        loss = (coefficients @ rows - target).square().mean()
        loss.backward()
        optimizer.step()
    left = coefficients.detach().double() @ rows.double() - target.double()
    return float(left.square().sum() / target.double().square().sum())


def _omp_errors(r: Tensor, rows: Tensor, sizes: Sequence[int]) -> list[float]:
    from sklearn.linear_model import orthogonal_mp

    target, atoms = r.double().numpy(), rows.double().numpy().T
    most = min(sizes[-1], *atoms.shape)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # it says so where it has reached r before that many
        path = np.asarray(orthogonal_mp(atoms, target, n_nonzero_coefs=most, return_path=True)).reshape(len(rows), -1)
    left = ((atoms @ path - target[:, None]) ** 2).sum(axis=0) / (target @ target)
    return [float(left[min(size, len(left)) - 1]) for size in sizes]


def bootstrap_curves(sides: Sides, sae: SAE, seed: int, n_resamples: int) -> FloatArray:
    """Errors of the exact fit on prompts drawn again, both sides by themselves, [n_resamples, n_sizes]; NaN beyond."""
    from utils.evaluation.resampling import drawn_counts

    codes, rows = sides.codes(sae), unit_rows(sae)
    n_harmful, n_harmless = len(sides.harmful), len(sides.harmless)
    harmful = torch.from_numpy(np.concatenate(list(drawn_counts(n_harmful, n_harmful, n_resamples, seed)))) / n_harmful
    harmless = torch.from_numpy(np.concatenate(list(drawn_counts(n_harmless, n_harmless, n_resamples, seed + 1))))
    harmless = harmless / n_harmless
    found = np.full((n_resamples, len(SIZES)), np.nan)
    for draw in range(n_resamples):
        r = harmful[draw] @ sides.harmful.double() - harmless[draw] @ sides.harmless.double()
        delta = harmful[draw] @ codes.harmful.double() - harmless[draw] @ codes.harmless.double()
        curve = curve_of(r, rows, delta, "lstsq", seed)
        found[draw, : len(curve.errors)] = curve.errors
    return found


@dataclass(frozen=True)
class TopLatents:
    """The latents that differ most."""

    positive: tuple[tuple[int, float], ...]
    """Latent and delta, the largest first."""
    negative: tuple[tuple[int, float], ...]


def top_latents(delta: Tensor, n: int = 10) -> TopLatents:
    high, low = delta.topk(min(n, len(delta))), (-delta).topk(min(n, len(delta)))
    return TopLatents(
        tuple((int(i), float(v)) for v, i in zip(*high, strict=True) if v > 0),
        tuple((int(i), -float(v)) for v, i in zip(*low, strict=True) if v > 0),
    )
