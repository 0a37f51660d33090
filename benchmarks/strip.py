"""A chat's strip: five multipliers as rows of one batch on one prompt, against one answer.

Example: python -m benchmarks.strip
"""

import sys
from collections.abc import Sequence

from benchmarks.common import load_model, make_parser, random_steerings, report, seconds, skip_without_gpu
from utils.chat.replies import Probe, ReplySettings, reply
from utils.model.chat_format import Message
from utils.model.steering import Steering


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser(__doc__)
    parser.add_argument("--layer", type=int, default=15)
    parser.add_argument("--max_new_tokens", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=3, help="of which the fastest counts (default: 3)")
    args = parser.parse_args(argv)
    if skip_without_gpu(args):
        return 0
    model = load_model(args)
    (steering,) = random_steerings(model, [args.layer], [1.0], args.seed)
    history = [Message("user", "Which places by the sea would you show to a friend, and why those?")]
    strip = tuple((Steering(args.layer, m, steering.vector),) if m else () for m in (-2.0, -1.0, 0.0, 1.0, 2.0))

    def answer(columns: tuple[tuple[Steering, ...], ...]) -> float:
        settings = ReplySettings(columns, Probe(args.layer, steering.vector), max_new_tokens=args.max_new_tokens)
        times = [seconds(lambda: list(reply(model, history, settings)), model.device) for _ in range(args.repeats)]
        return min(times)

    answer(((),))  # warm-up
    one_s, strip_s = answer(((),)), answer(strip)
    table = [
        ("one answer", f"{one_s:.2f} s"),
        ("strip of five", f"{strip_s:.2f} s"),
        ("strip / one", f"{strip_s / one_s:.2f}"),
    ]
    figures = {"one_s": one_s, "strip_s": strip_s, "ratio": strip_s / one_s}
    report(f"strip of up to {args.max_new_tokens} tokens, {model.label}, {model.device}", table, figures, args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
