"""Flags that name a judge model and say how it is asked."""

import argparse

from utils.cli import values
from utils.judge.cost import DEFAULT_JUDGE

OPENAI_URL = "https://api.openai.com/v1"


def add_judge(parser: argparse.ArgumentParser) -> None:
    """Flags that name the judge and say how it is asked."""
    judge = parser.add_argument_group("judge")
    judge.add_argument(
        "--judge_model", default=DEFAULT_JUDGE, metavar="NAME", help=f"model that judges (default: {DEFAULT_JUDGE})"
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
