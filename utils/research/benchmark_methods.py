"""The methods of the steering benchmark. A new one is a function and a line in `METHODS`.

A method that steers gives a vector for each layer, made from the material that it is handed; the benchmark finds the
layer and the strength. One that asks gives the framings of both sides, one that trains the weights of both. What is
not there is refused with `NotRun`, which names the command that makes it. Nothing heavy is imported before a method
runs.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from utils.errors import UserError
from utils.finetuning.request import finetuned_name
from utils.settings import Side, VectorKind, known_operator
from utils.vectors.files import generate_command

if TYPE_CHECKING:
    from torch import Tensor

    from utils.research.benchmark_material import Material

Kind = Literal["none", "vector", "framing", "weights", "control"]
N_SHOTS = 4
N_FILTERED = 32


class NotRun(UserError):
    """A method lacks what it needs; `command` provides it."""

    def __init__(self, why: str, command: str = "") -> None:
        super().__init__(why)
        self.command = command


@dataclass(frozen=True)
class Framing:
    """What stands around a question instead of a vector."""

    system_prompt: str | None = None
    before: str = ""
    """Text before the question, in the user's turn."""


PLAIN = Framing()
Vectors = Mapping[int, "Tensor"]
Both = tuple[Framing, Framing]


# --- vectors ---------------------------------------------------------------------------------------


def letter(material: "Material") -> Vectors:
    """Mean difference at the answer's letter (CAA)."""
    return material.estimated("letter", "mean")


def answer(material: "Material") -> Vectors:
    """Mean difference over the answer's tokens."""
    return material.estimated("answer", "mean")


def pca(material: "Material") -> Vectors:
    return material.estimated("answer", "pca")


def probe(material: "Material") -> Vectors:
    return material.estimated("answer", "probe")


def lda(material: "Material") -> Vectors:
    return material.estimated("answer", "lda")


def rank_1_svd(material: "Material") -> Vectors:
    """First right singular vector of the pairs' differences, not centred, turned to the mean's side."""
    import torch

    from utils.vectors.estimators import with_mean_s_sign_and_norm

    def first(positive: "Tensor", negative: "Tensor") -> "Tensor":
        rows = positive.double() - negative.double()
        return with_mean_s_sign_and_norm(torch.linalg.svd(rows, full_matrices=False).Vh[0], positive, negative)

    return material.by_layer("answer", first)


def persona(material: "Material") -> Vectors:
    """Vectors of the model's own answers under the behavior's two system prompts (Chen et al. 2025)."""
    from utils.files.reading import load_vector

    request, kind = material.request, VectorKind("answer", origin="answers")
    paths, behavior, label = request.paths, material.behavior, request.choice.label
    files = {one: paths.vector(behavior, one, label, normalized=False, kind=kind) for one in material.layers}
    if missing := [layer for layer, path in files.items() if not path.exists()]:
        make = generate_command(paths, [behavior], missing, request.choice, kind=kind)
        raise NotRun("there are no vectors of the model's own answers", make)
    return {layer: load_vector(path, material.d_model) for layer, path in files.items()}


