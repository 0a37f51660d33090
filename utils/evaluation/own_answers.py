"""Answers that the model itself gives under a behavior's two system prompts, as contrast pairs.

Persona vectors (Chen et al. 2025, arXiv 2507.21509): the answers are read without the system prompt that led to them.
They are results like others, of the generate set's questions at multiplier 0, so that `scoring.py` can score them.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

from utils.data.records import TextPair, text_pairs_path
from utils.errors import UserError
from utils.evaluation.plan import Sweep, SweepPlan, SweepRequest, plan_sweeps
from utils.files.reading import read_json, sha256_of
from utils.judge.score_files import load_answers
from utils.paths import DataPaths
from utils.settings import Reading, Side
from utils.vectors.plan import ExtractionRequest, GenerateSet

log = logging.getLogger(__name__)

Filter = Literal["judge", "none"]
FILTERS: tuple[Filter, ...] = get_args(Filter)
MIN_PAIRS = 8
MIDDLE_SCORE = 5.0
"""Of the judge's scale from 0 to 10: what shows the behavior lies above, what does not below."""
SIDES: tuple[Side, Side] = ("pos", "neg")


@dataclass(frozen=True)
class OwnAnswers:
    """Which answers to take."""

    request: ExtractionRequest
    filter: Filter
    n_questions: int
    """Of the generate set, the first ones."""
    max_new_tokens: int

    def __post_init__(self) -> None:
        if self.request.kind.reading not in ("answer", "last"):
            raise UserError(
                f"--from answers has no letters and no pairs of prompts: --read {self.request.kind.reading} does not "
                "go with it; use --read answer or --read last"
            )

    @cached_property
    def plans(self) -> dict[str, list[SweepPlan]]:
        """The sweeps that make the answers, of both sides of each behavior.

        Raises:
            UserError: If a behavior has no system prompts or no generate set.
        """
        return {one: [plan_sweeps(self._sweep(one, side)) for side in SIDES] for one in self.request.behaviors}

    def _sweep(self, behavior: str, side: Side) -> SweepRequest:
        request = self.request
        return SweepRequest(
            paths=request.paths,
            choice=request.choice,
            behaviors=(behavior,),
            layers=(0,),
            multipliers=(0.0,),
            type="open_ended",
            system_prompt=side,
            questions=text_pairs_path(request.paths, behavior),
            limit=self.n_questions,
            max_new_tokens=self.max_new_tokens,
            overwrite=request.overwrite,
            batch_size=request.batch_size,
            plainly=request.plainly,
            command=request.command,
        )

    def load(self, paths: DataPaths, behavior: str, _: Reading) -> GenerateSet:
        """The pairs of answers that are kept.

        Raises:
            UserError: If too few are kept, or there are no scores to keep them by.
        """
        sweeps = [plan.sweeps[0] for plan in self.plans[behavior]]
        files = [paths.result(sweep.settings.at(*sweep.combinations[0])) for sweep in sweeps]
        matching, other = (load_answers(file) for file in files)
        keeps = self._judged(paths, sweeps) if self.filter == "judge" else [True] * len(matching)
        pairs, n_alike = [], 0
        for pos, neg, keep in zip(matching, other, keeps, strict=True):
            texts = pos["model_output"].strip(), neg["model_output"].strip()
            if not all(texts) or texts[0] == texts[1]:
                n_alike += 1
            elif keep:
                pairs.append(TextPair(pos["question"], *texts))
        n_filtered = len(matching) - n_alike - len(pairs)
        kept = f"{behavior}: kept {len(pairs)} of {len(matching)} pairs of the model's own answers"
        dropped = f"{n_alike} dropped as empty or alike, {n_filtered} by --filter {self.filter}"
        if len(pairs) < MIN_PAIRS:
            raise UserError(f"{kept} ({dropped}); a vector needs at least {MIN_PAIRS}")
        log.info("%s (%s)", kept, dropped)
        facts = {"filter": self.filter, "neg_sha256": sha256_of(files[1])}
        return GenerateSet(files[0], pairs, facts)

    def _judged(self, paths: DataPaths, sweeps: Sequence[Sweep]) -> list[bool]:
        """Of each question, whether the judge finds the behavior in the one answer and not in the other.

        Raises:
            UserError: If the answers have no scores.
        """
        words = ["--behaviors", sweeps[0].settings.behavior, *self.request.choice.name_words]
        hint = f"--filter judge needs scores; run: {paths.command('scoring', *words)}"
        files = [paths.scores(sweep.settings.at(*sweep.combinations[0])) for sweep in sweeps]
        scores = [[record.get("score") for record in read_json(file, hint)] for file in files]
        return [
            pos is not None and neg is not None and pos > MIDDLE_SCORE > neg for pos, neg in zip(*scores, strict=True)
        ]
