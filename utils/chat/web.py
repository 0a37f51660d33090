"""The chat in a browser: one static page, and what it asks for. Nothing is kept here between two requests."""

import dataclasses
import json
import logging
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response, StreamingResponse
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, FiniteFloat

from utils.chat.commands import Knobs, reproduce
from utils.chat.guarding import Guard, new_token
from utils.chat.measures import measure
from utils.chat.replies import End, Probe, ReplySettings, Token, reply
from utils.chat.shelf import Ask, Shelf, ShelfEntry
from utils.chat.worker import Worker
from utils.errors import UserError
from utils.files.writing import tensor_bytes
from utils.model.chat_format import Message
from utils.model.steering import Steering
from utils.settings import OPERATORS, known_operator
from utils.vectors.norms import layer_norms, multiplier_of_strength

if TYPE_CHECKING:
    from llama_wrapper import LlamaWrapper

log = logging.getLogger(__name__)

STRIP = (-2.0, -1.0, 0.0, 1.0, 2.0)
MAX_TEXT = 200_000
MAX_TURNS = 2_000
_PAGE = Path(__file__).parent / "page"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Turn(_Strict):
    role: Literal["user", "assistant"]
    content: Annotated[str, Field(max_length=MAX_TEXT)]


def known_operator_value(text: str) -> str:
    """As pydantic takes it: ValueError for a name that is none."""
    try:
        return known_operator(text)
    except UserError as err:
        raise ValueError(str(err)) from err


class AskBody(_Strict):
    source: Annotated[str, Field(pattern=r"^[A-Za-z0-9-]{1,64}$")]
    layer: Annotated[int, Field(ge=0)]
    multiplier: FiniteFloat
    operator: Annotated[str, AfterValidator(known_operator_value)] = "add"


class ReplyBody(_Strict):
    """What the page asks for."""

    history: Annotated[list[Turn], Field(max_length=MAX_TURNS)]
    asks: Annotated[list[AskBody], Field(max_length=4)] = []
    strip: bool = False
    """At five multipliers instead of unsteered and steered."""
    system_prompt: Annotated[str, Field(max_length=MAX_TEXT)] | None = None
    temperature: Annotated[FiniteFloat, Field(ge=0, le=100)] = 0.0
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    max_new_tokens: Annotated[int, Field(ge=1, le=100_000)] = 200

    @property
    def messages(self) -> list[Message]:
        return [Message(turn.role, turn.content) for turn in self.history]

    @property
    def knobs(self) -> Knobs:
        asks = tuple(Ask(ask.source, ask.layer, ask.multiplier, ask.operator) for ask in self.asks)
        return Knobs(asks, self.system_prompt, self.temperature, self.seed, self.max_new_tokens)


def build_app(model: "LlamaWrapper", shelf: Shelf, knobs: Knobs, token: str | None = None) -> FastAPI:
    """The page's server.

    Args:
        model: Who answers.
        shelf: The vectors.
        knobs: What the page begins with.
        token: What a client must know; None for whoever is on this machine.
    """
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    app.add_middleware(Guard, token=token)
    worker = Worker()
    setup = describe_setup(model, shelf, knobs)

    @app.exception_handler(UserError)
    async def refuse(_request: Request, err: UserError) -> Response:
        return JSONResponse({"error": str(err)}, status_code=400)

    @app.exception_handler(RequestValidationError)
    async def refuse_body(_request: Request, err: RequestValidationError) -> Response:
        return JSONResponse({"error": first_fault(err)}, status_code=400)

    @app.get("/")
    def page() -> Response:
        return FileResponse(_PAGE / "index.html")

    @app.get("/chat.js")
    def script() -> Response:
        return FileResponse(_PAGE / "chat.js", media_type="text/javascript")

    @app.get("/chat.css")
    def style() -> Response:
        return FileResponse(_PAGE / "chat.css")

    @app.get("/api/setup")
    def first() -> dict[str, Any]:
        return setup

    @app.post("/api/command")
    def command(body: ReplyBody) -> dict[str, str]:
        return {"command": reproduce(shelf, body.messages, body.knobs)}

    @app.post("/api/vector")
    def vector(body: ReplyBody) -> Response:
        content, name = export_sum(shelf, body.knobs.asks)
        headers = {"Content-Disposition": f'attachment; filename="{name}"'}
        return Response(content, media_type="application/octet-stream", headers=headers)

    @app.post("/api/reply")
    async def answer(body: ReplyBody) -> Response:
        events = answer_events(model, shelf, body)
        lines = worker.stream(events)
        return StreamingResponse(_encoded(lines), media_type="application/x-ndjson")

    return app


async def _encoded(events: AsyncIterator[dict[str, Any]]) -> AsyncIterator[str]:
    async for event in events:
        yield json.dumps(event, allow_nan=False) + "\n"


