"""The steps from a sentence to a page, each skipped where what it makes is there and was made of what is there now."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from utils.authoring import answers as own
from utils.authoring import sets
from utils.authoring.outputs import is_page_current, measures_path
from utils.authoring.request import KIND, KINDS, AuthoringRequest, Step, UnfinishedError, check_target
from utils.authoring.templates import fill_templates
from utils.authoring.vectors import (
    choice_request,
    compare_readings,
    load_vectors,
    read_choice,
    tell_apart,
    write_choice,
    write_vectors,
)
from utils.authoring.written import Written, load_written, preview, save_written
from utils.errors import UserError
from utils.files.provenance import read_provenance
from utils.files.reading import read_json, sha256_of
from utils.model import processes
from utils.vectors.plan import load_pairs_for, pairs_path

if TYPE_CHECKING:
    from llama_wrapper import LlamaWrapper
    from utils.authoring.filtering import AnswerPairs, Kept
    from utils.authoring.judging import JudgeRuns

log = logging.getLogger(__name__)


@dataclass
class Tally:
    """What a run came to."""

    made: list[Step] = field(default_factory=list)
    skipped: list[Step] = field(default_factory=list)
    stopped: bool = False
    """It waits for a look at what was written."""
    failed: bool = False
    """The judge left something open, and a step could not be done."""

    def line(self) -> str:
        parts = [
            f"{word} {', '.join(steps)}" for word, steps in (("made", self.made), ("skipped", self.skipped)) if steps
        ]
        return "; ".join(parts) or "nothing to do"


class Workshop:
    """Makes one behavior, step by step."""

    def __init__(
        self, request: AuthoringRequest, load: "Callable[[], LlamaWrapper]", confirm: Callable[[str], bool]
    ) -> None:
        """
        Args:
            request: What to make.
            load: Loads the model; called at most once, and only if a step needs it.
            confirm: Shows what was written, and says whether to go on.
        """
        check_target(request.paths, request.behavior)
        if processes.count() > 1:
            raise UserError("create_behavior.py runs in one process; start it without accelerate launch")
        self.request, self._load, self._confirm = request, load, confirm
        self.tally = Tally()

    @cached_property
    def model(self) -> "LlamaWrapper":
        return self._load()

    @cached_property
    def judge(self) -> "JudgeRuns":
        """
        Raises:
            UserError: If there is no key.
        """
        from utils.authoring.judging import JudgeRuns

        assert self.request.judge is not None
        return JudgeRuns(self.request.judge, self.request.command)

    @cached_property
    def written(self) -> Written:
        return load_written(self.request.paths, self.request.behavior)

    def run(self) -> Tally:
        """Do the steps that were asked for.

        Raises:
            UserError: If a step lacks what an earlier one makes, or cannot be done.
        """
        work: Mapping[Step, Callable[[], bool]] = {
            "write": self.write,
            "answer": self.answer,
            "vector": self.vector,
            "choose": self.choose,
            "demo": self.demo,
            "page": self.page,
        }
        for step in self.request.steps:
            try:
                (self.tally.made if work[step]() else self.tally.skipped).append(step)
            except UnfinishedError as err:
                log.error("%s: %s", step, err)
                self.tally.failed = True
                break
            is_last = step == self.request.steps[-1]
            if step == "write" and "write" in self.tally.made and not is_last and not self._may_go_on():
                self.tally.stopped = True
                break
        return self.tally

    def estimate(self) -> str:
        """What is asked of the judge model, and roughly what that costs, in lines."""
        from utils.authoring.estimating import estimate_run

        is_there = self.request.paths.written(self.request.behavior).exists() and not self.request.overwrite
        return estimate_run(self.request, self.written if is_there else None)

    def _may_go_on(self) -> bool:
        return self.request.assume_yes or self._confirm(preview(self.written))

    # --- the steps: each says whether it made anything ---

    def write(self) -> bool:
        request = self.request
        if request.paths.written(request.behavior).exists() and not request.overwrite:
            if request.sentence not in (None, self.written.sentence):
                raise UserError(
                    f"{request.paths.written(request.behavior)} was written for {self.written.sentence!r}; "
                    "take another --id, or --overwrite"
                )
            return False
        if request.sentence is None:
            raise UserError('there is no sentence; say what the model is to do, such as "answers like a pirate"')
        run = {"command": request.command, "sentence": request.sentence, "written_by": "templates"}
        if request.template:
            save_written(request.paths, request.behavior, fill_templates(request.sentence, request.opposite), run)
            return True
        run["written_by"] = self.judge.flags.model
        self.judge.write(request, run)
        return True

    def answer(self) -> bool:
        request = self.request
        is_new = request.overwrite or not own.are_answered(request, self.written)
        if is_new:
            own.write_answers(self.model, request, self.written)
        if not is_new and sets.are_written(request):
            return False
        from utils.authoring import filtering

        pairs = own.load_answers(request)
        answered = {name: [pair for pair in pairs if pair[0].split == name] for name in ("extract", "evaluate")}
        if request.filter == "judge":
            path = request.paths.grades(request.paths.own_answers(request.behavior, request.choice.label))
            grades = self.judge.grade_pairs(self.written, pairs, path)
            kept = sets.KeptSets(*(filtering.keep_graded(answered[name], grades) for name in ("extract", "evaluate")))
        else:
            # what is tested is not filtered by a vector: the test would find what the filter looked for
            plain = filtering.keep_all if request.filter == "none" else filtering.without_loops
            kept = sets.KeptSets(self._without_judge(answered["extract"]), plain(answered["evaluate"]))
        sets.write_sets(request, self.written, answered, kept)
        return True

    def _without_judge(self, pairs: "AnswerPairs") -> "Kept":
        from utils.authoring import filtering

        if self.request.filter == "none":
            return filtering.keep_all(pairs)
        sound = filtering.without_loops(pairs)
        if len(sound.pairs) < sets.MIN_PAIRS:
            return sound
        texts = filtering.text_pairs(pairs, sound.pairs)
        activations = filtering.middle_activations(self.model, texts, self.request.batch_size)
        return filtering.keep_projected(pairs, *activations, sound, self.request.seed)

    def vector(self) -> bool:
        overwrite = self.request.overwrite or self._are_vectors_stale()
        return write_vectors(self.request, lambda: self.model, overwrite=overwrite) > 0

    def _are_vectors_stale(self) -> bool:
        """Whether a vector that is there was made from another set."""
        request = self.request
        for kind in KINDS:
            path = request.paths.vector(request.behavior, 0, request.choice.label, normalized=False, kind=kind)
            dataset = pairs_path(request.paths, request.behavior, kind.reading)
            made = read_provenance(path) or {}
            if dataset.exists() and made.get("dataset_sha256", sha256_of(dataset)) != sha256_of(dataset):
                log.info("%s: vectors were made from another set; they are made again", request.behavior)
                return True
        return False

    def choose(self) -> bool:
        request = self.request
        path = choice_request(request).output(request.behavior)
        load_pairs_for(request.paths, request.behavior, KIND.reading)  # what is missing is said first
        overwrite = request.overwrite or self._is_choice_stale()
        if path.exists() and not overwrite:
            choice_request(request).waiting  # noqa: B018  refuses a choice that was made under other flags
            return False
        for layer in choice_request(request).layers:
            load_vectors(request, layer, normalized=True)  # what is missing is said before a model is loaded
        write_choice(request, self.model, overwrite=overwrite)
        return True

    def _is_choice_stale(self) -> bool:
        request = self.request
        path = choice_request(request).output(request.behavior)
        if not path.exists():
            return False
        made = read_json(path).get("made", {})
        now = {
            "generate_sha256": sha256_of(pairs_path(request.paths, request.behavior, KIND.reading)),
            "test_sha256": sha256_of(request.paths.test_text_dataset(request.behavior)),
        }
        return any(made.get(key) != value for key, value in now.items())

    def demo(self) -> bool:
        request = self.request
        choice = read_choice(request)
        path = measures_path(request)
        vector = request.paths.vector(
            request.behavior, choice.chosen.layer, request.choice.label, normalized=True, kind=KIND
        )
        facts = {
            "vector_sha256": sha256_of(vector),
            "written_sha256": self.written.sha256,
            "multipliers": list(request.multipliers),
            "max_new_tokens": request.max_new_tokens,
            "seed": request.seed,
            "layer": choice.chosen.layer,
        }
        if path.exists() and not request.overwrite and read_json(path).get("made") == facts:
            return False
        from utils.authoring import demo

        demo.write_random(request, choice)
        plans = demo.plan_demo(request, choice, overwrite=request.overwrite or path.exists())
        demo.write_demo(self.model, plans)
        answers = demo.demo_answers(request, plans, self.written)
        measured = demo.measure_demo(self.model, self.written, answers, request.batch_size)
        content = {
            "made": facts,
            "conditions": [[condition, multiplier] for condition, multiplier in answers],
            "answers": list(answers.values()),
            **measured,
            "readings": [asdict(one) for one in compare_readings(self.model, request, choice)],
            "told_apart": asdict(tell_apart(self.model, request, choice)),
        }
        if request.judge is not None and request.filter == "judge":
            content |= self.judge.grade_demo(request, self.written, answers, path)
        demo.save_measures(path, content)
        return True

    def page(self) -> bool:
        choice = read_choice(self.request)
        if is_page_current(self.request) and not self.request.overwrite:
            return False
        from utils.authoring.page import write_page

        write_page(self.request, self.written, choice)
        return True
