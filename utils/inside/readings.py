"""Looking inside a model: token by token along a steering vector, and layer by layer as words.

These functions read and return tensors and tokens; `utils.inside.figures` and `utils.inside.token_pages` draw
them. What is read is what the model runs on: steering, where there is any, is included.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeVar, get_args

import torch
from torch import Tensor

from utils.errors import UserError
from utils.inside.blocks import read_blocks
from utils.inside.token_texts import texts_in_context, vocabulary_texts
from utils.inside.unembedding import Unembedding
from utils.model.chat_format import PromptTokens
from utils.model.generation import GenerationRow
from utils.model.steering import Steerings

if TYPE_CHECKING:
    from llama_wrapper import LlamaWrapper

Key = TypeVar("Key")

# Hidden states that are decoded at once: the output embeddings are large, and read once for all of them.
ROWS_PER_PASS = 128

Place = Literal["attention_output", "after_attention", "mlp_output", "block_output"]
PLACES: tuple[Place, ...] = get_args(Place)
PLACE_LABELS: dict[Place, str] = {
    "attention_output": "attention output",
    "after_attention": "residual stream after attention",
    "mlp_output": "MLP output",
    "block_output": "block output",
}


@dataclass(frozen=True)
class Transcript:
    """A prompt and its answer, as one sequence of tokens."""

    tokens: PromptTokens
    """Prompt and answer; steered from `tokens.steer_start` on."""
    n_prompt: int
    """How many of them belong to the prompt."""
    texts: tuple[str, ...]
    """What each token adds to the text."""

    def __len__(self) -> int:
        return len(self.tokens)


# --- transcripts -----------------------------------------------------------------------------------


def generate_transcripts(
    model: "LlamaWrapper",
    questions: Sequence[str],
    max_new_tokens: int,
    steering: Steerings = None,
    system_prompt: str | None = None,
) -> list[Transcript]:
    """Let the model answer each question (greedily, steered from the end of the prompt on)."""
    prompts = [model.chat_format.encode(question, system_prompt=system_prompt) for question in questions]
    answers = dict(model.generate([GenerationRow(prompt, steering) for prompt in prompts], max_new_tokens))
    return [
        _transcript(model, PromptTokens((*prompt.ids, *answers[index].token_ids), prompt.steer_start))
        for index, prompt in enumerate(prompts)
    ]


def write_transcript(
    model: "LlamaWrapper", question: str, answer: str | None = None, system_prompt: str | None = None
) -> Transcript:
    """A question with a given answer, or with none."""
    return _transcript(model, model.chat_format.encode(question, answer, system_prompt))


def _transcript(model: "LlamaWrapper", tokens: PromptTokens) -> Transcript:
    # the first steered token is the prompt's last one
    return Transcript(tokens, tokens.steer_start + 1, texts_in_context(model.tokenizer, tokens.ids))


# --- token by token --------------------------------------------------------------------------------


@dataclass(frozen=True)
class TokenProjections:
    """How far each token's residual stream at one layer lies along one vector; [seq_len], float32, on the CPU.

    Value `i` belongs to token `i` of the transcript: it is read where that token goes in, not where it is predicted.
    """

    transcript: Transcript
    cosines: Tensor
    dots: Tensor

    def rows(self) -> list[tuple[str, float, float]]:
        """Each token's text with its cosine and dot product."""
        return list(zip(self.transcript.texts, self.cosines.tolist(), self.dots.tolist(), strict=True))


def project_tokens(
    model: "LlamaWrapper", transcript: Transcript, layer: int, vector: Tensor, steering: Steerings = None
) -> TokenProjections:
    """Project every token's residual stream behind `layer` on a vector.

    Raises:
        UserError: If the model has no such layer, or the vector is zero or of another width.
    """
    return project_tokens_on_all(model, transcript, {layer: (layer, vector)}, steering)[layer]


def project_tokens_on_all(
    model: "LlamaWrapper",
    transcript: Transcript,
    vectors: Mapping[Key, tuple[int, Tensor]],
    steering: Steerings = None,
    root: Tensor | None = None,
) -> dict[Key, TokenProjections]:
    """The same for many vectors, each with its layer, from one forward pass; under the same keys.

    Args:
        model: The model.
        transcript: Its tokens.
        vectors: By any key, each with its layer.
        steering: What to add; None for nothing.
        root: Of another inner product than the usual one; see `project`.
    """
    for layer, vector in vectors.values():
        _check_layer(model, layer)
        _check_vector(model, vector)
    activations = model.capture(transcript.tokens, steering)
    found = {}
    for key, (layer, vector) in vectors.items():
        cosines, dots = project(activations[layer], vector, root)
        found[key] = TokenProjections(transcript, cosines, dots)
    return found


