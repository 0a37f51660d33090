"""What judging costs: prices, estimates before a run, and a limit that a run does not pass."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio

DEFAULT_JUDGE = "gpt-6-luna"
"""OpenAI's successor to the GPT-4 models, which leave its API on 2027-01-14."""

CHARS_PER_TOKEN = 4
"""Of English text, roughly; for estimates only."""
_TOKENS_PER_REPLY = 4  # a number and the end of the turn
_TOKENS_OF_FORMAT = 50  # role marks and the like, an upper bound


@dataclass(frozen=True)
class Price:
    """US dollars per million tokens."""

    per_million_in: float
    per_million_out: float

    def of(self, tokens_in: float, tokens_out: float) -> float:
        """US dollars for so many tokens."""
        return (tokens_in * self.per_million_in + tokens_out * self.per_million_out) / 1e6


# OpenAI's list prices without discounts for cached input, as of November 2026
PRICES = {
    "gpt-6-luna": Price(0.10, 0.50),
    "gpt-6.1-terra": Price(1.00, 5.00),
    "gpt-6.1-sol": Price(2.00, 10.00),
    "gpt-6-astra": Price(10.00, 50.00),
    "gpt-4.1": Price(2.00, 8.00),
    "gpt-4.1-mini": Price(0.40, 1.60),
    "gpt-4o": Price(2.50, 10.00),
    "gpt-4o-mini": Price(0.15, 0.60),
}


def price_of(model: str) -> Price | None:
    """The model's list price, also for its dated snapshots; None where it is not known."""
    return PRICES.get(re.sub(r"-\d{4}-\d{2}-\d{2}\Z", "", model))


@dataclass
class Estimate:
    """Requests to come: how many, and roughly how many tokens."""

    n_requests: int = 0
    chars_in: int = 0

    def add(self, request: Iterable[Mapping[str, str]]) -> None:
        """Count one more request."""
        self.n_requests += 1
        self.chars_in += sum(len(message["content"]) for message in request)

    @property
    def tokens_in(self) -> int:
        return round(self.chars_in / CHARS_PER_TOKEN)

    @property
    def tokens_out(self) -> int:
        return self.n_requests * _TOKENS_PER_REPLY


def token_bound(request: Iterable[Mapping[str, str]]) -> int:
    """A number of tokens that the request cannot exceed: no token is shorter than a byte."""
    return _TOKENS_OF_FORMAT + sum(len(message["content"].encode()) for message in request)


class Budget:
    """What a run has spent, and what its requests in flight may come to spend at most."""

    def __init__(self, price: Price | None, limit: float | None) -> None:
        """Args: price: None where it is not known. limit: US dollars; None for no limit."""
        self.price, self.limit = price, limit
        self.spent = 0.0
        self._reserved: list[float] = []
        self._waiting: list[asyncio.Future[None]] = []

    def cost(self, tokens_in: int, tokens_out: int) -> float:
        return self.price.of(tokens_in, tokens_out) if self.price else 0.0

    def __str__(self) -> str:
        return f"{self.spent:.4f} USD" if self.price else "cost unknown"

    async def reserve(self, bound: float) -> bool:
        """Set `bound` dollars aside for a request; False where that could pass the limit.

        Waits while requests in flight may turn out cheaper than what was set aside for them.
        """
        import asyncio

        while self.limit is not None and self.spent + sum(self._reserved) + bound > self.limit:
            if not self._reserved:
                return False
            freed = asyncio.get_running_loop().create_future()
            self._waiting.append(freed)
            await freed
        self._reserved.append(bound)
        return True

    def settle(self, bound: float, cost: float) -> None:
        """Replace what `reserve` set aside by what the request did cost."""
        self._reserved.remove(bound)
        self.spent += cost
        waiting, self._waiting = self._waiting, []
        for freed in waiting:
            if not freed.done():
                freed.set_result(None)
