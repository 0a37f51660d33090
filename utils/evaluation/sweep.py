"""From a plan and a loaded model to result files, one behavior after the other.

Finished items go into a journal until the result files are written, so that a run that is killed
loses at most what was in flight.
"""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from utils.cli.progress import progress
from utils.evaluation.kinds import Asked, Combination, DistinctSteering, questions_of
from utils.evaluation.plan import JOURNAL_PREFIX, JOURNAL_SUFFIX, Sweep, SweepPlan, SweepRequest
from utils.evaluation.stale import warn_of_stale_results
from utils.evaluation.sweep_edits import SweepEdits
from utils.files.journal import Journal, open_journal
from utils.files.provenance import record_provenance
from utils.files.writing import write_json
from utils.model import processes
from utils.vectors.norms import layer_norms

if TYPE_CHECKING:
    from torch import Tensor

    from llama_wrapper import LlamaWrapper

log = logging.getLogger(__name__)


def run_sweeps(model: "LlamaWrapper", plan: SweepPlan, vectors: Mapping[str, "dict[int, Tensor]"]) -> int:
    """Make the result files that a plan waits for.

    Args:
        model: The request's model.
        plan: What to make.
        vectors: The steering vector for each layer, by behavior, for every sweep that waits.

    Returns:
        How many files this run wrote; fewer than were missing where another run wrote some meanwhile.
    """
    warn_of_stale_results(plan.request, plan.sweeps, model.provenance(), plan.stale)
    n_written = 0
    for sweep in plan.waiting:
        behavior = sweep.settings.behavior
        n_of_sweep = run_sweep(model, plan.request, sweep, vectors[behavior])
        n_written += n_of_sweep
        results_dir = plan.request.paths.results_dir / behavior
        if n_of_sweep:
            log.info("wrote %s: %d result files, %d items each", results_dir, n_of_sweep, len(sweep.items))
        else:
            log.info("wrote none to %s: another run has written what was missing meanwhile", results_dir)
    return n_written


def run_sweep(model: "LlamaWrapper", request: SweepRequest, sweep: Sweep, vectors: "dict[int, Tensor]") -> int:
    """Evaluate one behavior; returns how many result files were written.

    Finished items are kept in a journal until the result files are written. Of several processes each keeps its own
    journal, and the main one writes the files.
    """
    paths = request.paths
    results_dir = paths.results_dir / sweep.settings.behavior
    norms = layer_norms(model, paths) if sweep.settings.knob == "strength" else []
    edits = SweepEdits(model, request, sweep)
    of_strength = {"residual_norms": {str(layer): norms[layer] for layer in vectors}} if norms else {}
    run_record = {**model.provenance(), "command": request.command, **sweep.facts, **of_strength, **edits.facts}
    name = f"{JOURNAL_PREFIX}{_identity(request, sweep, run_record)}_{processes.index()}{JOURNAL_SUFFIX}"
    n_written = 0
    while missing := processes.from_main(sweep.missing(paths, overwrite=request.overwrite)):
        header = {"settings": sweep.shared_settings, "overwrite": request.overwrite, "combinations": missing}
        with open_journal(results_dir / name, header) as journal:
            if not processes.from_main(sweep.missing(paths, overwrite=request.overwrite)):
                journal.remove()  # another run has written them meanwhile
                break
            combinations = [(layer, at) for layer, at in processes.from_main(journal.header)["combinations"]]
            steerings = _distinct_steerings(combinations, vectors, norms, edits)
            evaluation = _Evaluation(model, request, sweep, steerings, journal, run_record)
            evaluation.run()
            n_written += evaluation.n_written
            processes.gather(None)  # nobody forgets before all is written
            journal.remove()
        if request.overwrite:
            break  # else what the journal of an earlier run did not have is still missing
    return n_written


