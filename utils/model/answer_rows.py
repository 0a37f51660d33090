"""Answers as rows behind their questions: steered rows join behind the first layer that steers them.

A prompt runs once up to its first steered token; its keys and values are shared. What is steered, the last
prompt token and the answer, is a row for each combination behind it:

    prefix (once)  | row of the base: unsteered, from the bottom up
                   | row of combination 1: joins behind the first layer that steers it, as an edited copy
                   | ...

Rows are used instead of one packed sequence because answers are long: in one sequence the attention would
grow with the square of all combinations' tokens.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from utils.model.architectures import logit_scale
from utils.model.chat_format import AnswerTokens
from utils.model.packing import LayerInputs
from utils.model.prefixes import SharedPrefixes, run_prefixes
from utils.model.runtime import Runtime
from utils.model.steering import Steering, hidden_of, output_hooks, with_hidden

# Answer tokens whose logits are held at once: a vocabulary is wide.
LOGITS_AT_ONCE = 256


@dataclass(frozen=True)
class AnswerPair:
    """One question with both of its answers, as tokens."""

    matching: AnswerTokens
    other: AnswerTokens

    @property
    def answers(self) -> tuple[AnswerTokens, AnswerTokens]:
        return self.matching, self.other

    @property
    def shares_prefix(self) -> bool:
        """Whether both have the same tokens before the first steered one, the last of the prompt."""
        starts = {answer.steer_start for answer in self.answers}
        prefixes = {answer.ids[: answer.steer_start] for answer in self.answers}
        is_steered_at_its_end = all(answer.n_steered == answer.n_answer + 1 for answer in self.answers)
        return len(starts) == 1 and starts != {0} and len(prefixes) == 1 and is_steered_at_its_end

    @property
    def longest(self) -> int:
        return max(len(answer) for answer in self.answers)


class BaseRows:
    """Both answers of some questions as rows behind their questions' prefixes, which run once."""

    def __init__(self, runtime: Runtime, pairs: Sequence[AnswerPair], *, one_answer: bool = False) -> None:
        """
        Args:
            runtime: Of the model.
            pairs: With shared prefixes.
            one_answer: Take the matching answers only.
        """
        self.runtime = runtime
        self._rows_per_prefix = 1 if one_answer else 2
        answers = [answer for pair in pairs for answer in pair.answers[: self._rows_per_prefix]]
        tails = [answer.ids[answer.steer_start : -1] for answer in answers]  # nothing is predicted behind the last
        length = max(len(tail) for tail in tails)
        device = runtime.device
        padded = [[*tail, *[runtime.pad_id] * (length - len(tail))] for tail in tails]
        self.input_ids = torch.tensor(padded, device=device)  # [rows, length]
        starts = torch.tensor([answer.steer_start for answer in answers], device=device)
        self.position_ids = starts[:, None] + torch.arange(length, device=device)
        self.is_predicting = torch.arange(length, device=device) < torch.tensor(
            [[len(tail)] for tail in tails], device=device
        )
        self.targets = torch.tensor([token for answer in answers for token in answer.ids[answer.steer_start + 1 :]])
        self.counts = torch.tensor([len(tail) for tail in tails])
        prefixes = [pair.matching.ids[: pair.matching.steer_start] for pair in pairs]
        self._prefix, prefix_mask = run_prefixes(runtime.model, prefixes, DynamicCache(), runtime.pad_id)
        self._mask = self._build_mask(prefix_mask.bool().repeat_interleave(self._rows_per_prefix, dim=0), length)

    def _build_mask(self, prefix_mask: Tensor, length: int) -> Tensor:
        """Every tail token sees its prefix and the tail up to itself, [rows, 1, length, prefix + length]."""
        causal = torch.ones(length, length, dtype=torch.bool, device=prefix_mask.device).tril()
        rows = len(prefix_mask)
        visible = torch.cat(
            [prefix_mask[:, None].expand(rows, length, -1), causal.expand(rows, length, length)], dim=-1
        )
        dtype = self.runtime.dtype
        blocked = torch.finfo(dtype).min
        return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill(~visible, blocked)[:, None]

    def score(self, combinations: Sequence[tuple[Steering, ...]]) -> Tensor:
        """Mean log-probability of every row's answer, unsteered and under each combination.

        Args:
            combinations: By ascending first layer.

        Returns:
            [1 + len(combinations), rows], float32.
        """
        predicting = self._predicting(combinations)  # [1 + n, tokens, d_model]
        targets = self.targets.to(predicting.device).expand(len(predicting), -1)
        each = [
            log_probabilities(logits, ids.to(logits.device))
            for logits, ids in zip(
                self._logits(predicting.flatten(0, 1)), targets.flatten().split(LOGITS_AT_ONCE), strict=True
            )
        ]
        scores = torch.cat(each).unflatten(0, targets.shape)
        row_of = torch.arange(len(self.counts)).repeat_interleave(self.counts).to(scores.device)
        sums = torch.zeros(len(scores), len(self.counts), device=scores.device, dtype=scores.dtype)
        return sums.index_add_(1, row_of, scores) / self.counts.to(scores.device)

    def kl(self, combinations: Sequence[tuple[Steering, ...]]) -> Tensor:
        """KL(unsteered || steered) of the next-token distribution at every answer token.

        Args:
            combinations: By ascending first layer.

        Returns:
            [len(combinations), n_tokens], float32, in nats.
        """
        predicting = self._predicting(combinations)
        expected = torch.cat([logits.float().log_softmax(-1) for logits in self._logits(predicting[0])])
        rows = []
        for steered in predicting[1:]:
            found = torch.cat([logits.float().log_softmax(-1) for logits in self._logits(steered)])
            rows.append((expected.exp() * (expected - found)).sum(-1).clamp(min=0))
        return torch.stack(rows)

    def _predicting(self, combinations: Sequence[tuple[Steering, ...]]) -> Tensor:
        """Hidden states behind the final norm where an answer token is predicted, [1 + n, tokens, d_model]."""
        return self.run(combinations)[:, self.is_predicting]

    def run(
        self,
        combinations: Sequence[tuple[Steering, ...]],
        watch: Mapping[nn.Module, Callable[[Tensor], Tensor | None]] | None = None,
    ) -> Tensor:
        """Run the rows unsteered and under each combination.

        Args:
            combinations: By ascending first layer.
            watch: Called with what its decoder block gives, [copies x rows, length, d_model]: the base rows, then
                the rows of each combination that has come in. What it returns takes its place.

        Returns:
            Hidden states behind the final norm, [1 + n, rows, length, d_model].
        """
        with rows_enter_late(self.runtime.layers, len(self.input_ids), combinations), output_hooks(watch or {}):
            hidden = self.runtime.model.get_decoder()(
                input_ids=self.input_ids,
                attention_mask=self._mask,
                position_ids=self.position_ids,
                past_key_values=SharedPrefixes(self._prefix, rows_per_prefix=self._rows_per_prefix),
                use_cache=True,
            )[0]
        return hidden.unflatten(0, (1 + len(combinations), -1))

    def _logits(self, hidden: Tensor) -> Iterator[Tensor]:
        """Logits of hidden states [n, d_model] behind the final norm, some rows at a time."""
        head: nn.Module = self.runtime.model.get_output_embeddings()
        scale = logit_scale(self.runtime.config)
        for some in hidden.split(LOGITS_AT_ONCE):
            logits = head(some) * scale.factor
            yield logits if scale.softcap is None else torch.tanh(logits / scale.softcap) * scale.softcap


