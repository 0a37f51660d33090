"""The judge model at work: it writes, and it grades. Every reply is kept as it comes, so none is paid for twice."""

import asyncio
import hashlib
import json
import logging
from collections.abc import Awaitable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from utils.authoring import grading
from utils.authoring.answers import Answer
from utils.authoring.asking import WRITE_TOKENS, PairsPart, Part, QuestionsPart, parts_of
from utils.authoring.filtering import Grades
from utils.authoring.grading import ASPECTS, Aspect
from utils.authoring.request import AuthoringRequest, UnfinishedError
from utils.authoring.written import N_QUESTIONS, Written, save_written
from utils.authoring.written_pairs import save_written_pairs
from utils.cli.progress import progress
from utils.errors import UserError
from utils.files.journal import Journal, open_journal
from utils.files.provenance import read_provenance, record_provenance
from utils.files.reading import read_json
from utils.files.writing import write_json
from utils.judge.access import find_key
from utils.judge.client import BudgetSpentError, Judge, Reply, RequestFailedError
from utils.judge.cost import Budget
from utils.judge.requests import JudgeFlags
from utils.judge.score_files import answer_key
from utils.judge.tally import Tally

log = logging.getLogger(__name__)

MAX_REPLIES = 6
"""Of one part, in one run; then the model is taken to be unable to write it."""


class JudgeRuns:
    """What one run asks of a judge model, under one limit on the cost."""

    def __init__(self, flags: JudgeFlags, command: str) -> None:
        """
        Raises:
            UserError: If there is no key, and the server is not on loopback.
        """
        self.flags, self.command = flags, command
        find_key(flags.base_url)  # before anything is computed
        self.budget = Budget(flags.price, flags.max_cost)
        self.tally = Tally()

    @property
    def record(self) -> dict[str, str]:
        return {"judge_model": self.flags.model, "base_url": self.flags.base_url}

    # --- writing ---

    def write(self, request: AuthoringRequest, run: Mapping[str, Any]) -> None:
        """Have everything written that is not, and save it.

        Raises:
            UserError: If the model does not write what is asked for.
            UnfinishedError: If requests failed; what came is kept.
        """
        sentence = request.sentence
        assert sentence is not None
        header = {**self.record, "sentence": sentence, "opposite": request.opposite}
        name = hashlib.sha256(json.dumps(header, sort_keys=True).encode()).hexdigest()[:16]
        with open_journal(
            request.paths.written(request.behavior).with_name(f".written_{name}.jsonl"), header
        ) as journal:
            writer = _Writer(Judge.of(self.flags, self.budget, reply_tokens=WRITE_TOKENS), journal, self.tally)
            parts = writer.write(sentence, request.opposite, request.n_written_pairs)
            for part in parts:
                log.info("%s", part.found.line(part.name, part.n))
            self._check_finished()
            if writer.given_up:
                raise UserError(
                    f"the judge model does not write what is asked for: {writer.given_up[0]}; take another "
                    "--judge_model, or --template"
                )
            prompts, rubric, extract, evaluate, *pairs = parts
            written = Written(
                sentence,
                tuple(prompts.found.items),
                tuple(extract.found.items),
                tuple(evaluate.found.items),
                rubric.found.items[0],
            )
            asked = {
                part.name: {"replies": part.found.n_replies, "not_taken": dict(part.found.rejected)} for part in parts
            }
            if pairs:
                save_written_pairs(request, pairs[0].found.items, {**run, **self.record})
            save_written(request.paths, request.behavior, written, {**run, **self.record, "asked": asked})
            journal.remove()

    def _check_finished(self) -> None:
        for reason, count in self.tally.failures.most_common(3):
            log.error("%d requests failed: %s", count, reason)
        if self.tally.stopped or self.tally.failures:
            why = f"stopped: {self.tally.stopped}" if self.tally.stopped else "some requests failed"
            raise UnfinishedError(f"{why}; {self.budget}; what came is kept; to go on, run: {self.command}")

    # --- grading ---

    def grade_pairs(self, written: Written, pairs: Sequence[tuple[Answer, Answer]], path: Path) -> dict[Answer, Grades]:
        """Grade both answers of each pair.

        Raises:
            UnfinishedError: If requests failed; what came is kept.
        """
        answers = [one for pair in pairs for one in pair]
        found = self._grade(written, [(one.question, one.model_output) for one in answers], path)
        return dict(zip(answers, found, strict=True))

    def grade_demo(
        self,
        request: AuthoringRequest,
        written: Written,
        answers: Mapping[Any, Sequence[Mapping[str, str]]],
        path: Path,
    ) -> dict[str, Any]:
        """Grade the free answers, [n_conditions, n_questions] each."""
        flat = [(one["question"], one["model_output"]) for records in answers.values() for one in records]
        before = request.paths.grades(request.paths.own_answers(request.behavior, request.choice.label))
        found = iter(self._grade(written, flat, request.paths.grades(path), before))
        rows = [[next(found) for _ in records] for records in answers.values()]
        return {"grades": {a: [[getattr(one, a) for one in row] for row in rows] for a in ASPECTS}}

    def _grade(self, written: Written, answers: Sequence[tuple[str, str]], path: Path, *others: Path) -> list[Grades]:
        """Grade answers into a file, but for those whose grades are in it or in one of the others."""
        rubric = written.judge_rubric()
        header = {**self.record, "prompt_sha256": grading.fingerprint(rubric)}
        name = hashlib.sha256(json.dumps(header, sort_keys=True).encode()).hexdigest()[:16]
        with open_journal(path.with_name(f".{path.stem}_{name}.jsonl"), header) as journal:
            judge = Judge.of(self.flags, self.budget, top_logprobs=grading.TOP_LOGPROBS)
            known = {key: grade for one in (*others, path) for key, grade in _known_grades(one, header).items()}
            grader = _Grader(judge, journal, self.tally, rubric, known)
            grader.grade([one for one in answers if one[1].strip()], self.flags.concurrency)
            self._check_finished()
            grades = [grader.grades(*one) for one in answers]
            records = [
                {"question": question, "model_output": answer, "trait": one.trait, "coherence": one.coherence}
                for (question, answer), one in zip(answers, grades, strict=True)
            ]
            n_missing = sum(one.trait is None or one.coherence is None for one in grades)
            log.info("graded %d answers, %d of them without a grade; %s", len(grades), n_missing, self.budget)
            record_provenance(path.parent, [path.name], {**header, "command": self.command})
            write_json(path, records)
            journal.remove()
        return grades


