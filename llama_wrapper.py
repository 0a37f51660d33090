"""A decoder model that can be read and steered: capture, score, generate.

Layer `l` is decoder block `l`, counted from 0; its activation is the block's output. The model's
modules are left as they are: everything happens in forward hooks, which are always removed.

Every fast path has a plain one beside it that runs one full sequence a combination
(`score_plainly`, `answer_activations_plainly`); it is the reference that the fast path is held to.
"""

import hashlib
import logging
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from utils.data.records import ContrastPair
from utils.errors import UserError
from utils.model import processes
from utils.model.chat_format import ChatFormat, PromptTokens
from utils.model.checkpoints import ModelChoice
from utils.model.generation import Decoding, GenerationRow, generate_rows, generate_without_cache, left_padded
from utils.model.loading import find_decoder_layers, load_checkpoint, load_weights_over, pick_device, pick_dtype
from utils.model.packing import PackedBatch, tails_enter_late
from utils.model.steering import RowSteering, Steering, capture_outputs

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from utils.inside.readings import IntermediateDecoding, TokenProjections, Transcript

log = logging.getLogger(__name__)
T = TypeVar("T")

# Tokens in one forward pass. More brings no speed on a CPU; on a GPU the free memory has a say (_token_budget).
CPU_TOKENS_PER_PASS = 1024
GPU_TOKENS_PER_PASS = 32768
# A generated row's share of a pass: its keys and values of all layers weigh more than one block's activations.
GENERATION_COST = 0.25
# Steered tails longer than this are not packed: a prompt that is steered from its beginning shares nothing.
LONGEST_PACKED_TAIL = 32
# Largest relative difference between the packed and the plain path that is put down to rounding: a logit of 16 to 32
# has steps of 2e-6 in float32, 0.016 in float16 and 0.125 in bfloat16, and a step of x changes a probability by e^x.
GUARD_TOLERANCE = {torch.float32: 1e-3, torch.float16: 1e-1, torch.bfloat16: 5e-1}
# What a model raises that does not take the packed passes' mask or positions.
_FAILURES_OF_PACKING = (RuntimeError, ValueError, TypeError, IndexError)


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
        self, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", label: str, use_base_model: bool = False
    ) -> None:
        """Wrap a model that is already loaded; `load` loads one.

        Raises:
            UserError: If the architecture cannot be steered correctly.
        """
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.label = label
        self.chat_format = ChatFormat(tokenizer, label, use_base_model)
        self.layers = find_decoder_layers(model, label)
        self.config = model.config.get_text_config(decoder=True)
        self.d_model: int = self.config.hidden_size
        self._pad_id = next(i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id, 0) if i is not None)
        self._packing_is_exact: dict[str, bool] = {}  # fast path -> what the guard found on the first question
        self._packing_window = _attention_window(self.config)
        self._budget_scale = 1.0  # halved whenever the memory did not suffice

    @classmethod
    def load(
        cls,
        choice: ModelChoice,
        device: str = "auto",
        dtype: str = "auto",
        weights_path: Path | None = None,
        *,
        over_all_devices: bool = False,
    ) -> "LlamaWrapper":
        """Load a checkpoint.

        Args:
            choice: Which one.
            device: "auto" or a torch device.
            dtype: "auto", "float32", "float16" or "bfloat16".
            weights_path: A state dict to put over the checkpoint's weights.
            over_all_devices: Split the model over all GPUs, for one that no single GPU holds.

        Raises:
            UserError: If it cannot be had, or cannot be steered.
        """
        place = pick_device(device)
        log.info("loading %s on %s", choice.label, place)
        model, tokenizer = load_checkpoint(
            choice, place, pick_dtype(choice, dtype, place), over_all_devices=over_all_devices
        )
        if weights_path is not None:
            load_weights_over(model, weights_path)
        return cls(model, tokenizer, choice.label, choice.use_base_model)

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
        digest = hashlib.sha256()
        for name, weights in self.model.named_parameters():
            digest.update(f"{name} {tuple(weights.shape)}".encode())
            if weights.numel() and weights.device.type != "meta":  # as accelerate leaves what it has put on a disk
                places = torch.arange(16, device=weights.device) * (weights.numel() - 1) // 15  # evenly spaced
                digest.update(weights.detach().flatten()[places].float().cpu().numpy().tobytes())
        return digest.hexdigest()[:16]

    def provenance(self) -> dict[str, str | None]:
        """What to note beside everything that is computed with this model."""
        import transformers

        return {
            "model": self.label,
            "revision": getattr(self.model.config, "_commit_hash", None),
            "weights_fingerprint": self.fingerprint,
            "dtype": str(self.dtype).removeprefix("torch."),
            "prompt_format": self.chat_format.name,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }

    # --- reading ---

    @torch.no_grad()
    def capture(self, prompt: PromptTokens, steering: Steering | None = None) -> Tensor:
        """The residual stream behind every layer, for every token of one sequence.

        Args:
            prompt: The tokens; steered from `steer_start` on.
            steering: What to add; None for nothing.

        Returns:
            [n_layers, seq_len, d_model], in the model's dtype, on the CPU.
        """
        rows = RowSteering([steering], self.layers)
        rows.positions = torch.arange(len(prompt))[None] >= prompt.steer_start
        ids = torch.tensor([prompt.ids], device=self.device)
        with rows.applied(), capture_outputs(self.layers) as captured:
            self.model(input_ids=ids, use_cache=False, logits_to_keep=1)
        return torch.stack([captured[layer][0].cpu() for layer in range(self.n_layers)])

    def token_projections(
        self, transcript: "Transcript", layer: int, vector: Tensor, steering: Steering | None = None
    ) -> "TokenProjections":
        """Cosine and dot product of every token's residual stream with a vector; see `inspection.project_tokens`."""
        from utils.inside.readings import project_tokens

        return project_tokens(self, transcript, layer, vector, steering)

    def intermediate_decoding(
        self,
        transcript: "Transcript",
        layers: Sequence[int] | None = None,
        positions: Sequence[int] | None = None,
        steering: Steering | None = None,
        **options: Any,
    ) -> "IntermediateDecoding":
        """Likely next tokens by the inside of the blocks; see `inspection.decode_intermediate`."""
        from utils.inside.readings import decode_intermediate

        return decode_intermediate(self, transcript, layers, positions, steering, **options)

    def answer_activations(
        self,
        pairs: Sequence[ContrastPair],
        layers: Sequence[int],
        batch_size: int | None = None,
        skip: Collection[int] = (),
    ) -> Iterator[tuple[list[int], Tensor, Tensor]]:
        """Read the residual stream at the answer letter of both halves of each contrast pair.

        Both halves share everything before the letter: one pass reads both, without logits, and nothing
        above the last requested layer runs.

        Args:
            pairs: The contrast pairs.
            layers: Layers to read, ascending.
            batch_size: Pairs in one pass; None for as many as fit.
            skip: Pairs that are not needed; they may come all the same, in the company of others.

        Yields:
            Indices into `pairs`, and the activations of their positive and negative halves, each
            [len(indices), len(layers), d_model], float32, on the CPU.
        """
        prompts = [self.chat_format.encode_choice(pair.question) for pair in pairs]
        letter_id = self.chat_format.letter_id
        letters = [(letter_id(pair.matching_letter), letter_id(pair.other_letter)) for pair in pairs]

        def read(batch: list[int]) -> tuple[Tensor, Tensor]:
            packed = PackedBatch(
                [prompts[i].ids for i in batch],
                [[(positive,), (negative,)] for positive, negative in (letters[i] for i in batch)],
                self._pad_id,
                self.device,
                self.dtype,
            )
            halves = self._read_tail_ends(packed, layers)
            return halves[:, :, 0], halves[:, :, 1]

        packable = self._packable([len(prompt) + 1 for prompt in prompts])
        by_length = sorted(packable, key=lambda i: len(prompts[i]))
        if packable and not self._guard_reading(pairs, by_length, layers, read):
            packable = []
        widths = [len(prompts[i]) + 2 for i in packable]
        for batch, (positive, negative) in self._in_batches(packable, widths, read, batch_size, skip):
            yield batch, positive, negative
        rest = sorted(set(range(len(pairs))) - set(packable))
        done = {place for place, i in enumerate(rest) if i in skip}
        for batch, positive, negative in self.answer_activations_plainly([pairs[i] for i in rest], layers, done):
            yield [rest[i] for i in batch], positive, negative

    def answer_activations_plainly(
        self, pairs: Sequence[ContrastPair], layers: Sequence[int], skip: Collection[int] = ()
    ) -> Iterator[tuple[list[int], Tensor, Tensor]]:
        """The same as `answer_activations`, with one full sequence for each half of each pair."""
        for index, pair in enumerate(pairs):
            if index not in skip and processes.is_mine(index):
                positive, negative = self._read_plainly(pair, layers)
                yield [index], positive[None], negative[None]

    def _read_plainly(self, pair: ContrastPair, layers: Sequence[int]) -> tuple[Tensor, Tensor]:
        prompt = self.chat_format.encode_choice(pair.question)
        halves = []
        for letter in (pair.matching_letter, pair.other_letter):
            whole = PromptTokens((*prompt.ids, self.chat_format.letter_id(letter)), prompt.steer_start)
            halves.append(self.capture(whole)[list(layers), -1].float())
        return halves[0], halves[1]

    @torch.no_grad()
    def _read_tail_ends(self, packed: PackedBatch, layers: Sequence[int]) -> Tensor:
        """Residual stream at every tail's end, [batch, len(layers), n_tails, d_model], float32, on the CPU."""
        modules = [self.layers[layer] for layer in layers]
        with capture_outputs(modules, packed.tail_ends(), stop_after_last=True) as captured:
            self.model.get_decoder()(**packed.model_inputs())
        return torch.stack([captured[index].float().cpu() for index in range(len(layers))], dim=1)

    # --- scoring ---

    def score(
        self,
        prompts: Sequence[PromptTokens],
        steerings: Sequence[Steering | None],
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
        packable = self._packable([len(prompt) for prompt in prompts])
        packable = [i for i in packable if len(prompts[i]) - prompts[i].steer_start <= LONGEST_PACKED_TAIL]
        if packable and not self._guard_scoring([(prompts[i], token_ids[i]) for i in packable], steerings):
            packable = []
        for tail_length in sorted({len(prompts[i]) - prompts[i].steer_start for i in packable}):
            group = [i for i in packable if len(prompts[i]) - prompts[i].steer_start == tail_length]
            widths = [len(prompts[i]) + len(steerings) * tail_length for i in group]

            def score_batch(batch: list[int]) -> list[Tensor]:
                return self._score_packed([prompts[i] for i in batch], steerings, [token_ids[i] for i in batch])

            for batch, scores in self._in_batches(group, widths, score_batch, batch_size, skip):
                yield from ((i, scored) for i, scored in zip(batch, scores, strict=True) if i not in skip)
        rest = sorted(set(range(len(prompts))) - set(packable))
        rest_prompts, rest_ids = [prompts[i] for i in rest], [token_ids[i] for i in rest]
        done = {place for place, i in enumerate(rest) if i in skip}
        for place, scores_of_one in self.score_plainly(rest_prompts, steerings, rest_ids, batch_size, done):
            yield rest[place], scores_of_one

    def score_plainly(
        self,
        prompts: Sequence[PromptTokens],
        steerings: Sequence[Steering | None],
        token_ids: Sequence[Sequence[int]],
        batch_size: int | None = None,
        skip: Collection[int] = (),
    ) -> Iterator[tuple[int, Tensor]]:
        """The same as `score`, with one full sequence for every prompt and steering."""
        self._check_lengths([len(prompt) for prompt in prompts])
        for index, (prompt, ids) in enumerate(zip(prompts, token_ids, strict=True)):
            if index in skip or not processes.is_mine(index):
                continue
            scores = torch.empty(len(steerings), len(ids))

            def score_rows(rows: list[int], prompt: PromptTokens = prompt, ids: Sequence[int] = ids) -> list[Tensor]:
                return self._score_rows([prompt] * len(rows), [steerings[row] for row in rows], [ids] * len(rows))

            every = list(range(len(steerings)))
            for rows, some in self._in_batches(every, [len(prompt)] * len(every), score_rows, batch_size, shared=False):
                scores[rows] = torch.stack(some)
            yield index, scores

    @torch.no_grad()
    def _score_packed(
        self,
        prompts: Sequence[PromptTokens],
        steerings: Sequence[Steering | None],
        token_ids: Sequence[Sequence[int]],
    ) -> list[Tensor]:
        """Scores of prompts whose steered tails are equally long; each [len(steerings), n_tokens]."""
        steered = [(i, steering) for i, steering in enumerate(steerings) if steering is not None]
        steered.sort(key=lambda entry: entry[1].layer)
        tails = [[prompt.ids[prompt.steer_start :]] * (1 + len(steered)) for prompt in prompts]
        prefixes = [prompt.ids[: prompt.steer_start] for prompt in prompts]
        packed = PackedBatch(prefixes, tails, self._pad_id, self.device, self.dtype)
        additions: dict[int, list[Tensor]] = {}
        for _, steering in steered:
            additions.setdefault(steering.layer, []).append(steering.addition)
        stacked = {layer: torch.stack(added).to(self.device, self.dtype) for layer, added in additions.items()}
        with tails_enter_late(packed, self.layers, stacked):
            logits = self.model(**packed.model_inputs(), logits_to_keep=packed.tail_ends()).logits
        tail_of = {i: 1 + place for place, (i, _) in enumerate(steered)}  # unsteered ones read tail 0
        order = torch.tensor([tail_of.get(i, 0) for i in range(len(steerings))], device=logits.device)
        return [probabilities_of(row, ids)[order].cpu() for row, ids in zip(logits, token_ids, strict=True)]

    @torch.no_grad()
    def _score_rows(
        self,
        prompts: Sequence[PromptTokens],
        steerings: Sequence[Steering | None],
        token_ids: Sequence[Sequence[int]],
    ) -> list[Tensor]:
        """Scores of one padded batch, each row with its own prompt and steering; each [n_tokens]."""
        ids, mask = left_padded([prompt.ids for prompt in prompts], self._pad_id, self.device)
        rows = RowSteering(steerings, self.layers)
        starts = torch.tensor([prompt.steer_start for prompt in prompts], device=self.device)
        positions = mask.cumsum(1) - 1
        rows.positions = (positions >= starts[:, None]) & mask.bool()
        with rows.applied():
            output = self.model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions.clamp(min=0),
                use_cache=False,
                logits_to_keep=1,
            )
        return [probabilities_of(row, wanted)[0].cpu() for row, wanted in zip(output.logits, token_ids, strict=True)]

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
            batch_size: Rows in one batch; None for as many as fit.
            skip: Rows that are not needed; they do not change how the others are batched.

        Yields:
            Index into `rows` and its answer.
        """
        self._check_lengths([len(row.prompt) for row in rows], max_new_tokens)
        decoding = Decoding(max_new_tokens, self._end_ids(), self._pad_id, temperature)
        if not use_cache:
            for index in (i for i in range(len(rows)) if i not in skip and processes.is_mine(i)):
                tokens = generate_without_cache(self.model, self.layers, rows[index], decoding)
                yield index, self._generation(rows[index], tokens)
            return

        def generate_batch(batch: list[int]) -> list[list[int]]:
            done = dict(generate_rows(self.model, self.layers, [rows[i] for i in batch], decoding))
            return [done[place] for place in range(len(batch))]

        every = list(range(len(rows)))
        widths = [GENERATION_COST * (len(row.prompt) + max_new_tokens) for row in rows]
        for batch, answers in self._in_batches(every, widths, generate_batch, batch_size, skip, keep_order=True):
            for index, tokens in zip(batch, answers, strict=True):
                if index not in skip:
                    yield index, self._generation(rows[index], tokens)

    def _generation(self, row: GenerationRow, tokens: Sequence[int]) -> Generation:
        text = str(self.tokenizer.decode(list(tokens), skip_special_tokens=True)).strip()
        raw_text = str(self.tokenizer.decode([*row.prompt.ids, *tokens], skip_special_tokens=False))
        return Generation(tuple(tokens), text, raw_text)

    def _end_ids(self) -> frozenset[int]:
        configured = self.model.generation_config.eos_token_id if self.model.generation_config else None
        ids = configured if isinstance(configured, list) else [configured]
        return frozenset(i for i in [*ids, self.tokenizer.eos_token_id] if i is not None)

    # --- batches, memory, and the guard of the fast paths ---

    def _in_batches(
        self,
        items: Sequence[int],
        widths: Sequence[float],
        run: Callable[[list[int]], T],
        batch_size: int | None,
        skip: Collection[int] = (),
        *,
        keep_order: bool = False,
        shared: bool = True,
    ) -> Iterator[tuple[list[int], T]]:
        """Run items in batches of like width, the widest first; on running out of memory halve and go on.

        Batches are formed over all items, whatever is in `skip` and however many processes share them, so
        that every item is computed in the company in which an undisturbed run computes it. Those with
        nothing left to do, and those of other processes, are left out.
        """
        width_of = dict(zip(items, widths, strict=True))
        waiting = list(items) if keep_order else sorted(items, key=lambda item: -width_of[item])
        budget = math.inf if batch_size else self._token_budget()
        if shared:
            budget = min(processes.gather(budget))
        batches = []
        while waiting:
            count = _batch_count([width_of[item] for item in waiting[: batch_size or len(waiting)]], budget)
            batches.append(waiting[:count])
            del waiting[:count]
        for ordinal, batch in enumerate(batches):
            is_due = processes.is_mine(ordinal) or not shared
            if is_due and not all(item in skip for item in batch):
                yield from self._run_halving(batch, run)

    def _run_halving(self, batch: list[int], run: Callable[[list[int]], T]) -> Iterator[tuple[list[int], T]]:
        """Run a batch; where the memory does not suffice, its halves."""
        from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

        try:
            result = run(batch)
        except (RuntimeError, MemoryError) as err:
            if not (isinstance(err, MemoryError | torch.OutOfMemoryError) or should_reduce_batch_size(err)):
                raise
            if len(batch) == 1:
                raise UserError(
                    f"out of memory on {self.device} with a single item; use --dtype bfloat16, "
                    "fewer --layers or --multipliers at a time, or a larger device"
                ) from err
        else:
            yield batch, result
            return
        clear_device_cache(garbage_collection=True)
        middle = (len(batch) + 1) // 2
        self._budget_scale /= 2
        log.warning("out of memory with %d at once; going on with %d", len(batch), middle)
        yield from self._run_halving(batch[:middle], run)
        yield from self._run_halving(batch[middle:], run)

    def _token_budget(self) -> float:
        """Tokens that one forward pass may hold."""
        if self.device.type != "cuda":
            return self._budget_scale * CPU_TOKENS_PER_PASS
        free, _ = torch.cuda.mem_get_info(self.device)
        free += torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
        width = self.config.hidden_size + 2 * getattr(self.config, "intermediate_size", 4 * self.config.hidden_size)
        # activations of one block in the model's dtype, and logits in float32 for about half of the tokens
        bytes_per_token = 6 * width * self.dtype.itemsize + 4 * self.config.vocab_size
        return self._budget_scale * min(GPU_TOKENS_PER_PASS, 0.6 * free / bytes_per_token)

    def _check_lengths(self, lengths: Sequence[int], n_new_tokens: int = 0) -> None:
        limit = getattr(self.config, "max_position_embeddings", None)
        for index, length in enumerate(lengths):
            if limit is not None and length + n_new_tokens > limit:
                raise UserError(
                    f"item {index} has {length} tokens (and {n_new_tokens} to come), but {self.label} "
                    f"takes at most {limit}; shorten it"
                )

    def _packable(self, lengths: Sequence[int]) -> list[int]:
        """Items short enough for a packed pass: its mask replaces a sliding window, so none may be exceeded."""
        self._check_lengths(lengths)
        packable = [i for i, length in enumerate(lengths) if length <= self._packing_window]
        if len(packable) < len(lengths):
            log.warning(
                "%d of %d prompts are longer than the attention window of %s; they run one combination at a time",
                len(lengths) - len(packable),
                len(lengths),
                self.label,
            )
        return packable

    def _guard_reading(
        self,
        pairs: Sequence[ContrastPair],
        by_length: Sequence[int],
        layers: Sequence[int],
        read: Callable[[list[int]], tuple[Tensor, Tensor]],
    ) -> bool:
        if "reading" in self._packing_is_exact:
            return self._packing_is_exact["reading"]
        plain = torch.stack(self._read_plainly(pairs[by_length[0]], layers))
        try:
            packed = torch.stack(read([by_length[0], by_length[-1]]))[:, 0]  # the shortest, padded by the longest
        except _FAILURES_OF_PACKING as err:
            log.debug("packed pass failed: %s", err)
            packed = torch.full_like(plain, torch.nan)
        return self._guard("reading", (packed - plain).abs() / plain.abs().amax(dim=-1, keepdim=True))

    def _guard_scoring(
        self, asked: Sequence[tuple[PromptTokens, Sequence[int]]], steerings: Sequence[Steering | None]
    ) -> bool:
        if "scoring" in self._packing_is_exact:
            return self._packing_is_exact["scoring"]
        # no steering, the lowest and the highest layer, and the strongest addition
        steered = sorted((s for s in steerings if s is not None), key=lambda s: s.layer)
        strongest = sorted(steered, key=lambda s: float(s.addition.norm()))[-1:]
        sample: list[Steering | None] = [None, *steered[:1], *steered[-1:], *strongest]
        # the shortest prompt, padded by the longest whose tail is as long
        prompt, token_ids = min(asked, key=lambda one: len(one[0]))
        tail_length = len(prompt) - prompt.steer_start
        longest = max((other for other, _ in asked if len(other) - other.steer_start == tail_length), key=len)
        try:
            packed, _ = self._score_packed([prompt, longest], sample, [token_ids] * 2)
        except _FAILURES_OF_PACKING as err:
            log.debug("packed pass failed: %s", err)
            packed = torch.full((len(sample), len(token_ids)), torch.nan)
        plain = torch.stack([self._score_rows([prompt], [steering], [token_ids])[0] for steering in sample])
        return self._guard("scoring", (packed - plain).abs() / plain.clamp(min=1e-12))

    def _guard(self, path: str, relative_difference: Tensor) -> bool:
        """Settle whether a fast path is exact on this model; remembered for the rest of the run."""
        if path not in self._packing_is_exact:
            largest = float(relative_difference.max()) if not bool(relative_difference.isnan().any()) else torch.inf
            largest = max(processes.gather(largest))
            self._packing_is_exact[path] = largest <= GUARD_TOLERANCE.get(self.dtype, 1e-3)
            log.debug("%s: packed and plain passes differ by %.1e (relative)", path, largest)
            if not self._packing_is_exact[path]:
                differ = f"do not equal plain ones here (relative difference {largest:.1e})"
                log.warning(
                    "%s: packed passes %s; going on with one pass a combination",
                    self.label,
                    differ if math.isfinite(largest) else "fail here or give no numbers (see --verbose)",
                )
        return self._packing_is_exact[path]


def probabilities_of(logits: Tensor, token_ids: Sequence[int]) -> Tensor:
    """Softmax probabilities of some tokens, [..., len(token_ids)] float32, from logits [..., vocab_size]."""
    logits = logits.float()
    wanted = logits[..., torch.tensor(list(token_ids), device=logits.device)]
    return (wanted - logits.logsumexp(dim=-1, keepdim=True)).exp()


def _batch_count(widths: Sequence[float], budget: float) -> int:
    """How many of the waiting items go into the next pass; all are padded to the widest of them."""
    widest = 0.0
    for count, width in enumerate(widths):
        widest = max(widest, width)
        if count and widest * (count + 1) > budget:
            return count
    return len(widths)


def _attention_window(config: "PretrainedConfig") -> float:
    """Longest sequence that every layer attends to as a whole; 0 where a layer's attention is of another kind."""
    kinds = set(getattr(config, "layer_types", None) or [])
    if kinds - {"full_attention", "sliding_attention"}:
        return 0
    window = getattr(config, "sliding_window", None)
    slides = "sliding_attention" in kinds if kinds else getattr(config, "use_sliding_window", True)
    return window if window is not None and slides else math.inf
