"""Answers under steering, a token at a time: every row of a batch has its own prompt and its own steering."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from utils.errors import UserError
from utils.model.chat_format import PromptTokens
from utils.model.cpu_layout import lie_by_columns
from utils.model.padding import left_padded
from utils.model.steering import RowSteering, Steerings, capture_outputs

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class GenerationRow:
    """One answer to generate."""

    prompt: PromptTokens
    steering: Steerings
    seed: int | None = None
    """Of this row's own random numbers, where the answer is sampled."""
    temperature: float | None = None
    """This row's own; None for that of the decoding."""


@dataclass(frozen=True)
class Decoding:
    """How the next token is chosen and when a row ends."""

    max_new_tokens: int
    end_ids: frozenset[int]
    pad_id: int
    temperature: float = 0.0
    """0 takes the most likely token."""


@torch.no_grad()
def generate_without_cache(
    model: "PreTrainedModel", layers: Sequence[nn.Module], row: GenerationRow, decoding: Decoding
) -> list[int]:
    """Generate one answer, running the whole sequence for every token: the reference for `bulk.generate_rows`."""
    sampler = Sampler(row.seed)
    tokens = list(row.prompt.ids)
    steering = RowSteering([row.steering], layers)
    with steering.applied():
        while len(tokens) - len(row.prompt) < decoding.max_new_tokens:
            ids = torch.tensor([tokens], device=model.device)
            steering.positions = torch.arange(len(tokens), device=model.device)[None] >= row.prompt.steer_start
            logits = model(input_ids=ids, use_cache=False, logits_to_keep=1).logits[:, -1]
            tokens += _choose_tokens(logits, [sampler], [decoding.temperature])
            if tokens[-1] in decoding.end_ids:
                break
    return tokens[len(row.prompt) :]


class Sampler:
    """A row's own random numbers, so that what else is in the batch does not change its answer."""

    def __init__(self, seed: int | None) -> None:
        self.generator = torch.Generator().manual_seed(seed or 0)

    def sample(self, logits: Tensor, temperature: float) -> int:
        probabilities = torch.softmax(logits.double().cpu() / temperature, dim=-1)
        return int(torch.multinomial(probabilities, 1, generator=self.generator).item())


def _choose_tokens(logits: Tensor, samplers: Sequence[Sampler], temperatures: Sequence[float]) -> list[int]:
    """The next token of each row, from logits [batch, vocab_size].

    Raises:
        UserError: If they are no numbers: a steered residual stream has left the range of the dtype.
    """
    likeliest = logits.argmax(dim=-1, keepdim=True)  # that which is not a number counts as the largest
    if not bool(logits.gather(-1, likeliest).isfinite().all()):
        raise UserError(
            f"next-token scores are not finite in {logits.dtype}; use smaller --multipliers or --dtype float32"
        )
    return [
        token if temperature == 0.0 else sampler.sample(row, temperature)
        for [token], row, sampler, temperature in zip(likeliest.tolist(), logits, samplers, temperatures, strict=True)
    ]


