#!/usr/bin/env python3
"""Train a sparse autoencoder (SAE) on the residual stream behind one decoder block.

Text comes in the model's chat format, so that SAEs of two texts differ by what was said. Activations are read with
nothing above the layer running, the first token of each sequence left out, through a shuffle buffer: memory does not
grow with --tokens. Small runs keep them on the disk for other SAEs of the same model, layer and text. A run that was
killed goes on where it was, to the same weights.

--layer counts block outputs from 0: the published blocks.13.hook_resid_pre is --layer 12.

Reads:   --data chat: the suite's contrast questions and the package chitchat-dataset; web: Wikipedia out of gensim's
         test data (both fetched once with pip, never installed); lmsys, pile: from the Hugging Face hub, streamed;
         FILE: JSON Lines with text, or user and assistant, or messages
Writes:  saes_trained/<model>_<data>/: cfg.json and sae_weights.safetensors (sae-lens 6), metrics.json, training_curve
Example: ./saes/train_sae.py --model_size 135m --layer 16 --data chat --tokens 38400
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that it runs from any folder

from utils.cli import values
from utils.cli.flags import make_parser, root_paths
from utils.cli.run import EXIT_DONE, exit_with, run_main
from utils.cli.sae_flags import add_system_prompt, add_text, add_weighted_model, loading, model_request, text_source
from utils.model.checkpoints import check_layers
from utils.model.shapes import model_shape
from utils.saes.plan import ActivationPlan
from utils.saes.settings import TrainSettings
from utils.saes.training_request import TrainRequest

log = logging.getLogger(__name__)
GIB = 2**30


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__, overwrite=True, seed=True)
    parser.add_argument("--layer", type=values.layer, required=True, metavar="N", help="block whose output is read")
    add_text(parser, required=True)
    add_system_prompt(parser)
    _add_amounts(parser)
    _add_settings(parser)
    parser.add_argument("--name", metavar="NAME", help="of the folder in saes_trained/ (default: <model>_<data>)")
    add_weighted_model(parser)
    return parser


def _add_amounts(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--tokens", type=values.positive_int, default=38_400, metavar="N", help="tokens of text (default: 38400)"
    )
    parser.add_argument(
        "--context", type=values.positive_int, default=256, metavar="N", help="tokens a sequence (default: 256)"
    )
    parser.add_argument(
        "--buffer",
        type=values.positive_int,
        default=65_536,
        metavar="N",
        help="tokens in the shuffle buffer (default: 65536)",
    )
    parser.add_argument(
        "--store_dtype",
        choices=["float16", "bfloat16", "float32"],
        default="float16",
        help="of activations in the buffer and on the disk (default: float16)",
    )
    parser.add_argument(
        "--cache_gib",
        type=values.non_negative_float,
        default=4.0,
        metavar="GIB",
        help="keep activations on the disk where they take no more than this; 0 for never (default: 4)",
    )
    parser.add_argument(
        "--batch_size",
        type=values.batch_size,
        default="auto",
        metavar="N",
        help="sequences in one pass of the model (default: auto, from the free memory)",
    )


def _add_settings(parser: argparse.ArgumentParser) -> None:
    usual = TrainSettings()
    parser.add_argument(
        "--architecture",
        choices=["topk", "batchtopk", "standard"],
        default=usual.architecture,
        help="topk: the k largest latents of each token; batchtopk: k a token on average; standard: ReLU with an L1 "
        "penalty, as published (default: topk)",
    )
    parser.add_argument(
        "--d_sae", type=values.positive_int, default=usual.d_sae, metavar="N", help=f"latents (default: {usual.d_sae})"
    )
    parser.add_argument(
        "--k",
        type=values.positive_int,
        default=usual.k,
        metavar="N",
        help=f"latents a token, for topk and batchtopk (default: {usual.k})",
    )
    parser.add_argument(
        "--l1",
        type=values.non_negative_float,
        default=usual.l1,
        metavar="X",
        help=f"weight of the L1 norm, for standard (default: {usual.l1:g}, as published)",
    )
    parser.add_argument(
        "--lr",
        type=values.positive_float,
        default=usual.lr,
        metavar="X",
        help=f"learning rate of Adam; rises over 5%% of the steps, falls over the last 20%% (default: {usual.lr:g})",
    )
    parser.add_argument(
        "--batch",
        type=values.positive_int,
        default=usual.batch,
        metavar="N",
        help=f"tokens a step (default: {usual.batch})",
    )
    parser.add_argument(
        "--epochs",
        type=values.positive_int,
        default=usual.epochs,
        metavar="N",
        help=f"passes over the text (default: {usual.epochs}; 1 for a long text)",
    )
    parser.add_argument(
        "--aux",
        type=values.non_negative_float,
        default=usual.aux,
        metavar="X",
        help="weight of the auxiliary loss that revives dead latents; 0 for none (default: 1/32)",
    )
    parser.add_argument(
        "--dead_after",
        type=values.positive_int,
        metavar="N",
        help="tokens without activation after which a latent is dead (default: a tenth of the run, 10 million at most)",
    )
    parser.add_argument(
        "--zero_bias", action="store_true", help="begin with b_dec = 0, as published (default: the mean activation)"
    )


def training_request(args: argparse.Namespace) -> TrainRequest:
    model = model_request(args)
    shape = model_shape(model.choice)
    [layer] = check_layers([args.layer], shape.n_layers, model.choice.label, "--layer")
    plan = ActivationPlan(text_source(args), layer, args.tokens, args.context, args.buffer, args.store_dtype)
    names = ("architecture", "d_sae", "k", "l1", "lr", "batch", "epochs", "aux", "dead_after", "zero_bias", "seed")
    n_bytes = plan.total_rows * shape.d_model * (4 if args.store_dtype == "float32" else 2)
    return TrainRequest(
        paths=root_paths(args),
        model=model,
        plan=plan,
        settings=TrainSettings(**{name: getattr(args, name) for name in names}),
        keep_activations=n_bytes <= args.cache_gib * GIB,
        command=args.command,
        given_name=args.name,
        batch_size=None if args.batch_size == "auto" else args.batch_size,
    )


def run(args: argparse.Namespace) -> int:
    request = training_request(args)
    if request.is_done(overwrite=args.overwrite):
        return EXIT_DONE
    from llama_wrapper import LlamaWrapper
    from utils.saes.training import train_sae

    train_sae(request, LlamaWrapper.load(**loading(args)))
    return EXIT_DONE


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(run, build_parser(), __file__, argv)


if __name__ == "__main__":
    exit_with(main())
