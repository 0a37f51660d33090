"""A decoder model that can be read and steered: capture, read pairs, score, generate.

Layer `l` is decoder block `l`, counted from 0; its activation is the block's output. The model's
modules are left as they are: everything happens in forward hooks, which are always removed.

    model = LlamaWrapper.load("135m")
    steering = Steering.load("sycophancy", layer=13, multiplier=1.5)
    print(model.ask("Is the earth flat?", steering))

Every fast path has a plain one beside it that runs one full sequence a combination
(`score_plainly`, `answer_activations_plainly`); it is the reference that the fast path is held to.
"""

import logging
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from utils.data.records import AnyPair
from utils.model import answer_scoring, processes, reading, scoring
from utils.model.answer_rows import AnswerPair
from utils.model.batching import CPU_TOKENS_PER_PASS
from utils.model.bulk import generate_rows
from utils.model.chat_format import ChatFormat, PromptTokens
from utils.model.checkpoints import ModelChoice, choice_of
from utils.model.conditions import opened, score_gated
from utils.model.fingerprint import fingerprint_of
from utils.model.generation import Decoding, GenerationRow, generate_without_cache
from utils.model.loading import load_checkpoint, load_weights_over, pick_device, pick_dtype
from utils.model.pairs import encode_pair
from utils.model.quantizing import Quantized, check_quantizer, quantize_model
from utils.model.reading import PairBatch
from utils.model.runtime import Runtime
from utils.model.steering import RowSteering, Steering, Steerings, capture_outputs, check_range
from utils.settings import Reading

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from utils.inside.readings import IntermediateDecoding, TokenProjections, Transcript

__all__ = ["Generation", "LlamaWrapper", "Steering"]

log = logging.getLogger(__name__)

# A generated row's share of a pass, for each of its tokens: its keys and values of all layers stay.
GENERATION_COST = 0.25
SMALL_GENERATION_COST = 0.1  # on a CPU, where they take little room: more rows share each reading of the weights
CPU_CACHE_BYTES = 2**30  # that the keys and values of a batch may take there before its rows cost more


@dataclass(frozen=True)
class Generation:
    """One generated answer."""

    token_ids: tuple[int, ...]
    """The new tokens; the end-of-sequence token, where one came, is the last."""
    text: str
    """The answer without special tokens and without blanks around it."""
    raw_text: str
    """Prompt and answer with special tokens."""