class DecodingState:
    """The KV cache, mask and positions of the rows that still run."""

    def __init__(
        self,
        model: "PreTrainedModel",
        layers: Sequence[nn.Module],
        rows: Sequence[GenerationRow],
        decoding: Decoding,
        read_layers: Collection[int] = (),
    ) -> None:
        """
        Args:
            model: The model.
            layers: Its decoder blocks.
            rows: What to generate from.
            decoding: How.
            read_layers: Blocks whose output at every row's last token is kept in `read`.
        """
        from utils.model.kv_cache import roomy_cache

        self.model, self.layers, self.decoding = model, layers, decoding
        lie_by_columns(model, len(rows))
        self.rows = list(rows)
        self.steering = RowSteering([row.steering for row in rows], layers)
        self.samplers = [Sampler(row.seed) for row in rows]
        self.active = list(range(len(rows)))
        """Indices into `rows` of those that still run, in the order of the batch."""
        self.cache = roomy_cache(model.config, decoding.max_new_tokens)
        self.read_layers = sorted(set(read_layers))
        self.read: dict[int, Tensor] = {}
        """By layer: the residual stream at the last token of each running row, as steered, [batch, d_model]."""

    def choose(self, logits: Tensor) -> list[int]:
        """The next token of each running row, from logits [batch, vocab_size]."""
        temperatures = [self._temperature(self.rows[row]) for row in self.active]
        return _choose_tokens(logits, [self.samplers[row] for row in self.active], temperatures)

    def _temperature(self, row: GenerationRow) -> float:
        return self.decoding.temperature if row.temperature is None else row.temperature

    def prefill(self, prefixes: "SharedPrefixes | None" = None) -> Tensor:
        """Run the prompts; returns the logits behind them, [batch, vocab_size].

        Args:
            prefixes: What has run already of these prompts, if it has.
        """
        prompts = [row.prompt for row in self.rows]
        if prefixes is not None or _can_share(prompts):
            self.cache, self.mask = (prefixes or SharedPrefixes(self.model, prompts, self.decoding)).behind(prompts)
            tails = torch.tensor([prompt.ids[prompt.steer_start :] for prompt in prompts], device=self.model.device)
            return self._forward(tails)
        ids, self.mask = left_padded([prompt.ids for prompt in prompts], self.decoding.pad_id, self.model.device)
        starts = torch.tensor([prompt.steer_start for prompt in prompts], device=self.model.device)
        self.steering.positions = (self.mask.cumsum(1) - 1 >= starts[:, None]) & self.mask.bool()
        return self._run(ids)

    def step(self, tokens: Sequence[int]) -> Tensor:
        """Append one token to each row; returns the logits behind it, [batch, vocab_size]."""
        return self._forward(torch.tensor(tokens, device=self.model.device)[:, None])

    def keep(self, places: Sequence[int]) -> list[int]:
        """Drop all rows but those at these places, ascending; returns the order in which they go on."""
        from utils.model.kv_cache import filled_order, keep_cache_rows

        order = filled_order(places)
        keep_cache_rows(self.cache, order)
        index = torch.tensor(order)
        self.mask = self.mask[index.to(self.mask.device)]
        self.steering.keep_rows(index)
        self.active = [self.active[place] for place in order]
        return order

    @property
    def can_join(self) -> bool:
        """Whether other rows can come in: not where a layer keeps a window of its own, which rows enter as one."""
        from utils.model.kv_cache import has_windows

        return not has_windows(self.cache)

    def join(self, other: "DecodingState") -> None:
        """Take in the rows of another state, behind these; both have run their prompts."""
        self._trim()
        other._trim()
        width = max(self.mask.shape[1], other.mask.shape[1])
        for mine, theirs in zip(self._cached, other._cached, strict=True):
            mine.keys = torch.cat([_left_filled(mine.keys, width), _left_filled(theirs.keys, width)])
            mine.values = torch.cat([_left_filled(mine.values, width), _left_filled(theirs.values, width)])
        masks = (self.mask, other.mask)
        self.mask = torch.cat([nn.functional.pad(mask, (width - mask.shape[1], 0)) for mask in masks])
        self.rows = [state.rows[row] for state in (self, other) for row in state.active]
        self.samplers = [state.samplers[row] for state in (self, other) for row in state.active]
        self.steering = RowSteering([row.steering for row in self.rows], self.layers)
        self.active = list(range(len(self.rows)))
        lie_by_columns(self.model, len(self.rows))

    @property
    def _cached(self) -> list[Any]:
        """Keys and values of every layer, each [batch, n_heads, seq_len, head_dim]."""
        return list(self.cache.layers)

    def _trim(self) -> None:
        """Leave out the columns in which no row has a token any more."""
        n_empty = int(self.mask.any(dim=0).int().argmax())
        if n_empty:
            self.mask = self.mask[:, n_empty:]
            for layer in self._cached:
                layer.keys, layer.values = layer.keys[..., n_empty:, :], layer.values[..., n_empty:, :]

    def _forward(self, ids: Tensor) -> Tensor:
        """Run tokens [batch, n] behind the cache, all of them steered."""
        self.steering.positions = None
        self.mask = torch.cat([self.mask, self.mask.new_ones(ids.shape)], dim=1)
        return self._run(ids)

    def _run(self, ids: Tensor) -> Tensor:
        positions = (self.mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        blocks = [self.layers[layer] for layer in self.read_layers]
        with self.steering.applied(), capture_outputs(blocks, keep=lambda hidden: hidden[:, -1]) as captured:
            output = self.model(
                input_ids=ids,
                attention_mask=self.mask,
                position_ids=positions,
                past_key_values=self.cache,
                use_cache=True,
                logits_to_keep=1,
            )
        self.read = {layer: captured[place] for place, layer in enumerate(self.read_layers)}
        return output.logits[:, -1]


class SharedPrefixes:
    """What lies before the first steered token, run once for all rows that begin with it."""

    def __init__(self, model: "PreTrainedModel", prompts: Sequence[PromptTokens], decoding: Decoding) -> None:
        from utils.model.kv_cache import roomy_cache
        from utils.model.prefixes import run_prefixes

        unique = list(dict.fromkeys(prompt.ids[: prompt.steer_start] for prompt in prompts))
        self._places = {prefix: place for place, prefix in enumerate(unique)}
        cache = roomy_cache(model.config, decoding.max_new_tokens)
        self._cache, self._mask = run_prefixes(model, unique, cache, decoding.pad_id)

    @classmethod
    def of_all(
        cls, model: "PreTrainedModel", prompts: Sequence[PromptTokens], decoding: Decoding, most: int
    ) -> "SharedPrefixes | None":
        """Those of all rows of a run, of which `most` run at once; None where that saves nothing."""
        n_unique = len({prompt.ids[: prompt.steer_start] for prompt in prompts})
        is_worth_it = n_unique <= most < len(prompts) and _can_share(prompts)
        return cls(model, prompts, decoding) if is_worth_it else None

    def behind(self, prompts: Sequence[PromptTokens]) -> tuple[Any, Tensor]:
        """A cache of its own for rows with these prompts, and its mask [batch, seq_len]."""
        from utils.model.kv_cache import copied_rows

        index = torch.tensor([self._places[prompt.ids[: prompt.steer_start]] for prompt in prompts])
        return copied_rows(self._cache, index), self._mask[index.to(self._mask.device)]


def _can_share(prompts: Sequence[PromptTokens]) -> bool:
    """Whether prompts can run in two parts: what is behind the first steered token is equally long in all of them."""
    n_tails = len({len(prompt) - prompt.steer_start for prompt in prompts})
    return n_tails == 1 and min(prompt.steer_start for prompt in prompts) > 0


def _left_filled(states: Tensor, width: int) -> Tensor:
    """Keys or values [batch, n_heads, seq_len, head_dim], with zeros before them up to `width` tokens."""
    return nn.functional.pad(states, (0, 0, width - states.shape[-2], 0))
