#!/usr/bin/env python3
"""Make a steering vector from a sentence: what a model shall do, in the third person.

    write    system prompts for the behavior and against it, questions, a rubric: by a judge model, or --template
    answer   the model answers the questions under the prompts; what does not show the behavior is filtered out
    vector   the mean difference of all layers, read over the answers, over the prompt, at the prompt's last token
    choose   layer and strength, on a third of the answers; tested once on questions that the vector has not seen
    demo     free answers at multiples of the vector, beside a random vector and the prompts themselves
    page     everything on one page, from the sentence to the effect with its interval

What is there is skipped, and made again where what it was made of has changed. After `write` the files are
shown, and nothing else runs before you have said so (--yes says it beforehand). They are plain JSON: edit them.

Reads:   datasets/authoring/questions.json (--template)
Writes:  datasets/{behaviors,raw,generate,test}/..., results/<id>/, vectors/<id>/, normalized_vectors/<id>/,
         analysis/<id>/behavior_<model>.html
Example: ./create_behavior.py "answers like a pirate" --template --yes
         ./create_behavior.py "answers like a pirate" --dry_run
         ./create_behavior.py "answers like a pirate" --max_cost 0.50
         ./create_behavior.py --id answers-like-a-pirate --steps demo page --overwrite
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from utils.authoring.request import FILTERS, STEPS, AuthoringRequest, Filter, check_sentence, id_of
from utils.cli import values
from utils.cli.flags import add_device, add_layers, add_model, make_parser, model_choice, root_paths
from utils.cli.judge_flags import add_judge, judge_flags
from utils.cli.run import EXIT_DONE, EXIT_FAILED, exit_with, run_main
from utils.errors import UserError
from utils.model.checkpoints import EMBEDDED_SIZE

if TYPE_CHECKING:
    from llama_wrapper import LlamaWrapper

log = logging.getLogger(__name__)


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__, overwrite=True, seed=True)
    parser.add_argument(
        "sentence", nargs="?", metavar="SENTENCE", help='what the model shall do: "answers like a pirate"'
    )
    parser.add_argument("--id", metavar="ID", help="the behavior's id (default: made of the sentence)")
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=STEPS, help="only these (default: all)")
    parser.add_argument("--yes", action="store_true", help="go on after writing without a look at what was written")
    parser.add_argument("--dry_run", action="store_true", help="only say how many requests and dollars writing takes")
    add_writing(parser)
    add_answering(parser)
    add_layers(parser, "every second one in the middle; vectors are made of all")
    add_judge(parser)
    add_model(parser, EMBEDDED_SIZE)
    add_device(parser)
    return parser


def add_writing(parser: argparse.ArgumentParser) -> None:
    """Flags of what is written."""
    writing = parser.add_argument_group("writing")
    writing.add_argument("--template", action="store_true", help="fill bundled templates: no judge, key or network")
    writing.add_argument(
        "--opposite",
        metavar="SENTENCE",
        help='what the prompts against it ask for, e.g. "answers in plain modern English" (default: plain answers, or '
        "what the judge model writes)",
    )
    writing.add_argument(
        "--written_pairs",
        type=values.count,
        default=0,
        metavar="N",
        help="contrast pairs that the judge model writes as well, as A/B questions and as texts (default: 0)",
    )


def add_answering(parser: argparse.ArgumentParser) -> None:
    """Flags of what is answered, chosen and shown."""
    answering = parser.add_argument_group("answering, choosing and showing")
    answering.add_argument(
        "--filter",
        choices=FILTERS,
        help="keep the answers that the judge grades apart, or that a vector of the other half of the questions tells "
        "apart, or all (default: judge; with --template projection)",
    )
    answering.add_argument(
        "--multipliers",
        nargs="+",
        type=values.finite_float,
        default=[-2.0, -1.0, 0.0, 1.0, 2.0],
        metavar="X",
        help="multiples of the vector in the free answers, 0 among them (default: -2 -1 0 1 2)",
    )
    answering.add_argument(
        "--max_new_tokens", type=values.positive_int, default=32, metavar="N", help="tokens an answer (default: 32)"
    )
    answering.add_argument(
        "--temperature",
        type=values.non_negative_float,
        default=0.0,
        metavar="T",
        help="sample the answers under the prompts (default: 0, the most likely token)",
    )
    answering.add_argument(
        "--num_samples",
        type=values.positive_int,
        default=1,
        metavar="N",
        help="with --temperature: answers to a question under a prompt (default: 1)",
    )
    answering.add_argument(
        "--kl",
        type=values.positive_float,
        default=1.0,
        metavar="NATS",
        help="budget, as in choose_steering.py (default: 1)",
    )
    answering.add_argument(
        "--batch_size", type=values.batch_size, default="auto", metavar="N", help="answers at once (default: auto)"
    )


def build_request(args: argparse.Namespace) -> AuthoringRequest:
    """
    Raises:
        UserError: If there is neither a sentence nor an id, or the flags do not go together.
    """
    sentence = None if args.sentence is None else check_sentence(args.sentence, "the sentence")
    if sentence is None and args.id is None:
        raise UserError('say what the model shall do, such as "answers like a pirate", or name what is there with --id')
    wanted: Filter = args.filter or ("projection" if args.template else "judge")
    return AuthoringRequest(
        paths=root_paths(args),
        choice=model_choice(args),
        behavior=args.id if args.id is not None else id_of(sentence or ""),
        sentence=sentence,
        opposite=None if args.opposite is None else check_sentence(args.opposite, "--opposite"),
        steps=tuple(step for step in STEPS if step in args.steps),
        template=args.template,
        filter=wanted,
        n_written_pairs=args.written_pairs,
        judge=None if args.template and wanted != "judge" else judge_flags(args),
        layers=tuple(args.layers) if args.layers else None,
        multipliers=tuple(sorted(set(args.multipliers))),
        max_new_tokens=args.max_new_tokens,
        temperature=args.temperature,
        num_samples=args.num_samples,
        kl=args.kl,
        seed=args.seed,
        assume_yes=args.yes,
        overwrite=args.overwrite,
        batch_size=None if args.batch_size == "auto" else args.batch_size,
        command=args.command,
    )


def run(args: argparse.Namespace) -> int:
    from utils.authoring.run import Workshop

    request = build_request(args)
    workshop = Workshop(request, lambda: load_model(request, args), confirm)
    if args.dry_run:
        print(workshop.estimate())  # noqa: T201
        return EXIT_DONE
    tally = workshop.run()
    if tally.stopped:
        log.info("nothing else was done; edit the files if you like, then run: %s", request.go_on())
    log.info("%s", tally.line())
    return EXIT_FAILED if tally.failed else EXIT_DONE


def confirm(shown: str) -> bool:
    """Show what was written, and ask whether to go on; without a terminal the answer is no."""
    print(shown)  # noqa: T201
    if not sys.stdin.isatty():
        return False
    try:
        return input("Go on with these? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False


def load_model(request: AuthoringRequest, args: argparse.Namespace) -> "LlamaWrapper":
    from llama_wrapper import LlamaWrapper

    return LlamaWrapper.load(request.choice, args.device, args.dtype, over_all_devices=args.device_map == "auto")


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(run, build_parser(), __file__, argv)


if __name__ == "__main__":
    exit_with(main())