class LlamaWrapper:
    """A loaded decoder model with its tokenizer and prompt format."""

    def __init__(
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        label: str,
        use_base_model: bool = False,
        quantized: Quantized | None = None,
    ) -> None:
        """Wrap a model that is already loaded (and `quantized`); `load` loads one.

        Raises:
            UserError: If the architecture cannot be steered correctly.
        """
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.label = label
        self.chat_format = ChatFormat(tokenizer, label, use_base_model)
        pad_id = next(i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id, 0) if i is not None)
        self.quantized = quantized
        self.runtime = Runtime(self.model, pad_id, label, quantized.arithmetic if quantized else None)
        self.layers, self.config = self.runtime.layers, self.runtime.config
        self.d_model: int = self.config.hidden_size

    @classmethod
    def load(
        cls,
        choice: ModelChoice | str | Path,
        device: str = "auto",
        dtype: str = "auto",
        weights_path: Path | None = None,
        *,
        over_all_devices: bool = False,
    ) -> "LlamaWrapper":
        """Load a checkpoint.

        Args:
            choice: Which one: a size ("135m", "7b", ...), a hub name, a folder, or what the flags were made into,
                which says whether it is quantised, too.
            device: "auto" or a torch device.
            dtype: "auto", "float32", "float16" or "bfloat16".
            weights_path: A state dict to put over the checkpoint's weights.
            over_all_devices: Split the model over all GPUs, for one that no single GPU holds.

        Raises:
            UserError: If it cannot be had, or cannot be steered.
        """
        if not isinstance(choice, ModelChoice):
            choice = choice_of(str(choice))
        place = pick_device(device)
        if choice.quantize:
            check_quantizer(choice.quantize, place, over_all_devices=over_all_devices)
        log.info("loading %s on %s", choice.label, place)
        loaded_on = torch.device("cpu") if choice.quantize else place
        model, tokenizer = load_checkpoint(
            choice, loaded_on, pick_dtype(choice, dtype, place), over_all_devices=over_all_devices
        )
        if weights_path is not None:
            load_weights_over(model, weights_path)
        quantized = None
        if choice.quantize:
            quantized = quantize_model(model.eval(), tokenizer, choice.label, choice.quantize, place)
        return cls(model, tokenizer, choice.label, choice.use_base_model, quantized)

    @property
    def n_layers(self) -> int:
        return len(self.layers)

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @cached_property
    def fingerprint(self) -> str:
        """Tells these weights from others: a hash of a few values of every parameter."""
        return self.quantized.fingerprint if self.quantized else fingerprint_of(self.model)

    def provenance(self) -> dict[str, Any]:
        """What to note beside everything that is computed with this model."""
        import transformers

        return {
            "model": self.label,
            "revision": getattr(self.model.config, "_commit_hash", None),
            "weights_fingerprint": self.fingerprint,
            "dtype": str(self.dtype).removeprefix("torch."),
            **(self.quantized.facts if self.quantized else {"quantize": "none"}),
            "prompt_format": self.chat_format.name,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }

    # --- reading ---

    @torch.no_grad()
    def capture(self, prompt: PromptTokens, steering: Steerings = None) -> Tensor:
        """The residual stream behind every layer, for every token of one sequence.

        Args:
            prompt: The tokens; steered from `steer_start` on.
            steering: What to add; None for nothing.

        Returns:
            [n_layers, seq_len, d_model], in the model's dtype, on the CPU.
        """
        check_range([steering], self.dtype)
        rows = RowSteering(opened(self, prompt, [steering]), self.layers)
        rows.positions = torch.arange(len(prompt))[None] >= prompt.steer_start
        ids = torch.tensor([prompt.ids], device=self.device)
        with rows.applied(), capture_outputs(self.layers) as captured:
            self.model(input_ids=ids, use_cache=False, logits_to_keep=1)
        return torch.stack([captured[layer][0].cpu() for layer in range(self.n_layers)])

    def token_projections(
        self, transcript: "Transcript", layer: int, vector: Tensor, steering: Steerings = None
    ) -> "TokenProjections":
        """Cosine and dot product of every token's residual stream with a vector; see `inspection.project_tokens`."""
        from utils.inside.readings import project_tokens

        return project_tokens(self, transcript, layer, vector, steering)

    def intermediate_decoding(
        self,
        transcript: "Transcript",
        layers: Sequence[int] | None = None,
        positions: Sequence[int] | None = None,
        steering: Steerings = None,
        **options: Any,
    ) -> "IntermediateDecoding":
        """Likely next tokens by the inside of the blocks; see `inspection.decode_intermediate`."""
        from utils.inside.readings import decode_intermediate

        return decode_intermediate(self, transcript, layers, positions, steering, **options)

    def answer_activations(
        self,
        pairs: Sequence[AnyPair],
        layers: Sequence[int],
        batch_size: int | None = None,
        skip: Collection[int] = (),
        read: Reading = "letter",
    ) -> Iterator[PairBatch]:
        """Read the residual stream of both halves of each contrast pair.

        What both halves share from the beginning on runs once: one pass reads both, without logits, and
        nothing above the last requested layer runs.

        Args:
            pairs: The contrast pairs.
            layers: Layers to read, ascending.
            batch_size: Pairs in one pass; None for as many as fit.
            skip: Pairs that are not needed; they may come all the same, in the company of others.
            read: Where in each half. Over several tokens it is their mean.

        Yields:
            Indices into `pairs`, and the activations of their positive and negative halves, each
            [len(indices), len(layers), d_model], float32, on the CPU.
        """
        tokens = [encode_pair(self.chat_format, pair, read) for pair in pairs]
        return reading.read_pairs(self.runtime, tokens, layers, batch_size, skip)

    def answer_activations_plainly(
        self,
        pairs: Sequence[AnyPair],
        layers: Sequence[int],
        skip: Collection[int] = (),
        read: Reading = "letter",
    ) -> Iterator[PairBatch]:
        """The same as `answer_activations`, with one full sequence for each half of each pair."""
        tokens = [encode_pair(self.chat_format, pair, read) for pair in pairs]
        return reading.read_pairs_plainly(self.runtime, tokens, layers, skip)

    # --- scoring ---

    def score(
        self,
        prompts: Sequence[PromptTokens],
        steerings: Sequence[Steerings],
        token_ids: Sequence[Sequence[int]],
        batch_size: int | None = None,
        skip: Collection[int] = (),
    ) -> Iterator[tuple[int, Tensor]]:
        """Probabilities of next tokens under every steering, in one forward pass for a batch of prompts.

        A prompt runs once up to its first steered token. Its last few tokens run once for every steering,
        from the steered layer on: all combinations share the prompt's keys and values.

        Args:
            prompts: The prompts, steered from their `steer_start` on.
            steerings: What to add; None for nothing.
            token_ids: For each prompt the tokens whose probability is asked for.
            batch_size: Prompts in one pass; None for as many as fit.
            skip: Prompts whose scores are not needed. They do not change how the others are batched, so
                that a resumed run computes what an undisturbed one does.

        Yields:
            Index into `prompts` and its probabilities, [len(steerings), len(token_ids[index])], float32.
        """
        check_range(steerings, self.dtype)

        def score(items: list[int], rows: Sequence[Steerings], done: Collection[int]) -> Iterator[tuple[int, Tensor]]:
            ids = [token_ids[i] for i in items]
            return scoring.score(self.runtime, [prompts[i] for i in items], rows, ids, batch_size, done)

        return score_gated(self, prompts, steerings, skip, score)

    def score_plainly(
        self,
        prompts: Sequence[PromptTokens],
        steerings: Sequence[Steerings],
        token_ids: Sequence[Sequence[int]],
        batch_size: int | None = None,
        skip: Collection[int] = (),
    ) -> Iterator[tuple[int, Tensor]]:
        """The same as `score`, with one full sequence for every prompt and steering."""
        check_range(steerings, self.dtype)

        def score(items: list[int], rows: Sequence[Steerings], done: Collection[int]) -> Iterator[tuple[int, Tensor]]:
            ids = [token_ids[i] for i in items]
            return scoring.score_plainly(self.runtime, [prompts[i] for i in items], rows, ids, batch_size, done)

        return score_gated(self, prompts, steerings, skip, score)

    def score_answers(
        self,
        pairs: Sequence[AnswerPair],
        steerings: Sequence[Steerings],
        batch_size: int | None = None,
        skip: Collection[int] = (),
    ) -> Iterator[tuple[int, Tensor]]:
        """Mean log-probability per token of both answers of each question, under every steering.

        A prompt runs once up to its first steered token. Steering reaches that token and all of the answer.

        Args:
            pairs: The questions with their answers; see `utils.model.pairs.encode_answer`.
            steerings: What to do; None for nothing.
            batch_size: Questions in one pass; None for as many as fit.
            skip: Questions whose scores are not needed; they do not change how the others are batched.

        Yields:
            Index into `pairs` and [len(steerings), 2] float32: of the matching and of the other answer, in nats.
        """
        check_range(steerings, self.dtype)

        def score(items: list[int], rows: Sequence[Steerings], done: Collection[int]) -> Iterator[tuple[int, Tensor]]:
            return answer_scoring.score_answers(self.runtime, [pairs[i] for i in items], rows, batch_size, done)

        return score_gated(self, [pair.matching for pair in pairs], steerings, skip, score)

    def score_answers_plainly(
        self,
        pairs: Sequence[AnswerPair],
        steerings: Sequence[Steerings],
        batch_size: int | None = None,
        skip: Collection[int] = (),
    ) -> Iterator[tuple[int, Tensor]]:
        """The same as `score_answers`, with one full sequence for every answer and steering."""
        check_range(steerings, self.dtype)

        def score(items: list[int], rows: Sequence[Steerings], done: Collection[int]) -> Iterator[tuple[int, Tensor]]:
            return answer_scoring.score_answers_plainly(self.runtime, [pairs[i] for i in items], rows, batch_size, done)

        return score_gated(self, [pair.matching for pair in pairs], steerings, skip, score)

    # --- generating ---

    def generate(
        self,
        rows: Sequence[GenerationRow],
        max_new_tokens: int,
        *,
        temperature: float = 0.0,
        use_cache: bool = True,
        batch_size: int | None = None,
        skip: Collection[int] = (),
    ) -> Iterator[tuple[int, Generation]]:
        """Generate an answer for every row; each row has its own prompt and steering.

        Steering reaches every token from the prompt's `steer_start` on, and every generated one.

        Args:
            rows: What to generate from.
            max_new_tokens: Longest answer, in tokens.
            temperature: 0 for the most likely token, else sampling from each row's own seed.
            use_cache: False runs the whole sequence for every token, one row at a time: the reference.
            batch_size: Rows at once; None for as many as fit. Where one ends, one that waits takes its place.
            skip: Rows that are not needed. What else is in the batch changes an answer by rounding at most.

        Yields:
            Index into `rows` and its answer, as they end.
        """
        self.runtime.check_lengths([len(row.prompt) for row in rows], max_new_tokens)
        check_range([row.steering for row in rows], self.dtype)
        decoding = Decoding(max_new_tokens, self.end_ids, self.runtime.pad_id, temperature)
        rows = [replace(row, steering=opened(self, row.prompt, [row.steering])[0]) for row in rows]

        def generate_some(items: list[int], at_once: int) -> Iterator[tuple[int, list[int]]]:
            return generate_rows(self.model, self.layers, [rows[i] for i in items], decoding, at_once)

        cached = [i for i, row in enumerate(rows) if use_cache and self._may_share_a_cache(row, max_new_tokens)]
        cost = self._generation_cost()
        widths = [cost * (len(rows[i].prompt) + max_new_tokens) for i in cached]
        for index, tokens in self.runtime.batcher.run_flowing(cached, widths, generate_some, batch_size, skip):
            yield index, self._generation(rows[index], tokens)
        uncached = sorted(set(range(len(rows))) - set(cached))
        if use_cache and uncached:
            log.warning(
                "%d of %d answers reach beyond the original context of %s, where it encodes all positions anew; "
                "they run one at a time",
                len(uncached),
                len(rows),
                self.label,
            )
        for ordinal, index in enumerate(uncached):
            if index not in skip and processes.is_mine(ordinal):
                tokens = generate_without_cache(self.model, self.layers, rows[index], decoding)
                yield index, self._generation(rows[index], tokens)

    def _generation_cost(self) -> float:
        if self.device.type != "cpu":
            return GENERATION_COST
        config = self.runtime.config
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        bytes_per_token = 2 * self.n_layers * heads * head_dim * self.dtype.itemsize
        filling = bytes_per_token * CPU_TOKENS_PER_PASS / CPU_CACHE_BYTES
        return min(GENERATION_COST, max(SMALL_GENERATION_COST, filling))

    def _may_share_a_cache(self, row: GenerationRow, max_new_tokens: int) -> bool:
        """Whether the answer stays where positions are encoded as they are for short rows."""
        return not self.runtime.is_beyond_switch(len(row.prompt) + max_new_tokens)

    def ask(
        self,
        question: str,
        steering: Steerings = None,
        *,
        system_prompt: str | None = None,
        max_new_tokens: int = 100,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> str:
        """The model's answer to one question, as text without special tokens.

        Args:
            question: The user's message.
            steering: One steering, several, or None for the model as it is.
            system_prompt: Instruction before the conversation.
            max_new_tokens: Longest answer, in tokens.
            temperature: 0 for the most likely token.
            seed: Of a sampled answer.

        Raises:
            UserError: If the prompt does not fit, or the steering leaves the range of the model's arithmetic.
        """
        row = GenerationRow(self.chat_format.encode(question, None, system_prompt), steering, seed)
        [(_, generation)] = self.generate([row], max_new_tokens, temperature=temperature)
        return generation.text

    def _generation(self, row: GenerationRow, tokens: Sequence[int]) -> Generation:
        text = str(self.tokenizer.decode(list(tokens), skip_special_tokens=True)).strip()
        raw_text = str(self.tokenizer.decode([*row.prompt.ids, *tokens], skip_special_tokens=False))
        return Generation(tuple(tokens), text, raw_text)

    @property
    def end_ids(self) -> frozenset[int]:
        """Tokens that end an answer."""
        configured = self.model.generation_config.eos_token_id if self.model.generation_config else None
        ids = configured if isinstance(configured, list) else [configured]
        return frozenset(i for i in [*ids, self.tokenizer.eos_token_id] if i is not None)