def _identity(request: SweepRequest, sweep: Sweep, run_record: Mapping[str, Any]) -> str:
    """Tells this sweep's journal from others: everything that its numbers depend on, but not how it was typed.

    And whether it writes over what is there: that decides which combinations its journal has.
    """
    depends_on = {key: value for key, value in run_record.items() if key != "command"}
    content = json.dumps([sweep.shared_settings, sweep.combinations, depends_on, request.overwrite], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


class _Evaluation:
    """A sweep at work: the model, what is asked, and the journal of what has been answered."""

    def __init__(
        self,
        model: "LlamaWrapper",
        request: SweepRequest,
        sweep: Sweep,
        steerings: list[DistinctSteering],
        journal: Journal,
        run_record: dict[str, Any],
    ) -> None:
        self.model, self.settings, self.journal, self.run_record = model, sweep.settings, journal, run_record
        self.kind = questions_of(sweep.settings.type, sweep.settings.orders)
        self.paths, self.overwrite = request.paths, request.overwrite
        self.items: list[Any] = [item for item in sweep.items for _ in range(sweep.settings.num_samples)]
        self.steerings = steerings
        self.asked = Asked(request, sweep.settings, sweep.system_prompt, self.items, self.steerings)
        self.n_written = 0
        self._complete: set[int] = set()  # places in `steerings`
        self._replaced: list[str] = []
        self._collect()

    def run(self) -> None:
        """Ask what is not answered yet; a steering's files are written as soon as all of its answers are there."""
        if processes.is_main():  # before the files are there, so that none is left unexplained by a kill
            named = [self.settings.at(*at) for distinct in self.steerings for at in distinct.combinations]
            self._record([at.result_name for at in named if not self.paths.result(at).exists()])
        done = {int(key) for key in self.journal.entries}
        total = self.kind.n_entries(len(self.items), len(self.steerings))
        what = f"{self.settings.behavior}: {self.kind.unit}"
        with progress(total=total, initial=len(done), desc=what) as bar:
            for number, entry in self.kind.answer(self.model, self.asked, done):
                self.journal.append(str(number), entry)
                bar.update()
                place = self.kind.place_of(number, len(self.items))
                if place is not None and processes.count() == 1 and self._write_if_complete(place):
                    self._record_replaced()
        self._collect()
        if processes.is_main():
            for place in range(len(self.steerings)):
                self._write_if_complete(place)
            self._record_replaced()

    def _collect(self) -> None:
        """Bring together what all processes have found."""
        for entries in processes.gather(self.journal.entries):
            self.journal.entries.update(entries)

    def _write_if_complete(self, place: int) -> bool:
        """Write a steering's result files, once all of its items are in the journal; whether it did so now."""
        numbers = [self.kind.numbers(item, place, len(self.items)) for item in range(len(self.items))]
        entries = [[self.journal.entries.get(str(number)) for number in of_item] for of_item in numbers]
        if place in self._complete or any(None in of_item for of_item in entries):
            return False
        self._complete.add(place)
        records = [self.kind.record(item, of_item, place) for item, of_item in zip(self.items, entries, strict=True)]
        for at in self.steerings[place].combinations:
            path = self.paths.result(self.settings.at(*at))
            is_there = path.exists()
            if is_there and not self.overwrite:
                continue  # another run, or this one before it was killed, has written it
            write_json(path, records)
            self.n_written += 1
            if is_there:
                self._replaced.append(path.name)
        return True

    def _record_replaced(self) -> None:
        """Note what made the files that were written over: before, it would be said of the older ones.

        A kill in between leaves new files that are taken for the older run's, which warns for nothing; the other way
        round older files would pass for new ones.
        """
        self._record(self._replaced)
        self._replaced.clear()

    def _record(self, names: Sequence[str]) -> None:
        if names:
            record_provenance(self.paths.results_dir / self.settings.behavior, names, self.run_record)


def _distinct_steerings(
    combinations: Sequence[Combination], vectors: "Mapping[int, Tensor]", norms: Sequence[float], edits: SweepEdits
) -> list[DistinctSteering]:
    """What is done, once for all combinations that do the same.

    Args:
        combinations: Layers, and multipliers or strengths.
        vectors: By layer.
        norms: Of each layer's residual stream, where the combinations have strengths; else empty.
        edits: Makes the steerings.
    """
    unsteered = tuple(at for at in combinations if at[1] == 0)
    distinct = [DistinctSteering(None, unsteered)] if unsteered else []
    for layer, amount in combinations:
        if amount != 0:
            of_layer = edits.steering(layer, vectors[layer], amount, norms)
            distinct.append(DistinctSteering((of_layer, *edits.beside(amount, norms)), ((layer, amount),)))
    return distinct