def sae_filtered(material: "Material") -> Vectors:
    """The answer vector rebuilt from the SAE latents whose activations differ most (difference of encodings)."""
    import torch

    from utils.saes.dictionary import SAE, check_fits

    request, model = material.request, material.model
    found = {}
    for folder in request.saes:
        sae = SAE.load(folder)
        check_fits(sae, model.label, model.d_model, model.n_layers)
        if sae.layer not in material.layers:
            continue
        positive, negative = material.tables("answer", sae.layer)
        change = (sae.encode(positive) - sae.encode(negative)).double()  # [n_pairs, d_sae]
        mean, spread = change.mean(dim=0), change.std(dim=0) / len(change) ** 0.5
        clear = torch.where(spread > 0, mean.abs() / spread, 0.0).topk(min(N_FILTERED, len(mean))).indices
        found[sae.layer] = (mean[clear] @ sae.W_dec[clear].double()).float()
    if not found:
        words = [*request.choice.command_words, "--layer", material.layers[len(material.layers) // 2]]
        raise NotRun(
            f"no SAE of a layer among {', '.join(map(str, material.layers))}; name one with --saes",
            request.paths.command("saes/train_sae", *words),
        )
    return found


def trained_addition(material: "Material") -> Vectors:
    """A direction trained by gradients on the preference itself, both signs (the form of RePS, rank 1)."""
    from utils.research.benchmark_trained import train_direction

    layer = material.layers[len(material.layers) // 2]
    return {layer: train_direction(material, layer)}


# --- controls: as often as `draws` says -------------------------------------------------------------


def random_vector(material: "Material", draw: int) -> Vectors:
    """A random direction; its norm is what the budget allows, as for every other."""
    import torch

    generator = torch.Generator().manual_seed(1000 * material.request.seed + draw)
    return {layer: torch.randn(material.d_model, generator=generator) for layer in material.layers}


def permuted_labels(material: "Material", draw: int) -> Vectors:
    """The answer vector of pairs of which half, drawn by lot, count the other answer as matching.

    Exactly half: with a coin for each pair some of the true direction would be left, and the budget scales it up.
    """
    import torch

    generator = torch.Generator().manual_seed(1000 * material.request.seed + draw)
    turned = torch.randperm(material.n_pairs, generator=generator)[: material.n_pairs // 2]
    signs = torch.ones(material.n_pairs, 1)
    signs[turned] = -1
    return material.by_layer("answer", lambda positive, negative: ((positive - negative) * signs).mean(dim=0))


# --- framings and weights ---------------------------------------------------------------------------


def no_steering(material: "Material") -> Both:  # noqa: ARG001
    return PLAIN, PLAIN


def system_prompt(material: "Material") -> Both:
    """The behavior's own system prompts, for and against it."""
    prompts = material.known.system_prompts
    if prompts is None:
        raise NotRun(f"{material.known.path} has no system_prompts", "add them to the behavior's file")
    return Framing(prompts.pos), Framing(prompts.neg)


def few_shot(material: "Material") -> Both:
    """Questions with their matching answers before the question; against it, with the other ones."""
    return Framing(before=_shots(material, 0)), Framing(before=_shots(material, 1))


def _shots(material: "Material", side: int) -> str:
    shown = material.texts[:N_SHOTS]
    answers = [(pair.matching, pair.other)[side] for pair in shown]
    asked = [f"Question: {pair.question}\nAnswer: {text}\n\n" for pair, text in zip(shown, answers, strict=True)]
    return f"Answer as in these examples.\n\n{''.join(asked)}Question: "


def finetuned(material: "Material") -> tuple[Path, Path]:
    return _weights(material, lora=False)


def lora(material: "Material") -> tuple[Path, Path]:
    return _weights(material, lora=True)


def _weights(material: "Material", *, lora: bool) -> tuple[Path, Path]:
    """Weights of both sides, as `finetune_llama.py` leaves them."""
    paths = material.request.paths
    sides: tuple[Side, Side] = ("pos", "neg")
    files = [paths.finetuned_weights(finetuned_name(material.behavior, side, is_lora=lora)) for side in sides]
    for side, path in zip(sides, files, strict=True):
        if not path.exists():
            words: Sequence[object] = ["--behavior", material.behavior, "--direction", side]
            words = [*words, *(["--lora"] if lora else []), *material.request.choice.command_words]
            what = "LoRA adapters" if lora else "fully fine-tuned weights"
            raise NotRun(f"there are no {what} ({side})", paths.command("finetune_llama", *words))
    return files[0], files[1]


# --- the table ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Method:
    """A row of the benchmark."""

    kind: Kind
    what: str
    make: Callable[..., "Vectors | Both | tuple[Path, Path]"]
    operator: str = "add"
    is_trained: bool = False
    """Dear to make, and at one layer only: made once, of all pairs, as there is no layer to choose."""
    is_gated: bool = False
    """Layer and strength are those without a gate; then only prompts like the behavior's own are steered."""


METHODS: Mapping[str, Method] = {
    "none": Method("none", "the model as it is", no_steering),
    "system_prompt": Method("framing", "the behavior's system prompts", system_prompt),
    "few_shot": Method("framing", f"{N_SHOTS} examples before the question", few_shot),
    "letter": Method("vector", "mean difference at the answer's letter (CAA)", letter),
    "answer": Method("vector", "mean difference over the answer", answer),
    "pca": Method("vector", "first principal component of the differences", pca),
    "probe": Method("vector", "logistic probe", probe),
    "lda": Method("vector", "linear discriminant", lda),
    "svd": Method("vector", "rank-1 SVD of the differences", rank_1_svd),
    "persona": Method("vector", "own answers under two system prompts", persona),
    "sae": Method("vector", "answer vector filtered by SAE latents", sae_filtered),
    "gated": Method("vector", "answer vector, only on prompts like the behavior's", answer, is_gated=True),
    "trained": Method("vector", "direction trained on the preference", trained_addition, is_trained=True),
    "lora": Method("weights", "LoRA adapters", lora),
    "finetuned": Method("weights", "full fine-tuning", finetuned),
    "random": Method("control", "random vectors", random_vector),
    "permuted": Method("control", "answer vectors of permuted labels", permuted_labels),
}
QUICK_METHODS = ("none", "system_prompt", "answer", "probe", "random", "permuted")
DEFAULT_METHODS = tuple(name for name in METHODS if name not in ("lora", "finetuned"))


def method_named(name: str) -> Method:
    """A row by its name; `answer+clamp` is the vectors of `answer` with the operator `clamp`.

    Raises:
        UserError: If there is no such method or operator, with the nearest name.
    """
    base, plus, operator = name.partition("+")
    if base not in METHODS:
        near = get_close_matches(base, list(METHODS), 1)
        meant = f"did you mean {near[0]}? Else " if near else ""
        raise UserError(f"unknown method {base!r}; {meant}choose from: {', '.join(METHODS)}")
    method = METHODS[base]
    if not plus:
        return method
    if method.kind != "vector":
        raise UserError(
            f"method {name!r}: {base} has no vector for an operator to use; vectors have: {_with_vectors()}"
        )
    return replace(method, what=f"{method.what}, operator {operator}", operator=known_operator(operator))


def _with_vectors() -> str:
    return ", ".join(name for name, method in METHODS.items() if method.kind == "vector")