def answer_events(model: "LlamaWrapper", shelf: Shelf, body: ReplyBody) -> Iterator[dict[str, Any]]:
    """An answer as the page reads it: its columns, tokens and ends, what was measured; or an error."""
    knobs = body.knobs
    try:
        steerings = tuple(
            shelf.steering(shelf.ask(ask.source, ask.layer, ask.multiplier, ask.operator)) for ask in knobs.asks
        )
        columns, titles = columns_of(steerings, strip=body.strip)
        probe = Probe(steerings[0].layer, steerings[0].vector) if steerings else None
        yield {"columns": titles}
        settings = ReplySettings(
            columns, probe, knobs.system_prompt, knobs.temperature, knobs.seed, knobs.max_new_tokens
        )
        ends: dict[int, End] = {}
        for event in reply(model, body.messages, settings):
            if isinstance(event, Token):
                yield {"token": event.column, "text": event.text, "projection": _rounded(event.projection)}
            else:
                ends[event.column] = event
                yield {"end": event.column, "reason": event.reason, "text": event.text, "rest": event.rest}
        prompt = model.chat_format.encode_conversation(body.messages, knobs.system_prompt)
        for measured in measure(model, prompt, columns, ends):
            yield {"measured": measured.column, **dataclasses.asdict(measured)}
    except UserError as err:
        yield {"error": str(err)}


def columns_of(steerings: tuple[Steering, ...], *, strip: bool) -> tuple[tuple[tuple[Steering, ...], ...], list[str]]:
    """The steerings of each column, and its title; the strip turns the first vector and leaves it out at 0."""
    if not steerings:
        return ((),), ["unsteered"]
    if not strip:
        return ((), steerings), ["unsteered", "steered"]
    first, *others = steerings
    columns = tuple((dataclasses.replace(first, multiplier=one), *others) if one else () for one in STRIP)
    return columns, [f"{one:+g}" if one else "unsteered" for one in STRIP]


def export_sum(shelf: Shelf, asks: tuple[Ask, ...]) -> tuple[bytes, str]:
    """A vector file with all that is added, to be used at multiplier 1, and a name for it.

    Raises:
        UserError: If nothing is added, or at several layers.
    """
    if others := [ask.operator for ask in asks if ask.operator != "add"]:
        raise UserError(f"a vector file says what is added; the operator {others[0]} does something else")
    layers = {ask.layer for ask in asks}
    if len(layers) != 1:
        raise UserError("a vector file is of one layer: steer with a vector, and at one layer")
    total = sum((shelf.steering(ask).vector * ask.multiplier for ask in asks[1:]), start=_first(shelf, asks))
    return tensor_bytes(total), f"vec_layer_{layers.pop()}_{shelf.choice.label}.pt"


def _first(shelf: Shelf, asks: tuple[Ask, ...]) -> Any:
    return shelf.steering(asks[0]).vector * asks[0].multiplier


def describe_setup(model: "LlamaWrapper", shelf: Shelf, knobs: Knobs) -> dict[str, Any]:
    """What the page has to know at its start."""
    entries = shelf.entries()
    norms = layer_norms(model, shelf.paths) if any(entry.chosen for entry in entries) else []
    return {
        "model": model.label,
        "n_layers": model.n_layers,
        "behaviors": [_describe(shelf, entry, norms) for entry in entries],
        "knobs": dataclasses.asdict(knobs),
        "operators": OPERATORS,
    }


def _describe(shelf: Shelf, entry: ShelfEntry, norms: list[float]) -> dict[str, Any]:
    layer = entry.default_layer(shelf.n_layers)
    return {
        "id": entry.behavior,
        "label": entry.label,
        "meaning": entry.meaning,
        "layers": entry.layers,
        "kind": entry.kind.suffix.lstrip("_").replace("_", ", ") or "read=letter",
        "layer": layer,
        "multiplier": entry.default_multiplier(layer),
        "chosen": entry.chosen and dataclasses.asdict(entry.chosen),
        "ranges": {
            str(at): multiplier_of_strength(strength, norms[at], shelf.load(entry.behavior, at))
            for at, strength in (entry.chosen.strengths if entry.chosen else {}).items()
            if at in entry.layers
        },
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def first_fault(err: RequestValidationError) -> str:
    """A refused request in one line."""
    fault = err.errors()[0]
    where = ".".join(str(part) for part in fault["loc"] if part != "body")
    return f"{where or 'the request'}: {fault['msg']}"


def serve_page(model: "LlamaWrapper", shelf: Shelf, knobs: Knobs, host: str, port: int) -> None:
    """Serve until Ctrl-C; says the address on stderr.

    Raises:
        UserError: If the address cannot be had.
    """
    token = new_token(host)
    app = build_app(model, shelf, knobs, token)
    query = "" if token is None else f"?token={token}"
    serve_app(app, host, port, lambda at: f"open {at}/{query} (Ctrl-C ends)")


def serve_app(app: FastAPI, host: str, port: int, announce: Any) -> None:
    """Serve an app until Ctrl-C; `announce` makes the line that says its address."""
    import uvicorn

    listener = listen(host, port)
    at = f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"
    server = uvicorn.Server(
        uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=2, lifespan="off")
    )
    log.info("%s", announce(at))
    try:
        server.run(sockets=[listener])
    except KeyboardInterrupt:
        log.info("stopped")
    finally:
        listener.close()


def listen(host: str, port: int) -> socket.socket:
    """
    Raises:
        UserError: If the address is taken, or not one of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except (OSError, OverflowError) as err:
        listener.close()
        raise UserError(f"{host} port {port}: {err}; choose another --port or --host") from err
    return listener
