"""What is written of a measured text, as one JSON object a line."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from utils.exports.measuring import Failed, Measured
from utils.exports.monitor_request import VectorSource
from utils.exports.reference import Reference
from utils.exports.summary import assistant_means, slope
from utils.inside.token_texts import texts_in_context

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def failed_line(failed: Failed) -> bytes:
    return _line({"index": failed.index, "error": failed.reason})


def measured_line(
    measured: Measured,
    sources: Sequence[VectorSource],
    reference: Reference,
    tokenizer: "PreTrainedTokenizerBase | None",
) -> bytes:
    """One text's line.

    Args:
        measured: The text.
        sources: Its probes' vectors.
        reference: Neutral texts of the same form.
        tokenizer: For the tokens' own projections; None leaves them out.
    """
    record: dict[str, Any] = {"index": measured.index}
    if measured.text.id is not None:
        record["id"] = measured.text.id
    record["n_tokens"] = measured.n_tokens
    if tokenizer is not None:
        record["tokens"] = _token_texts(measured, tokenizer)
    record["readings"] = [
        _reading(measured, probe, source, reference, with_tokens=tokenizer is not None)
        for probe, source in enumerate(sources)
    ]
    return _line(record)


def _reading(
    measured: Measured, probe: int, source: VectorSource, reference: Reference, *, with_tokens: bool
) -> dict[str, Any]:
    of_texts, of_tokens = reference.texts[probe], reference.tokens[probe]
    mean = float(measured.means[probe])
    reading: dict[str, Any] = {
        "behavior": source.behavior,
        "layer": source.layer,
        "projection": _short(mean),
        "percentile": _short(float(of_texts.percentiles(mean))),
    }
    if len(measured.encoded.turns) > 2:
        reading["turns"] = [
            {
                "role": turn.role,
                "n_tokens": len(turn),
                "projection": _short(value),
                "percentile": _short(float(of_texts.percentiles(value))) if turn.role == "assistant" else None,
            }
            for turn in measured.encoded.turns
            if len(turn)
            for value in [float(measured.turn_means(turn)[probe])]
        ]
        means = assistant_means(measured)
        reading["drift_per_turn"] = _short(float(slope(means)[probe])) if len(means) > 1 else None
    if with_tokens:
        reading["token_projections"] = [_short(value) for value in measured.values[probe].tolist()]
        reading["token_percentiles"] = [_short(v) for v in of_tokens.percentiles(measured.values[probe]).tolist()]
    return reading


def _token_texts(measured: Measured, tokenizer: "PreTrainedTokenizerBase") -> list[str]:
    texts = texts_in_context(tokenizer, measured.encoded.ids)
    return [texts[place] for turn in measured.encoded.measured for place in range(turn.start, turn.end)]


def _short(value: float) -> float:
    """Six significant digits: more is rounding."""
    return float(f"{value:.6g}")


def _line(record: dict[str, Any]) -> bytes:
    return json.dumps(record, ensure_ascii=False, allow_nan=False).encode() + b"\n"
