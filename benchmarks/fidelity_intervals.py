"""How often intervals of a reconstructed direction's cosine cover its value for infinitely many prompts.

The population is all bundled instructions, read on a model; samples are drawn from it with replacement, so that the
value of infinitely many prompts is known. Compared: percentiles of a bootstrap of the published cosine, and the suite's
corrected cosine with its jackknife (`utils.saes.fidelity`). The dictionaries are made up: 1,500 random rows, of which
none, 3 or 30 are principal components of the activations; 32 latents a token.

Example: python -m benchmarks.fidelity_intervals --model_size 135m --layers 12 16 20
"""

import argparse
import sys
from collections.abc import Sequence

import numpy as np
import torch

from llama_wrapper import LlamaWrapper
from utils.cli.flags import add_model, model_choice
from utils.evaluation.resampling import drawn_counts
from utils.paths import REPOSITORY, DataPaths
from utils.saes.dictionary import SAE
from utils.saes.directions import encode_all, prompt_activations
from utils.saes.fidelity import Sides, cosine_of, jackknife
from utils.saes.prompts import PromptSource, Split

SPLITS: tuple[Split, ...] = ("refuser", "train", "val", "test")
N_COMPONENTS = (0, 3, 30)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, nargs="+", default=[12, 16, 20], metavar="N")
    parser.add_argument("--tries", type=int, default=200, metavar="N", help="samples (default: 200)")
    parser.add_argument("--n_prompts", type=int, default=64, metavar="N", help="of each side (default: 64)")
    add_model(parser)
    return parser


def made_up_dictionary(rows: torch.Tensor, n_components: int, layer: int) -> SAE:
    """Random rows at norm 1, the first of them principal components of `rows` [n, d_model]; zero is their mean."""
    mean = rows.mean(dim=0)
    drawn = torch.randn(1500, rows.shape[1], generator=torch.Generator().manual_seed(n_components))
    drawn /= drawn.norm(dim=1, keepdim=True)
    drawn[:n_components] = torch.linalg.svd(rows - mean, full_matrices=False)[2][:n_components]
    encoder = drawn.T.contiguous()
    return SAE(encoder, -(mean @ encoder), drawn, mean, "topk", 32, layer, "made up", "none", f"{n_components}")


def percentile_interval(sides: Sides, through: Sides, seed: int) -> tuple[float, float]:
    n = len(sides.harmful)
    weights = [torch.from_numpy(next(drawn_counts(n, n, 500, seed + side))) / n for side in (0, 1)]
    r, r_hat = (weights[0] @ one.harmful.double() - weights[1] @ one.harmless.double() for one in (sides, through))
    low, high = np.quantile(torch.cosine_similarity(r, r_hat, dim=1).numpy(), [0.025, 0.975])
    return float(low), float(high)


def measure(population: Sides, sae: SAE, n: int, tries: int) -> list[float]:
    """True cosine, mean published and corrected one, and the two intervals' coverage."""
    through = population.through(sae)
    truth = cosine_of(through.difference, population.difference) or 0.0
    draw = torch.Generator().manual_seed(0)
    plain, corrected, covered = [], [], np.zeros(2)
    for attempt in range(tries):
        at = [torch.randint(len(side), (n,), generator=draw) for side in (population.harmful, population.harmless)]
        one, other = (Sides(s.harmful[at[0]], s.harmless[at[1]]) for s in (population, through))
        estimate = jackknife(one, other).estimates()[0]
        low, high = percentile_interval(one, other, 2 * attempt)
        plain.append(cosine_of(other.difference, one.difference) or 0.0)
        corrected.append(estimate.value)
        covered += [low <= truth <= high, estimate.low <= truth <= estimate.high]
    return [truth, float(np.mean(plain)), float(np.nanmean(corrected)), *(covered / tries)]


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    torch.set_grad_enabled(False)
    model, source = LlamaWrapper.load(model_choice(args)), PromptSource(DataPaths(REPOSITORY))
    splits = [source.load(split) for split in SPLITS]
    harmful, harmless = (
        prompt_activations(
            model, encode_all(model, [text for one in splits for text in getattr(one, side)]), args.layers
        )
        for side in ("harmful", "harmless")
    )
    print("layer\tcomponents\ttrue\tpublished\tcorrected\tpercentiles cover\tjackknife covers")
    for place, layer in enumerate(args.layers):
        population = Sides(harmful[:, place, 0], harmless[:, place, 0])
        rows = torch.cat([population.harmful, population.harmless])
        for n_components in N_COMPONENTS:
            sae = made_up_dictionary(rows, n_components, layer)
            numbers = measure(population, sae, args.n_prompts, args.tries)
            print(layer, n_components, *(f"{number:.3f}" for number in numbers), sep="\t", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