@contextmanager
def rows_enter_late(
    layers: Sequence[nn.Module], n_base: int, combinations: Sequence[tuple[Steering, ...]]
) -> Iterator[None]:
    """For the block: the base rows run unsteered, and each combination's rows join behind its first layer.

    They join as edited copies of the base rows: below its first layer a steered row equals the unsteered one.

    Args:
        layers: The decoder blocks.
        n_base: Rows of the batch.
        combinations: What is done to each copy, by ascending layer; the first layers ascend as well.
    """
    copies = 1
    with ExitStack() as stack:
        for index, layer in enumerate(layers):
            if copies > 1:
                tile = partial(_tiled, copies=copies, n_base=n_base)
                stack.callback(LayerInputs(layer).changed_by(tile).remove)
            edits = [
                (1 + place, tuple(one for one in steerings if one.layer == index))
                for place, steerings in enumerate(combinations)
            ]
            if any(here for _, here in edits):
                stack.callback(layer.register_forward_hook(_edit_copies(n_base, copies, edits)).remove)
                copies += sum(steerings[0].layer == index for steerings in combinations)
        yield


# what a decoder block is given for every row, beside the residual stream; some of it may be shared by all rows
_PER_ROW = ("attention_mask", "position_ids", "position_embeddings")


def _tiled(name: str, value: Tensor, copies: int, n_base: int) -> Tensor:
    """An input of a block as all copies need it: what has a row for each base row is repeated."""
    if name not in _PER_ROW or value.shape[0] != n_base:
        return value
    return value.repeat(copies, *[1] * (value.dim() - 1))


def _edit_copies(
    n_base: int, copies: int, edits: Sequence[tuple[int, tuple[Steering, ...]]]
) -> Callable[[nn.Module, Any, Any], Any]:
    def hook(module: nn.Module, args: Any, output: Any) -> Any:  # noqa: ARG001
        parts = list(hidden_of(output).split(n_base))  # the base, then every copy that is in, [n_base, length, d_model]
        assert len(parts) == copies
        for copy, steerings in edits:
            rows = parts[copy] if copy < copies else parts[0]
            for steering in steerings:
                rows = steering.placed(rows.device).edit(rows)
            if copy < copies:
                parts[copy] = rows
            elif steerings:
                parts.append(rows)
        return with_hidden(output, torch.cat(parts))

    return hook


def log_probabilities(logits: Tensor, token_ids: Tensor) -> Tensor:
    """Of each row's token, [n] float32, from logits [n, vocab_size]."""
    logits = logits.float()
    return logits.gather(-1, token_ids[:, None])[:, 0] - logits.logsumexp(dim=-1)
