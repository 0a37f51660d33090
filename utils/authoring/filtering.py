"""Which pairs of the model's own answers show the behavior on one side and not on the other.

With a judge: trait 50 or more on the one side, below 50 on the other, and coherence 50 or more on both (Chen et al.
2025). Without: what repeats itself goes first, because a small model under a strong prompt often does, and its vector
would learn that. Then questions are split in two halves; the vector of each half is what the other half's answers are
projected on, so that no pair is judged by a vector that it has helped to make. A pair is kept where its matching answer
lies above the mean of all answers to its question, and its other answer below.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from utils.authoring.answers import Answer
from utils.data.duplicates import fold
from utils.data.estimates import Estimate, share_estimate
from utils.data.records import TextPair
from utils.evaluation.answer_metrics import distinct_2

if TYPE_CHECKING:
    from llama_wrapper import LlamaWrapper
    from utils.evaluation.metrics import FloatArray

AnswerPairs = Sequence[tuple[Answer, Answer]]
MIDDLE_GRADE = 50.0
MIN_DISTINCT_2 = 0.7
"""Share of an answer's bigrams that differ from all before: 0.5 of a sentence said twice, 0.97 of plain answers."""


@dataclass(frozen=True)
class Grades:
    """The judge's grades of one answer, 0 to 100; None where it gave none."""

    trait: float | None
    coherence: float | None


@dataclass(frozen=True)
class Kept:
    """What a filter kept, and what it dropped for which reason."""

    pairs: tuple[int, ...]
    """Places in what was filtered."""
    dropped: Mapping[str, int]
    n: int
    apart: Estimate | None = None
    """Of the projection: the share of pairs whose matching answer lies further along the other half's vector."""

    def line(self) -> str:
        """The numbers, in words."""
        reasons = ", ".join(f"{count} {reason}" for reason, count in self.dropped.items() if count)
        return f"kept {len(self.pairs)} of {self.n} pairs of answers" + (f" (dropped: {reasons})" if reasons else "")


def usable(pairs: AnswerPairs) -> tuple[list[int], dict[str, int]]:
    """Places of the pairs whose answers have text and differ, each once for its question; and why others go."""
    places, dropped = [], {"empty": 0, "alike": 0, "repeated": 0}
    seen: set[tuple[str, str, str]] = set()
    for place, (pos, neg) in enumerate(pairs):
        texts = pos.model_output.strip(), neg.model_output.strip()
        key = (pos.question, fold(texts[0]), fold(texts[1]))
        if not all(texts):
            dropped["empty"] += 1
        elif fold(texts[0]) == fold(texts[1]):
            dropped["alike"] += 1
        elif key in seen:
            dropped["repeated"] += 1
        else:
            seen.add(key)
            places.append(place)
    return places, dropped


def keep_all(pairs: AnswerPairs) -> Kept:
    places, dropped = usable(pairs)
    return Kept(tuple(places), dropped, len(pairs))


def without_loops(pairs: AnswerPairs) -> Kept:
    """The usable pairs of which neither answer repeats itself."""
    places, dropped = usable(pairs)
    kept = [place for place in places if not any(_repeats_itself(one.model_output) for one in pairs[place])]
    return Kept(tuple(kept), {**dropped, "with loops": len(places) - len(kept)}, len(pairs))


def _repeats_itself(text: str) -> bool:
    distinct = distinct_2(text)
    return distinct is not None and distinct < MIN_DISTINCT_2


def keep_graded(pairs: AnswerPairs, grades: Mapping[Answer, Grades]) -> Kept:
    """Keep the pairs that the judge tells apart, and whose answers hold together."""
    places, dropped = usable(pairs)
    dropped |= {"without a grade": 0, "incoherent": 0, "not told apart": 0}
    kept = []
    for place in places:
        pos, neg = (grades[one] for one in pairs[place])
        if pos.trait is None or neg.trait is None or pos.coherence is None or neg.coherence is None:
            dropped["without a grade"] += 1
        elif min(pos.coherence, neg.coherence) < MIDDLE_GRADE:
            dropped["incoherent"] += 1
        elif not pos.trait >= MIDDLE_GRADE > neg.trait:
            dropped["not told apart"] += 1
        else:
            kept.append(place)
    return Kept(tuple(kept), dropped, len(pairs))


def keep_projected(pairs: AnswerPairs, positive: "FloatArray", negative: "FloatArray", sound: Kept, seed: int) -> Kept:
    """Keep the pairs that a vector of the other half of the questions tells apart.

    Args:
        pairs: All of them.
        positive: Answer activations of the sound pairs' matching answers, [n_sound, d_model].
        negative: Of their other answers.
        sound: What may be kept.
        seed: Of the split of questions.
    """
    places = sound.pairs
    questions = np.array([pairs[place][0].question for place in places])
    halves = split_by_question(questions.tolist(), seed)
    above = np.zeros((2, len(places)), dtype=bool)
    further = np.zeros(len(places), dtype=bool)
    for held_out in (0, 1):
        made_from, judged = halves != held_out, halves == held_out
        vector = (positive[made_from] - negative[made_from]).mean(axis=0)
        projections = np.stack([side[judged] @ vector for side in (positive, negative)])
        means = {one: projections[:, questions[judged] == one].mean() for one in set(questions[judged])}
        above[:, judged] = projections > np.array([means[one] for one in questions[judged]])
        further[judged] = projections[0] > projections[1]
    keeps = above[0] & ~above[1]
    dropped = {**sound.dropped, "not told apart": int((~keeps).sum())}
    apart = share_estimate(int(further.sum()), len(places), len(places))
    return Kept(tuple(place for place, keep in zip(places, keeps, strict=True) if keep), dropped, len(pairs), apart)


def split_by_question(questions: Sequence[str], seed: int) -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
    """0 or 1 for each, the same for the same question; half of the questions each."""
    distinct = list(dict.fromkeys(questions))
    random.Random(seed).shuffle(distinct)
    half_of = {question: place % 2 for place, question in enumerate(distinct)}
    return np.array([half_of[question] for question in questions])


def middle_activations(
    model: "LlamaWrapper", pairs: Sequence[TextPair], batch_size: int | None
) -> tuple["FloatArray", "FloatArray"]:
    """Activations of both answers of each pair, mean over tokens, at the middle layer; [n_pairs, d_model] each."""
    positive = np.empty((len(pairs), model.d_model))
    negative = np.empty_like(positive)
    for indices, pos, neg in model.answer_activations(pairs, [model.n_layers // 2], batch_size, (), "answer"):
        positive[indices], negative[indices] = pos[:, 0].double().numpy(), neg[:, 0].double().numpy()
    return positive, negative


def text_pairs(pairs: AnswerPairs, places: Sequence[int]) -> list[TextPair]:
    return [
        TextPair(pos.question, pos.model_output.strip(), neg.model_output.strip())
        for pos, neg in (pairs[place] for place in places)
    ]
