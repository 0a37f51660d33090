"""Flags that name a judge model and say how it is asked."""

import argparse
import os

from utils.cli import values
from utils.judge.access import check_base_url
from utils.judge.cost import DEFAULT_JUDGE, Price, price_of
from utils.judge.requests import JudgeFlags

OPENAI_URL = "https://api.openai.com/v1"


def add_judge(parser: argparse.ArgumentParser, default: str | None = DEFAULT_JUDGE) -> None:
    """Flags that name the judge and say how it is asked; without a default none is asked unless it is named."""
    judge = parser.add_argument_group("judge")
    judge.add_argument(
        "--judge_model", default=default, metavar="NAME", help=f"model that judges (default: {default or 'no judge'})"
    )
    judge.add_argument(
        "--base_url",
        metavar="URL",
        help=f"an OpenAI-compatible server; on loopback no key is needed (default: OPENAI_BASE_URL or {OPENAI_URL})",
    )
    judge.add_argument(
        "--concurrency", type=values.positive_int, default=10, metavar="N", help="requests at a time (default: 10)"
    )
    judge.add_argument(
        "--timeout",
        type=values.positive_float,
        default=60.0,
        metavar="S",
        help="seconds for one request (default: 60)",
    )
    judge.add_argument(
        "--max_retries",
        type=values.count,
        default=6,
        metavar="N",
        help="repeats of a request after a 429, a 5xx, a time-out or a cut connection, with back-off (default: 6)",
    )
    judge.add_argument(
        "--price",
        nargs=2,
        type=values.non_negative_float,
        metavar=("IN", "OUT"),
        help="US dollars per million tokens in and out (default: the list price of models that are known)",
    )
    judge.add_argument(
        "--max_cost",
        type=values.non_negative_float,
        metavar="USD",
        help="stop before this run costs more, by the tokens that the server reports (default: no limit)",
    )


def judge_flags(args: argparse.Namespace) -> JudgeFlags:
    """
    Raises:
        UserError: If --base_url is no address, or --max_cost stands without a price.
    """
    return JudgeFlags(
        model=args.judge_model,
        base_url=check_base_url(args.base_url or os.environ.get("OPENAI_BASE_URL") or OPENAI_URL),
        price=Price(*args.price) if args.price else price_of(args.judge_model),
        max_cost=args.max_cost,
        concurrency=args.concurrency,
        timeout=args.timeout,
        max_retries=args.max_retries,
    )
