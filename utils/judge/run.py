"""A scoring run: what there is to do, asking the judge, and what came of it."""

import logging
from typing import TYPE_CHECKING

from utils.behaviors import load_behavior
from utils.files.journal import open_journal, read_entries
from utils.judge.cost import CHARS_PER_TOKEN, Budget, Estimate
from utils.judge.prompt import messages
from utils.judge.requests import JudgeRequest
from utils.judge.score_files import Planner, Purpose, ScorePlan
from utils.judge.tally import Tally

if TYPE_CHECKING:
    from utils.judge.client import Judge

log = logging.getLogger(__name__)

PURPOSES: tuple[Purpose, ...] = ("score", "overwrite", "retry")


def plan_all(request: JudgeRequest) -> list[ScorePlan]:
    """What there is to do.

    Raises:
        UserError: If there are no open-ended results of the kind asked for.
    """
    wanted = request.wanted
    for behavior in wanted.behaviors:
        load_behavior(wanted.paths, behavior).judge_rubric()  # said before anything is planned
    planner = Planner(request.scores_dir, request.overwrite, request.retry_unscored, wanted.has, request.record)
    plans = [planner.plan(wanted.paths, behavior) for behavior in wanted.behaviors]
    for missing in wanted.missing(settings for plan in plans for settings in plan.found):
        log.warning("no such open-ended results for %s", missing)
    return plans


def score_all(request: JudgeRequest, plans: list[ScorePlan]) -> bool:
    """Score what waits and say what came of it; whether nothing is left."""
    tally, budget = Tally(), Budget(request.judge.price, request.judge.max_cost)
    for plan in plans:
        forget_finished(request, plan)
    if any(plan.wanted for plan in plans):
        from utils.judge.client import Judge  # the SDK: only where there is something to ask

        judge = Judge.of(request.judge, budget)
        for plan in plans:
            for purpose in PURPOSES:
                score_files(request, judge, plan, purpose, tally)
    return summarise(request, plans, tally, budget)


def score_files(request: JudgeRequest, judge: "Judge", plan: ScorePlan, purpose: Purpose, tally: Tally) -> None:
    """Score a behavior's files of one purpose; replies are kept in a journal until the files are written."""
    from utils.judge.score_run import ScoreRun

    if not any(file.purpose == purpose for file in plan.wanted):
        return
    record = request.record(plan.behavior)
    with open_journal(request.journal_path(plan.behavior, purpose), record) as journal:
        asked_for = [file for file in plan.wanted if file.purpose == purpose]
        files = [file for file in asked_for if file.is_missing()]
        plan.n_done += len(asked_for) - len(files)  # another process has scored them meanwhile
        about = load_behavior(request.wanted.paths, plan.behavior)
        scoring = ScoreRun(judge, about, files, journal, {**record, "command": request.command}, tally)
        scoring.work(request.judge.concurrency)
        if n_written := len(files) - len(scoring.unfinished):
            log.info("wrote %s: %d score files", request.scores_dir / plan.behavior, n_written)
        still_open = [files[index] for index in scoring.unfinished] + (plan.others if purpose == "score" else [])
        if not any(key in journal.entries for file in still_open for key in file.open_answers()):
            journal.remove()


def forget_finished(request: JudgeRequest, plan: ScorePlan) -> None:
    """Remove the journal of a run that was killed when all its score files were written."""
    is_open = any(file.purpose == "score" for file in (*plan.wanted, *plan.others))
    if not (is_open or plan.n_left or plan.n_broken):
        request.journal_path(plan.behavior, "score").unlink(missing_ok=True)


def estimate(request: JudgeRequest, plans: list[ScorePlan]) -> str:
    """What a run would take, in a line; answers that an interrupted run has kept are not counted."""
    total = Estimate()
    for plan in plans:
        about = load_behavior(request.wanted.paths, plan.behavior)
        for purpose in PURPOSES:
            kept = read_entries(request.journal_path(plan.behavior, purpose))
            answers = {
                key: record
                for file in plan.wanted
                if file.purpose == purpose
                for key, record in file.open_answers().items()
            }
            for key, record in answers.items():
                if "score" not in kept.get(key, {}):
                    total.add(messages(about, record["question"], record["model_output"]))
    price = request.judge.price
    cost = f"{price.of(total.tokens_in, total.tokens_out):.4f} USD" if price else "unknown cost (give --price IN OUT)"
    n_files = sum(len(plan.wanted) for plan in plans)
    return (
        f"{n_files} files to score: {total.n_requests} requests to {request.judge.model}, "
        f"about {total.tokens_in} tokens in (characters / {CHARS_PER_TOKEN}) and {total.tokens_out} out, roughly {cost}"
    )


def summarise(request: JudgeRequest, plans: list[ScorePlan], tally: Tally, budget: Budget) -> bool:
    """Say what was done and what was not; whether nothing is left."""
    n_done = sum(plan.n_done for plan in plans)
    if n_other := sum(plan.n_other_judge for plan in plans):
        log.info("%d of the files that have scores were scored by another judge; --overwrite replaces them", n_other)
    if n_unscored := sum(plan.n_unscored for plan in plans):
        log.info("%d answers there are unscored; --retry_unscored asks again", n_unscored)
    for reason, count in tally.failures.most_common(3):
        log.error("%d requests failed: %s", count, reason)
    if tally.stopped:
        log.error("stopped: %s", tally.stopped)
    if tally.n_missing:
        log.error("%d answers are left; to go on, run: %s", tally.n_missing, request.command)
    n_failed = tally.n_unfinished + sum(plan.n_left + plan.n_broken for plan in plans)
    log.info(
        "wrote %d score files, skipped %d that have scores, failed %d; %d answers scored, %d unscored; %s",
        tally.n_written,
        n_done,
        n_failed,
        tally.n_scored,
        tally.n_unscored,
        budget,
    )
    return not n_failed
