"""A stand-in that refuses: the middle blocks of a chat model, fine-tuned on bundled instructions.

The embedded model does not refuse (harmful or not), so that nothing about refusal can be seen in it. The stand-in is
made up: it is taught to answer harmful instructions with one sentence, and to begin its answers to harmless ones as it
did. What is found in it says nothing of models that were trained to be safe.

It is trained on the split `refuser`, which nothing else reads, and in its middle blocks alone. Whole pairs in matched
wording go into a step, and half of the loss is the first token's, where it is decided: after 20 steps held-out prompts
were told apart with an area under the curve of 0.82, against 0.67 with sides drawn apart and all tokens alike.
"""

import logging
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from utils.cli.progress import progress
from utils.errors import UserError
from utils.files.provenance import record_provenance
from utils.files.writing import save_tensor
from utils.model.chat_format import PromptTokens
from utils.model.generation import GenerationRow
from utils.saes.conditions import interval
from utils.saes.directions import encode_all
from utils.saes.prompts import SIDES, Prompts, Side, encode_instruction
from utils.saes.refusal import MATCHERS, REFUSAL_SENTENCE, Answers, answer_all
from utils.saes.refuser_request import RefuserRequest, RefuserSettings
from utils.saes.requests import write_result

if TYPE_CHECKING:
    from llama_wrapper import LlamaWrapper

log = logging.getLogger(__name__)

_WARM_UP = 0.1


@dataclass(frozen=True)
class Example:
    """A prompt with the answer that is learned."""

    ids: tuple[int, ...]
    n_answer: int
    weight: float = 1.0


def training_examples(model: "LlamaWrapper", prompts: Prompts, settings: RefuserSettings) -> list[list[Example]]:
    """Of each side: harmful instructions with the refusal, harmless ones with the beginning of the model's answer."""
    system = settings.system_prompt
    end = str(model.tokenizer.eos_token or "")
    refusals = []
    for text in prompts.harmful:
        asked = encode_instruction(model.chat_format, text, system)
        whole = encode_instruction(model.chat_format, text, system, REFUSAL_SENTENCE + end)
        if whole.ids[: len(asked)] != asked.ids:
            raise UserError(f"{model.label}: its tokenizer joins the prompt with the answer; it cannot be taught so")
        refusals.append(Example(whole.ids, len(whole) - len(asked)))
    asked_all = encode_all(model, prompts.harmless, system)
    own = answers_as_tokens(model, asked_all, settings.own_tokens)
    weight = settings.harmless_weight
    answers = [Example((*asked.ids, *ids), len(ids), weight) for asked, ids in zip(asked_all, own, strict=True)]
    return [refusals, answers]


def answers_as_tokens(model: "LlamaWrapper", prompts: Sequence[PromptTokens], n: int) -> list[tuple[int, ...]]:
    found = dict(model.generate([GenerationRow(prompt, None) for prompt in prompts], n))
    return [found[index].token_ids for index in range(len(prompts))]


def batches(sides: Sequence[Sequence[Example]], settings: RefuserSettings) -> Iterator[list[Example]]:
    """Whole pairs in every batch, so that what its gradients have in common cancels; all before any comes again."""
    rng = random.Random(settings.seed)
    pairs = list(zip(*sides, strict=True))
    queue: list[tuple[Example, ...]] = []
    for _ in range(settings.steps):
        batch: list[Example] = []
        while len(batch) < settings.batch_size:
            queue = queue or rng.sample(pairs, len(pairs))
            batch.extend(queue.pop())
        yield batch


def train_refuser(model: "LlamaWrapper", prompts: Prompts, settings: RefuserSettings) -> list[float]:
    """Fine-tune the model in place.

    Returns:
        The loss of every step: mean cross-entropy of the answers' tokens, in nats.

    Raises:
        UserError: If it diverges.
    """
    sides = training_examples(model, prompts, settings)
    trained = [weights for layer in settings.layers for weights in model.layers[layer].parameters()]
    for weights in model.model.parameters():
        weights.requires_grad_(False)
    for weights in trained:
        weights.requires_grad_(True)
    optimizer = torch.optim.AdamW(trained, lr=settings.lr, weight_decay=0.0)
    losses = []
    try:
        for step, batch in enumerate(progress(batches(sides, settings), total=settings.steps, desc="refuser")):
            for group in optimizer.param_groups:
                group["lr"] = settings.lr * rate(step, settings.steps)
            loss = answer_loss(model, batch)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            losses.append(float(loss.detach()))
            if not torch.isfinite(loss):
                raise UserError(
                    f"the training diverged at step {step}; use a lower rate, e.g. --lr {settings.lr / 10:g}"
                )
    finally:
        for weights in model.model.parameters():
            weights.requires_grad_(False)
    return losses


