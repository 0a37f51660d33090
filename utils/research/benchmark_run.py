"""Units of the steering benchmark: one method on one behavior, from making its vector to the test items.

Layer and amount are chosen on validation items, with vectors of the other pairs; then the vector is made of all pairs,
and the test items are read once. A unit is written when it is whole: an interrupted run goes on with the next one.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from torch import Tensor

from utils.behaviors import list_behaviors
from utils.data.records import ChoiceItem, TextPair, load_choice_items, load_open_ended_questions, load_text_pairs
from utils.errors import UserError
from utils.files.writing import write_json
from utils.model import processes
from utils.research.benchmark_choice import AmountChooser, ChosenAmount
from utils.research.benchmark_gate import fit_gate, gate_facts
from utils.research.benchmark_material import Material, PairStore
from utils.research.benchmark_measures import (
    FloatArray,
    FreeAnswers,
    Subject,
    free_answers,
    kl_per_token,
    log_odds,
    preferences,
    text_log_probabilities,
)
from utils.research.benchmark_methods import PLAIN, Framing, Method, NotRun, method_named
from utils.research.benchmark_request import TRANSFER, finite
from utils.research.benchmark_transfer import transfer
from utils.settings import ADDING_OPERATORS

if TYPE_CHECKING:
    from llama_wrapper import LlamaWrapper
    from utils.research.benchmark_request import BenchmarkRequest

log = logging.getLogger(__name__)

TRANSFERRED = "answer"
Load = Callable[[Path], "LlamaWrapper"]
LEVELS = (-1.0, -0.5, 0.0, 0.5, 1.0)
"""Of the chosen amount."""
ENDS = (-1.0, 0.0, 1.0)
KNOWLEDGE: tuple[Literal["mmlu", "truthful_qa"], ...] = ("mmlu", "truthful_qa")


@dataclass(frozen=True, eq=False)
class Sides:
    """A method ready to be measured."""

    by_level: Mapping[float, Subject]
    """From against the behavior (-1) over no steering (0) to for it (1)."""
    facts: Mapping[str, Any]
    """Of the unit: layer, amount and how they were found."""


class Benchmark:
    """A benchmark at work on one model."""

    def __init__(self, model: "LlamaWrapper", request: "BenchmarkRequest", load: Load) -> None:
        """
        Args:
            model: The request's.
            request: What to run.
            load: Loads the same model with fine-tuned weights.
        """
        self.model, self.request, self._load = model, request, load
        self.plain = Subject(model)
        self._store: PairStore | None = None
        self._choices: dict[tuple[str, Callable[..., Any], str], ChosenAmount] = {}
        self._of_plain: dict[tuple[str, str], Any] = {}
        """What was measured of the model as it is, by behavior and column: it is the same for every method."""

    @cached_property
    def chooser(self) -> AmountChooser:
        return AmountChooser(self.model, self.request)

    def run(self) -> None:
        """Make every unit that waits."""
        waiting = processes.from_main(self.request.waiting)
        for number, (behavior, name) in enumerate(waiting, 1):
            log.info("%d of %d: %s on %s", number, len(waiting), name, behavior)
            unit = self.unit(behavior, name)
            if processes.is_main():
                write_json(self.request.unit_path(behavior, name), finite(unit))

    def unit(self, behavior: str, name: str) -> dict[str, Any]:
        """One method on one behavior."""
        method = method_named(TRANSFERRED if name == TRANSFER else name)
        about: dict[str, Any] = {"behavior": behavior, "method": name, "what": method.what, "kind": method.kind}
        made = {
            **self.model.provenance(),
            "command": self.request.command,
            **self.request.dataset_facts(behavior),
        }
        about |= {"settings": self.request.describe(), "made": made}
        try:
            store = self._store_of(behavior)
            if name == TRANSFER:
                answer = self.request.kept(behavior, TRANSFERRED)
                return {**about, **transfer(store, self.chooser, answer or {}, self._test_items(behavior))}
            if method.kind == "control":
                return {**about, **self._control(method, store)}
            sides = self._sides(method, store)
            return {**about, **sides.facts, **self._measured(store, sides.by_level)}
        except NotRun as err:
            return {**about, "not_run": str(err), "provide": err.command}
        except UserError as err:
            return {**about, "not_run": str(err), "provide": ""}

    def _store_of(self, behavior: str) -> PairStore:
        if self._store is None or self._store.behavior != behavior:  # behaviors come one after the other
            self._store = PairStore(self.request, self.model, behavior)
        return self._store

    # --- methods ---

    def _sides(self, method: Method, store: PairStore) -> Sides:
        everything = Material(store, range(len(store.texts)))
        started = time.perf_counter()
        if method.kind == "vector":
            return self._chosen(method, store)
        made: Any = method.make(everything)
        seconds = {"make": time.perf_counter() - started}
        if method.kind == "weights":
            pos, neg = (Subject(self._load(path)) for path in made)
        else:
            pos, neg = (self._framed(framing) for framing in made)
        return Sides({-1.0: neg, 0.0: self.plain, 1.0: pos}, {"seconds": seconds})

    def _framed(self, framing: Framing) -> Subject:
        return self.plain if framing == PLAIN else Subject(self.model, framing=framing)

    def _chosen(self, method: Method, store: PairStore) -> Sides:
        started = time.perf_counter()
        everything = Material(store, range(len(store.texts)))
        nothing_to_choose = method.is_trained and method.operator in ADDING_OPERATORS  # no layer, and no sign
        vectors: Any = method.make(everything if nothing_to_choose else Material(store, store.training))
        made = time.perf_counter()
        validation = [] if nothing_to_choose else [store.texts[i] for i in store.validation]
        choice = self._choice(method, store.behavior, vectors, validation[: self.request.sizes.validation])
        chosen = time.perf_counter()
        whole: Any = vectors if nothing_to_choose else method.make(everything)
        steering = self.chooser.steering_of(whole, method.operator)
        amount = choice.sign * choice.amount
        gate = fit_gate(self.model, self.request, [pair.question for pair in store.texts]) if method.is_gated else None
        subjects = {
            level: Subject(self.model, replace(steering(choice.layer, level * amount), condition=gate))
            for level in LEVELS
            if level
        }
        facts = {
            "operator": method.operator,
            **choice.to_json(),
            "multiplier": steering(choice.layer, amount).multiplier,
            "vector_norm": float(whole[choice.layer].double().norm()),
            "seconds": {"make": made - started, "choose": chosen - made},
        }
        if gate is not None:
            test = [item.question for item in self._test_items(store.behavior)]
            facts["gate"] = gate_facts(self.model, gate, test_items=test, neutral_prompts=self.chooser.reported[0])
        return Sides({0.0: self.plain, **subjects}, facts)

    def _choice(
        self, method: Method, behavior: str, vectors: Mapping[int, Tensor], validation: Sequence[TextPair]
    ) -> ChosenAmount:
        """A method and the same one behind a gate share it."""
        key = (behavior, method.make, method.operator)
        if key not in self._choices:
            steering = self.chooser.steering_of(vectors, method.operator)
            self._choices[key] = self.chooser.choose(steering, sorted(vectors), method.operator, validation)
        return self._choices[key]

    def _control(self, method: Method, store: PairStore) -> dict[str, Any]:
        """Several draws at the middle layer, each at the strength that spends the budget."""
        layer = self.request.layers[len(self.request.layers) // 2]
        material = Material(store, range(len(store.texts)))
        drawn: list[Mapping[int, Tensor]] = [method.make(material, draw) for draw in range(self.request.sizes.draws)]  # type: ignore[misc]
        subjects, amounts = [], []
        for vectors in drawn:
            steering = self.chooser.steering_of(vectors, method.operator)
            [solved] = self.chooser.solve(steering, [layer], method.operator)
            amounts.append(solved.amount)
            subjects += [Subject(self.model, steering(layer, sign * solved.amount)) for sign in (1, -1)]
        found = preferences(subjects, self._test_items(store.behavior), self.request.batch_size)
        first = {1.0: subjects[0], 0.0: self.plain, -1.0: subjects[1]}
        facts = {"operator": method.operator, "layer": layer, "amount": float(np.mean(amounts)), "amounts": amounts}
        return {**facts, **self._measured(store, first), "draws": (found[0::2] - found[1::2]).tolist()}

    # --- measuring ---

    def _measured(self, store: PairStore, by_level: Mapping[float, Subject]) -> dict[str, Any]:
        """Every column, of the subjects at -1, 0 and 1; the preference at all levels."""
        started = time.perf_counter()
        behavior, sizes, paths = store.behavior, self.request.sizes, self.request.paths
        levels = sorted(by_level)
        ends = [by_level[level] for level in ENDS]

        def of_each(
            what: str, measure: Callable[[Sequence[Subject]], Sequence[Any]], subjects: Sequence[Subject]
        ) -> list[Any]:
            """One entry a subject; one that stands there several times is measured once."""
            found: dict[Subject, Any] = {}
            if (behavior, what) in self._of_plain:
                found[self.plain] = self._of_plain[behavior, what]
            new = [subject for subject in dict.fromkeys(subjects) if subject not in found]
            found |= dict(zip(new, measure(new), strict=True))
            if self.plain in found:
                self._of_plain[behavior, what] = found[self.plain]
            return [found[subject] for subject in subjects]

        items = self._test_items(behavior)
        free: list[FreeAnswers] = of_each("free", lambda some: [self._free(store, subject) for subject in some], ends)
        lettered = self._lettered(behavior)
        knowledge = of_each("knowledge", self._knowledge, ends)
        found: dict[str, Any] = {
            "levels": levels,
            "preference": of_each(
                "preference", lambda some: self._preferences(some, items), [by_level[one] for one in levels]
            ),
            "log_odds": of_each("letters", lambda some: log_odds(some, lettered, both_orders=True).tolist(), ends)
            if lettered
            else None,
            "kl": of_each("kl", self._kl, ends),
            "texts": of_each("texts", lambda some: text_log_probabilities(some, paths, sizes.texts).tolist(), ends),
            "free_metric": [one.metric for one in free] if store.known.metric else None,
            "distinct_2": [one.distinct_2 for one in free],
            "questions": free[0].questions,
            "answers": [one.texts for one in free],
            "tokens_per_second": [one.tokens_per_second for one in free],
            **{kind: [one[kind] for one in knowledge] for kind in KNOWLEDGE},
            "others": self._others(behavior, ends),
        }
        return {**found, "seconds_to_test": time.perf_counter() - started}

    def _preferences(self, subjects: Sequence[Subject], items: Sequence[TextPair]) -> list[list[float]]:
        return preferences(subjects, items, self.request.batch_size).tolist()

    def _test_items(self, behavior: str) -> list[TextPair]:
        items = load_text_pairs(self.request.paths.test_dataset(behavior, "answer_text"))
        return items[: self.request.sizes.items]

    def _lettered(self, behavior: str) -> list[ChoiceItem]:
        """The test items as lettered questions; empty where they have no letters."""
        path = self.request.paths.test_dataset(behavior, "ab")
        return load_choice_items(path, "ab")[: self.request.sizes.lettered] if path.exists() else []

    def _kl(self, subjects: Sequence[Subject]) -> list[dict[str, float]]:
        questions, answers = self.chooser.reported
        found = []
        for subject in subjects:
            if subject.is_plain(self.model):
                found.append({"mean": 0.0, "p95": 0.0})
                continue
            kl = kl_per_token(self.model, subject, questions, answers).double()
            found.append({"mean": float(kl.mean()), "p95": float(kl.quantile(0.95))})
        return found

    def _free(self, store: PairStore, subject: Subject) -> FreeAnswers:
        questions = load_open_ended_questions(self.request.paths.test_dataset(store.behavior, "open_ended"))
        sizes = self.request.sizes
        return free_answers(subject, questions[: sizes.free], sizes.free_tokens, store.known.metric)

    def _knowledge(self, subjects: Sequence[Subject]) -> list[dict[str, list[float]]]:
        """p(correct) of each question of both sets, for each subject."""
        n, paths = self.request.sizes.knowledge, self.request.paths
        items: dict[str, list[ChoiceItem]] = {
            kind: load_choice_items(paths.test_dataset("", kind), kind)[:n] for kind in KNOWLEDGE
        }
        found: FloatArray = 1 / (1 + np.exp(-log_odds(subjects, [item for some in items.values() for item in some])))
        return [_apart(of_one, items) for of_one in found]

    def _others(self, behavior: str, ends: Sequence[Subject]) -> dict[str, list[float]]:
        """The change of every other behavior's preference, for minus against, of each item."""
        n, paths = self.request.sizes.others, self.request.paths
        if not n or ends[0] is ends[2]:
            return {}
        tests = {other: paths.test_dataset(other, "answer_text") for other in list_behaviors(paths)}
        items = {
            other: load_text_pairs(path)[:n] for other, path in tests.items() if other != behavior and path.exists()
        }
        asked = [item for some in items.values() for item in some]
        if not asked:
            return {}
        against, towards = preferences([ends[0], ends[2]], asked, self.request.batch_size)
        return _apart(towards - against, items)


def _apart(values: FloatArray, items: Mapping[str, Sequence[Any]]) -> dict[str, list[float]]:
    """One value an item, by the sets that the items are of."""
    ends = np.cumsum([len(some) for some in items.values()])[:-1]
    return {name: part.tolist() for name, part in zip(items, np.split(values, ends), strict=True)}