class _Writer:
    """Asks for the parts, again for what is missing of each."""

    def __init__(self, judge: Judge, journal: Journal, tally: Tally) -> None:
        self.judge, self.journal, self.tally = judge, journal, tally
        self.given_up: list[str] = []
        """What the model does not write, in words."""

    def write(self, sentence: str, opposite: str | None, n_pairs: int) -> list[Part[Any]]:
        """All parts in the order of prompts, rubric, questions of both sides, contrast pairs."""
        prompts, rubric, extract = parts_of(sentence, opposite)
        made: list[Part[Any]] = [prompts, rubric, extract]

        async def questions() -> None:
            await self._fill(extract)
            others = list(extract.found.items)
            evaluate = QuestionsPart("evaluate", sentence, opposite, N_QUESTIONS, others)
            made.append(evaluate)
            if extract.is_full:
                await self._fill(evaluate)
            if n_pairs:
                pairs = PairsPart(sentence, opposite, n_pairs, [*others, *evaluate.found.items])
                made.append(pairs)
                if evaluate.is_full:
                    await self._fill(pairs)

        _run(self.judge, [self._fill(prompts), self._fill(rubric), questions()])
        return made

    async def _fill(self, part: Part[Any]) -> None:
        """Ask until the part is full; replies of an earlier run come first."""
        n_kept = 0
        while (entry := self.journal.entries.get(f"{part.name}/{n_kept}")) is not None:
            part.read(Reply(entry["text"], entry["cut_off"], fault=entry["fault"]))
            n_kept += 1
        for place in range(n_kept, n_kept + MAX_REPLIES):
            if part.is_full or self.tally.stopped:
                return
            try:
                reply = await self.judge.ask(part.messages())
            except BudgetSpentError:
                self.tally.stopped = "another request could pass --max_cost"
                return
            except RequestFailedError as err:
                self.tally.fail(str(err))
                return
            entry = {"text": reply.text, "cut_off": reply.cut_off, "fault": reply.fault}
            self.journal.append(f"{part.name}/{place}", entry)
            part.read(reply)
        if not part.is_full:  # said when the other parts are done: what is on its way to them is paid for
            self.given_up.append(f"{part.found.line(part.name, part.n)}; the last reply begins {reply.text[:80]!r}")