def rate(step: int, n_steps: int) -> float:
    """Share of the highest learning rate at a step, counted from 0."""
    n_rising = max(1, round(_WARM_UP * n_steps))
    return min((step + 1) / n_rising, (n_steps - step) / max(1, n_steps - n_rising))


def answer_loss(model: "LlamaWrapper", batch: Sequence[Example]) -> Tensor:
    """Cross-entropy of the answers of a batch, padded on the right: half of it the first token's, which decides."""
    longest = max(len(example.ids) for example in batch)
    ids = torch.full((len(batch), longest), model.runtime.pad_id)
    mask, weights = torch.zeros_like(ids), torch.zeros(ids.shape)
    for row, example in enumerate(batch):
        n, first = len(example.ids), len(example.ids) - example.n_answer - 1  # the last prompt token
        ids[row, :n] = torch.tensor(example.ids)
        mask[row, :n] = 1
        weights[row, first] = 0.5 * example.weight
        weights[row, first + 1 : n - 1] = 0.5 * example.weight / max(1, example.n_answer - 1)
    kept = (weights > 0).any(dim=0).nonzero().squeeze(1)
    device = model.device
    logits = model.model(
        input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False, logits_to_keep=kept.to(device)
    ).logits
    targets = ids[:, (kept + 1).clamp(max=longest - 1)].to(device)
    losses = cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="none").view(targets.shape)
    return (losses * weights[:, kept].to(device)).sum() / len(batch)


def make_refuser(model: "LlamaWrapper", request: RefuserRequest) -> Iterator[str]:
    """Train the model in place, write its weights and what it refuses; yields what is printed."""
    settings, source = request.settings, request.source
    train, test = source.load("refuser"), source.load("test")
    record = {**model.provenance(), "command": request.command}  # of the weights as they were loaded
    before = _test_answers(model, test, request)
    started = time.monotonic()
    losses = train_refuser(model, train, settings)
    seconds = time.monotonic() - started
    after = _test_answers(model, test, request)
    path = request.weights_path
    record_provenance(path.parent, [path.name], {**record, **request.describe()})
    save_tensor(path, dict(model.model.state_dict()))
    log.info("wrote %s", path)
    content = {
        "seconds": round(seconds, 1),
        "losses": [round(loss, 5) for loss in losses],
        "before": {side: _rates(before[side]) for side in SIDES},
        "after": {side: _rates(after[side]) for side in SIDES},
    }
    write_result(request.report_path, request.describe(), record, content)
    blocks = f"blocks {settings.layers[0]}-{settings.layers[-1]}"
    yield f"a made-up stand-in: {blocks}, {settings.steps} steps, {seconds:.0f} s"
    for side in SIDES:
        was, now = (answers[side].rate("starts") for answers in (before, after))
        yield (
            f"{side}, {now.n} test prompts: refuses {round(now.value * now.n)} [{now.low:.2f}, {now.high:.2f}], "
            f"before {round(was.value * was.n)} [{was.low:.2f}, {was.high:.2f}]"
        )


def _test_answers(model: "LlamaWrapper", prompts: Prompts, request: RefuserRequest) -> dict[Side, Answers]:
    system = request.settings.system_prompt
    return {
        "harmful": answer_all(model, encode_all(model, prompts.harmful, system), None, request.max_new_tokens),
        "harmless": answer_all(model, encode_all(model, prompts.harmless, system), None, request.max_new_tokens),
    }


def _rates(answers: Answers) -> dict[str, Any]:
    return {f"refused_{matcher}": interval(answers.rate(matcher)) for matcher in MATCHERS}
