"""serve.py's server: requests that come together, each with its own steering, against one at a time.

Example: python -m benchmarks.serving
"""

import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from benchmarks.common import load_model, make_parser, report, seconds, skip_without_gpu
from utils.chat.engine import Engine
from utils.chat.server import build_server
from utils.chat.shelf import Shelf
from utils.chat.web import listen
from utils.data.records import load_open_ended_questions
from utils.model.checkpoints import choose_model
from utils.paths import DataPaths


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser(__doc__)
    parser.add_argument("--requests", type=int, default=8, metavar="N")
    parser.add_argument("--behavior", default="positive-sentiment")
    parser.add_argument("--max_tokens", type=int, default=60)
    args = parser.parse_args(argv)
    if skip_without_gpu(args):
        return 0
    import openai
    import uvicorn

    model = load_model(args)
    choice = choose_model("135m", args.model, False)
    shelf = Shelf(DataPaths(args.data), choice, model.n_layers, model.d_model)
    engine = Engine(model, args.requests)
    listener = listen("127.0.0.1", 0)
    app = build_server(model, shelf, engine, "127.0.0.1", None)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off"))
    threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True).start()
    while not server.started:
        time.sleep(0.01)
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{listener.getsockname()[1]}/v1", api_key="none", timeout=600)
    questions = load_open_ended_questions(DataPaths(args.data).test_dataset("sycophancy", "open_ended"))
    layer = shelf.ask(args.behavior).layer

    def ask(index: int) -> str:
        multiplier = index % 5 - 2
        return (
            client.chat.completions.create(
                model=f"{model.label}+{args.behavior}@{layer}x{multiplier}",
                messages=[{"role": "user", "content": questions[index % len(questions)]}],
                max_tokens=args.max_tokens,
            )
            .choices[0]
            .message.content
            or ""
        )

    ask(0)  # warm-up
    answers: dict[str, list[str]] = {}

    def one_at_a_time() -> None:
        answers["alone"] = [ask(index) for index in range(args.requests)]

    def together() -> None:
        with ThreadPoolExecutor(args.requests) as pool:
            answers["together"] = list(pool.map(ask, range(args.requests)))

    alone_s, together_s = seconds(one_at_a_time, model.device), seconds(together, model.device)
    server.should_exit = True
    engine.close()
    n_equal = sum(one == other for one, other in zip(answers["alone"], answers["together"], strict=True))
    table = [
        ("one at a time", f"{alone_s:.1f} s"),
        ("together", f"{together_s:.1f} s"),
        ("speed-up", f"{alone_s / together_s:.1f}x"),
        ("identical answers", f"{n_equal} of {args.requests}"),
    ]
    figures = {"alone_s": alone_s, "together_s": together_s, "speedup": alone_s / together_s, "n_identical": n_equal}
    report(f"{args.requests} requests of up to {args.max_tokens} tokens, {model.label}", table, figures, args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