class _Grader:
    """Asks for the grades of answers, each aspect on its own."""

    def __init__(
        self, judge: Judge, journal: Journal, tally: Tally, rubric: str, known: Mapping[str, float | None]
    ) -> None:
        self.judge, self.journal, self.tally, self.rubric, self.known = judge, journal, tally, rubric, known

    def grade(self, answers: Sequence[tuple[str, str]], concurrency: int) -> None:
        """Ask for what is missing; equal answers to a question are asked about once."""
        wanted = {_key(aspect, *one): (aspect, *one) for one in answers for aspect in ASPECTS}
        waiting = [key for key in wanted if not self._is_settled(key)]
        if not waiting or self.tally.stopped:
            return
        keys = iter(waiting)
        with progress(total=len(wanted), initial=len(wanted) - len(waiting), desc="grades") as bar:
            workers = [self._work(keys, wanted, bar) for _ in range(min(concurrency, len(waiting)))]
            _run(self.judge, workers)

    def grades(self, question: str, answer: str) -> Grades:
        keys = [_key(aspect, question, answer) for aspect in ASPECTS]
        trait, coherence = (self.journal.entries.get(key, {}).get("grade", self.known.get(key)) for key in keys)
        return Grades(trait, coherence)

    def _is_settled(self, key: str) -> bool:
        return key in self.known or "grade" in self.journal.entries.get(key, {})

    async def _work(self, keys: Iterator[str], wanted: Mapping[str, tuple[Aspect, str, str]], bar: Any) -> None:
        for key in keys:
            if self.tally.stopped:
                return
            try:
                await self._settle(key, *wanted[key])
            except BudgetSpentError:
                self.tally.stopped = "another request could pass --max_cost"
                return
            except RequestFailedError as err:
                self.tally.fail(str(err))
            else:
                bar.update()

    async def _settle(self, key: str, aspect: Aspect, question: str, answer: str) -> None:
        asked = self.journal.entries.get(key, {}).get("asked", 0)
        while not self._is_settled(key):
            reply = await self.judge.ask(grading.messages(aspect, self.rubric, question, answer))
            asked += 1
            self.journal.append(key, grading.journal_entry(reply, asked))
        self.tally.count({"score": self.journal.entries[key]["grade"]})


def _known_grades(path: Path, header: Mapping[str, Any]) -> dict[str, float | None]:
    """What the same judge has said in an earlier run that was finished, by aspect and answer."""
    if not path.exists() or not header.items() <= (read_provenance(path) or {}).items():
        return {}
    records = read_json(path)
    return {
        _key(aspect, one["question"], one["model_output"]): one[aspect]
        for one in records
        for aspect in ASPECTS
        if one["model_output"].strip()
    }


def _key(aspect: Aspect, question: str, answer: str) -> str:
    return f"{aspect}/{answer_key({'question': question, 'model_output': answer})}"


def _run(judge: Judge, jobs: Iterable[Awaitable[None]]) -> None:
    """Do some jobs at once.

    Raises:
        UserError: If every other request would fail, too.
    """

    async def work() -> None:
        async with judge.connected(), asyncio.TaskGroup() as group:
            for job in jobs:
                group.create_task(_awaited(job))

    try:
        asyncio.run(work())
    except* (UserError, OSError) as errors:
        raise errors.exceptions[0] from None


async def _awaited(job: Awaitable[None]) -> None:
    await job
