"""Answers to requests that come at any time, in one running batch that rows enter and leave between steps.

Every row has its own prompt, steering, temperature and length. One thread runs the model.
"""

import asyncio
import logging
import queue
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch

from utils.chat.replies import Answer, EndReason
from utils.model.generation import Decoding, DecodingState, GenerationRow

if TYPE_CHECKING:
    from llama_wrapper import LlamaWrapper

log = logging.getLogger(__name__)

ROOM = 64
"""Tokens for which the cache has room behind a change of rows, before it is copied into a larger one."""


@dataclass(frozen=True)
class Piece:
    """What an answer has grown by."""

    text: str
    n_tokens: int


@dataclass(frozen=True)
class Finished:
    """An answer is whole."""

    reason: EndReason | Literal["error"]
    error: str = ""
    is_ours: bool = False
    """Whether the error is the server's fault and not the request's."""


@dataclass(eq=False)
class Request:
    """A row that is wanted, and where its answer goes."""

    row: GenerationRow
    n_new: int
    at_limit: EndReason
    events: "asyncio.Queue[Piece | Finished]" = field(default_factory=asyncio.Queue)
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    answer: Answer | None = None
    is_left: bool = False
    """The client has gone."""

    def tell(self, event: Piece | Finished) -> None:
        """From the model's thread to the client's."""
        try:
            self.loop.call_soon_threadsafe(self.events.put_nowait, event)
        except RuntimeError:  # the server has ended
            self.is_left = True


class Engine:
    """Runs requests together."""

    def __init__(self, model: "LlamaWrapper", max_rows: int) -> None:
        """
        Args:
            model: Who answers.
            max_rows: At once; what is beyond waits.
        """
        self.model, self.max_rows = model, max_rows
        self._arriving: queue.Queue[Request | None] = queue.Queue()
        self._waiting: list[Request] = []
        self._running: list[Request] = []  # in the order of the state's rows
        self._state: DecodingState | None = None
        self._logits: torch.Tensor | None = None
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._thread.start()

    @property
    def n_running(self) -> int:
        """Rows in the batch."""
        return len(self._running)

    def submit(self, row: GenerationRow, n_new: int, at_limit: EndReason) -> Request:
        """Ask for an answer; its pieces come to the request's `events`. To be called in an event loop."""
        request = Request(row, n_new, at_limit)
        self._arriving.put(request)
        return request

    def close(self) -> None:
        self._arriving.put(None)
        self._thread.join(10)

    def _run(self) -> None:
        while self._take_arrivals():
            try:
                with torch.no_grad():
                    self._turn()
            except Exception as err:  # whatever it is: these requests fail, later ones are served
                log.exception("a batch of %d rows failed", len(self._running))
                for request in self._running:
                    request.tell(Finished("error", f"the model failed: {err}".splitlines()[0], is_ours=True))
                self._running, self._state = [], None

    def _take_arrivals(self) -> bool:
        """Add what has come to the queue, and wait where there is nothing to do; False at the end."""
        is_idle = not self._running and not self._waiting
        while is_idle or not self._arriving.empty():
            request = self._arriving.get()
            if request is None:
                return False
            self._waiting.append(request)
            is_idle = False
        return True

    def _turn(self) -> None:
        """One token for every row, after those that left have gone and those that wait have come in."""
        self._waiting = [request for request in self._waiting if not request.is_left]
        self._keep([place for place, request in enumerate(self._running) if not request.is_left])
        self._admit()
        if self._state is None:
            return
        self._refuse_infinite()
        if self._state is None or self._logits is None:
            return
        chosen = self._state.choose(self._logits)
        stays = [place for place, token in enumerate(chosen) if not self._give(self._running[place], token)]
        order = self._keep(stays)
        if self._state is not None:
            self._logits = self._state.step([chosen[place] for place in order])

    def _admit(self) -> None:
        """Run the prompts of waiting requests, and let their rows join."""
        free = self.max_rows - len(self._running)
        if not self._waiting or free < 1 or (self._state is not None and not self._state.can_join):
            return
        coming, self._waiting = self._waiting[:free], self._waiting[free:]
        before, self._running = len(self._running), [*self._running, *coming]
        decoding = Decoding(ROOM, self.model.end_ids, self.model.runtime.pad_id)
        state = DecodingState(self.model.model, self.model.layers, [request.row for request in coming], decoding)
        logits = state.prefill()
        if before and self._state is not None and self._logits is not None:
            self._state.join(state)
            self._logits = torch.cat([self._logits, logits])
        else:
            self._state, self._logits = state, logits

    def _give(self, request: Request, token: int) -> bool:
        """Hand a token on; whether the row has ended with it."""
        answer = request.answer = request.answer or Answer(self.model.tokenizer)
        reason: EndReason | None = "stop" if token in self.model.end_ids else None
        if reason is None:
            request.tell(Piece(answer.add(token), len(answer.token_ids)))
            reason = request.at_limit if len(answer.token_ids) == request.n_new else None
        if reason is not None:
            request.tell(Piece(answer.rest(), len(answer.token_ids)))
            request.tell(Finished(reason))
        return reason is not None

    def _refuse_infinite(self) -> None:
        """End the rows whose steering has left the range of the arithmetic; the others go on."""
        assert self._logits is not None
        finite = self._logits.amax(dim=-1).isfinite().tolist()
        for request, is_finite in zip(self._running, finite, strict=True):
            if not is_finite:
                request.tell(Finished("error", "next-token scores are not finite; use a smaller multiplier"))
        self._keep([place for place, is_finite in enumerate(finite) if is_finite])

    def _keep(self, places: list[int]) -> list[int]:
        """Go on with some of the running rows; returns the order in which they do."""
        if len(places) == len(self._running):
            return places
        if places and self._state is not None and self._logits is not None:
            places = self._state.keep(places)
            self._logits = self._logits[torch.tensor(places, device=self._logits.device)]
        else:
            self._state = self._logits = None
        self._running = [self._running[place] for place in places]
        return places