def project(activations: Tensor, vector: Tensor, root: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Cosines and dot products of activations [..., d_model] with a vector [d_model]; each [...], float32.

    With `root`, a symmetric [d_model, d_model] float64, under the inner product <root x, root y>.
    """
    activations, vector = activations.double().cpu(), vector.double().cpu()
    if root is not None:
        activations, vector = activations @ root, root @ vector
    dots = activations @ vector
    return (dots / (activations.norm(dim=-1) * vector.norm())).float(), dots.float()


# --- layer by layer --------------------------------------------------------------------------------


@dataclass(frozen=True)
class IntermediateDecoding:
    """The most likely next tokens by what stands at a place of a block (the "logit lens").

    Tables are [n_layers, n_places, n_positions, top_k], most likely first, on the CPU.
    """

    transcript: Transcript
    layers: tuple[int, ...]
    places: tuple[Place, ...]
    positions: tuple[int, ...]
    """Indices into the transcript."""
    token_ids: Tensor
    probabilities: Tensor
    texts: Mapping[int, str]
    """Of every token in `token_ids`."""

    def top(self, layer: int, place: Place, position: int) -> list[tuple[str, float]]:
        """The most likely tokens and their probabilities at one layer, place and position of the transcript."""
        at = self.layers.index(layer), self.places.index(place), self.positions.index(position)
        ids, probabilities = self.token_ids[at].tolist(), self.probabilities[at].tolist()
        return [(self.texts[token_id], value) for token_id, value in zip(ids, probabilities, strict=True)]


def decode_intermediate(
    model: "LlamaWrapper",
    transcript: Transcript,
    layers: Sequence[int] | None = None,
    positions: Sequence[int] | None = None,
    steering: Steerings = None,
    *,
    places: Sequence[Place] = PLACES,
    top_k: int = 10,
) -> IntermediateDecoding:
    """Decode what stands at places of the model's blocks, with the final norm and the output embeddings.

    Args:
        model: The model.
        transcript: The tokens; steered from the end of the prompt on.
        layers: Blocks to decode (default: all).
        positions: Tokens to decode at; negative ones count from the end (default: all).
        steering: What to add; None for nothing.
        places: Where in the blocks. Block outputs alone can be had of more architectures.
        top_k: Tokens to keep at each place.

    Raises:
        UserError: For layers or positions that are not there, or a model that cannot be decoded.
    """
    layers = list(range(model.n_layers)) if layers is None else list(layers)
    for layer in layers:
        _check_layer(model, layer)
    positions = [
        _position(transcript, position) for position in (range(len(transcript)) if positions is None else positions)
    ]
    unembedding = Unembedding(model)
    if set(places) == {"block_output"}:
        read = {"block_output": model.capture(transcript.tokens, steering)[layers]}
    else:
        readings = read_blocks(model, transcript.tokens, layers, steering)
        read = {place: getattr(readings, place) for place in places}
    hidden = torch.stack([read[place][:, positions] for place in places], dim=1)  # layers, places, positions, d_model
    best = [unembedding.probabilities(rows).topk(top_k, dim=-1) for rows in hidden.flatten(0, 2).split(ROWS_PER_PASS)]
    token_ids = torch.cat([found.indices.cpu() for found in best]).view(*hidden.shape[:3], top_k)
    probabilities = torch.cat([found.values.cpu() for found in best]).view(*hidden.shape[:3], top_k)
    texts = vocabulary_texts(model.tokenizer, token_ids.flatten().tolist())
    return IntermediateDecoding(
        transcript, tuple(layers), tuple(places), tuple(positions), token_ids, probabilities, texts
    )


# --- a vector by itself ----------------------------------------------------------------------------


@dataclass(frozen=True)
class VectorDecoding:
    """The tokens that a direction promotes most and least, by layer; tables are [n_layers, top_k], on the CPU."""

    layers: tuple[int, ...]
    top_ids: Tensor
    top_logits: Tensor
    """Above the mean of the vocabulary, highest first; for a direction of root mean square 1."""
    bottom_ids: Tensor
    bottom_logits: Tensor
    """The same, lowest first."""
    texts: Mapping[int, str]

    @property
    def largest_logit(self) -> float:
        return float(max(self.top_logits.abs().max(), self.bottom_logits.abs().max()))


def decode_vectors(model: "LlamaWrapper", vectors: Mapping[int, Tensor], top_k: int = 10) -> VectorDecoding:
    """Decode each layer's vector: which tokens it would promote and demote if it reached the last norm as it is.

    Args:
        model: The model that the vectors belong to.
        vectors: By layer; not zero.
        top_k: Tokens to keep at both ends.

    Raises:
        UserError: If a vector is zero or of another width, or the model cannot be decoded.
    """
    for vector in vectors.values():
        _check_vector(model, vector)
    unembedding = Unembedding(model)
    logits = unembedding.vector_logits(torch.stack(list(vectors.values())))[:, : unembedding.n_tokens]
    top, bottom = logits.topk(top_k, dim=-1), logits.topk(top_k, dim=-1, largest=False)
    texts = vocabulary_texts(model.tokenizer, [*top.indices.flatten().tolist(), *bottom.indices.flatten().tolist()])
    return VectorDecoding(tuple(vectors), top.indices, top.values, bottom.indices, bottom.values, texts)


def _check_layer(model: "LlamaWrapper", layer: int) -> None:
    if not 0 <= layer < model.n_layers:
        raise UserError(f"layer {layer}: {model.label} has layers 0 to {model.n_layers - 1}")


def _check_vector(model: "LlamaWrapper", vector: Tensor) -> None:
    if vector.shape != (model.d_model,):
        raise UserError(
            f"a vector of shape {list(vector.shape)} does not fit {model.label}, whose residual stream has "
            f"{model.d_model} values; use vectors that were made with this model"
        )
    if not bool(vector.any()):
        raise UserError("a vector that is all zeros has no direction; make it again")


def _position(transcript: Transcript, position: int) -> int:
    if not -len(transcript) <= position < len(transcript):
        raise UserError(f"position {position}: the transcript has tokens 0 to {len(transcript) - 1}")
    return position % len(transcript)
