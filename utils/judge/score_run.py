"""One pass of the judge over some score files: many requests at once, every reply kept as it comes."""

import asyncio
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from utils.behaviors import Behavior
from utils.cli.progress import progress
from utils.errors import UserError
from utils.files.journal import Journal
from utils.judge.client import BudgetSpentError, Judge, Reply, RequestFailedError
from utils.judge.prompt import MAX_REPLY_CHARS, messages, parse_reply
from utils.judge.score_files import Record
from utils.judge.tally import Tally

log = logging.getLogger(__name__)

MAX_ASKS = 2
"""Of one answer: again once after a reply that is no score."""


class ToScore(Protocol):
    """Answers that are scored together, such as those of a `ScoreFile`."""

    def open_answers(self) -> dict[str, Record]:
        """Those to be scored, by `answer_key`; each has `question` and `model_output`."""

    def write(self, entries: Mapping[str, Record], run: Mapping[str, Any]) -> None:
        """Keep the scores: of every open answer the `journal_entry`, by key. `run`: who judged how."""


class ScoreRun:
    """Asks for the scores of a behavior's files and writes each file when its last answer is settled."""

    def __init__(
        self,
        judge: Judge,
        behavior: Behavior,
        files: Sequence[ToScore],
        journal: Journal,
        record: Mapping[str, Any],
        tally: Tally,
    ) -> None:
        """
        Args:
            judge: Asked for the scores.
            behavior: Its rubric is used.
            files: To be written.
            journal: Keeps the replies, by answer.
            record: For the files' provenance.
            tally: Counts what is done.
        """
        self.judge, self.behavior, self.journal, self.record, self.tally = judge, behavior, journal, record, tally
        self._answers: dict[str, Record] = {}
        self.unfinished: dict[int, set[str]] = {}
        """Index into `files` -> keys of the answers that it lacks."""
        self.files = files
        for index, file in enumerate(files):
            answers = file.open_answers()
            self._answers.update(answers)
            self.unfinished[index] = {key for key in answers if not self._is_settled(key)}

    def work(self, concurrency: int) -> None:
        """Ask for what is missing and write what is complete; what fails is counted.

        Raises:
            UserError: If every other request would fail, too.
        """
        self._write_complete()
        waiting = [key for key in self._answers if not self._is_settled(key)]
        if waiting and not self.tally.stopped:
            asyncio.run(self._ask_all(waiting, concurrency))
        self.tally.n_missing += sum(not self._is_settled(key) for key in self._answers)
        self.tally.n_unfinished += len(self.unfinished)

    def _is_settled(self, key: str) -> bool:
        return "score" in self.journal.entries.get(key, {})

    def _write_complete(self) -> None:
        for index in [index for index, missing in self.unfinished.items() if not missing]:
            self.files[index].write(self.journal.entries, {**self.record, "parameters": self.judge.parameters})
            self.tally.n_written += 1
            del self.unfinished[index]

    async def _ask_all(self, waiting: list[str], concurrency: int) -> None:
        keys = iter(waiting)
        n_settled = len(self._answers) - len(waiting)
        try:
            with progress(total=len(self._answers), initial=n_settled, desc=f"{self.behavior.id}: answers") as bar:
                async with self.judge.connected(), asyncio.TaskGroup() as group:
                    for _ in range(min(concurrency, len(waiting))):
                        group.create_task(self._ask_some(keys, bar))
        except* (UserError, OSError) as errors:
            raise errors.exceptions[0] from None

    async def _ask_some(self, keys: Iterator[str], bar: Any) -> None:
        """One worker: takes the next answer until there is none, or the run is stopped."""
        for key in keys:
            if self.tally.stopped:
                return
            try:
                await self._settle(key)
            except BudgetSpentError:
                self.tally.stopped = "another request could pass --max_cost"
                return
            except RequestFailedError as err:
                self.tally.fail(str(err))
            else:
                for missing in self.unfinished.values():
                    missing.discard(key)
                self._write_complete()
                bar.update()
            bar.set_postfix_str(self._progress(), refresh=False)

    def _progress(self) -> str:
        tally = self.tally
        n_failed = sum(tally.failures.values())
        return f"{tally.n_scored} scored, {tally.n_unscored} unscored, {n_failed} failed, {self.judge.budget}"

    async def _settle(self, key: str) -> None:
        """Ask until the answer has a score, or is known to get none; each reply is kept at once."""
        asked = self.journal.entries.get(key, {}).get("asked", 0)
        answer = self._answers[key]
        while not self._is_settled(key):
            request = messages(self.behavior, answer["question"], answer["model_output"], reminder=asked > 0)
            reply = await self.judge.ask(request)
            asked += 1
            self.journal.append(key, journal_entry(reply, asked))
        self.tally.count(self.journal.entries[key])


def journal_entry(reply: Reply, asked: int) -> Record:
    """What is kept of a reply; without `score` while the answer is to be asked again."""
    served = {"model": reply.model} if reply.model else {}
    verdict = parse_reply(reply.text, cut_off=reply.cut_off)
    reason = reply.fault or verdict.reason
    if reason is None:
        return {"score": verdict.score, **served}
    kept = {"judge_reply": reply.text[:MAX_REPLY_CHARS], "unscored_reason": reason, "asked": asked, **served}
    return {"score": None, **kept} if asked >= MAX_ASKS else kept
