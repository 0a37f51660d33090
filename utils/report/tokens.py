"""Where vectors are read and where steering is added, token by token on real questions; tokenizer only."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from utils.data.records import load_choice_items, load_open_ended_questions
from utils.errors import UserError
from utils.evaluation.words import PLAIN, condition_label
from utils.figures.requests import PlotRequest
from utils.figures.result_sets import ResultSet
from utils.files.reading import read_json
from utils.inside.token_texts import texts_in_context
from utils.judge.score_files import Record
from utils.model.chat_format import ChatFormat, fixed_format, write_prompt
from utils.model.checkpoints import ModelChoice
from utils.model.loading import load_local_tokenizer
from utils.paths import DataPaths
from utils.report.answers import Answers
from utils.settings import ResultType

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Role = Literal["prompt", "start", "steered", "bracket", "read"]
_NOTES: dict[Role, str] = {
    "prompt": "not steered",
    "start": "steering starts here",
    "steered": "steered",
    "bracket": "steered; the letters' probabilities are read here",
    "read": "the vector was read here",
}
_ANSWER_CHARACTERS = 160  # of an answer are enough to see where it starts


@dataclass(frozen=True)
class ShownToken:
    text: str
    role: Role
    token_id: int | None
    """None for a piece of text whose tokens are not known."""

    @property
    def note(self) -> str:
        return _NOTES[self.role]


@dataclass(frozen=True)
class TokenExample:
    title: str
    origin: str
    """Where the question is from."""
    tokens: tuple[ShownToken, ...]

    @property
    def start(self) -> int | None:
        """Index of the first steered token."""
        return next((place for place, token in enumerate(self.tokens) if token.role != "prompt"), None)


@dataclass(frozen=True)
class TokenView:
    """The examples of one model; pieces of text where its tokenizer is not here."""

    examples: tuple[TokenExample, ...]
    problem: str = ""
    """Why these are no tokens; empty where they are."""
    command: str = ""
    """What mends it."""


@dataclass(frozen=True)
class _Question:
    text: str
    origin: str
    letter: str = ""
    """Matching answer, of a question with choices."""
    answer: str = ""


def token_view(request: PlotRequest, sets: Sequence[ResultSet], answers: Answers) -> TokenView:
    """One question with choices and one open-ended question: out of the results, or else of the test sets."""
    choice, steer_all = request.choice, request.steer_positions == "all"
    found = (
        _choice_question(sets) or _dataset_question(request.paths, request.behaviors, "ab"),
        _open_question(answers) or _dataset_question(request.paths, request.behaviors, "open_ended"),
    )
    questions = [question for question in found if question]
    try:
        write: Any = _TokenWriter(load_local_tokenizer(choice), choice, steer_all)
        problem = ""
    except UserError as err:
        write, problem = _TextWriter(choice, steer_all), str(err)
    examples = []
    for question in questions:
        try:
            examples.append(TokenExample(_title(question), question.origin, write(_without_surrogates(question))))
        except UserError as err:
            problem = problem or str(err)
    what, _, command = problem.partition("; run: ")
    return TokenView(tuple(examples), what, command)


def _title(question: _Question) -> str:
    return "A question with lettered answers" if question.letter else "An open-ended question"


def _without_surrogates(question: _Question) -> _Question:
    """Halves of surrogate pairs are no text that a tokenizer takes."""
    text, answer = (one.encode("utf-8", "replace").decode("utf-8") for one in (question.text, question.answer))
    return replace(question, text=text, answer=answer)


# --- questions -------------------------------------------------------------------------------------


def _choice_question(sets: Sequence[ResultSet]) -> _Question | None:
    keys: dict[ResultType, str] = {
        "ab": "answer_matching_behavior",
        "truthful_qa": "correct",
        "mmlu": "correct",
    }
    for results in sets:
        if results.result_type not in keys:
            continue
        for files in results.files.values():
            for path in files.read_paths:
                record = read_json(path)[0]
                return _Question(record["question"], path.name, record[keys[results.result_type]].strip()[1])
    return None


def _open_question(answers: Answers) -> _Question | None:
    """The first question, with its answer under the strongest plain steering towards the behavior."""
    if not answers.files:
        return None
    behavior = answers.files[0].settings.behavior
    of_behavior = [file for file in answers.files if file.settings.behavior == behavior]
    plain = [file for file in of_behavior if condition_label(file.settings) == PLAIN] or of_behavior
    file = max(plain, key=lambda one: one.settings.multiplier)
    record: Record = file.records[0]
    return _Question(record["question"], file.path.name, answer=record["model_output"].strip()[:_ANSWER_CHARACTERS])


def _dataset_question(paths: DataPaths, behaviors: Sequence[str], result_type: ResultType) -> _Question | None:
    """The first question of the first test set that there is."""
    for behavior in behaviors:
        path = paths.test_dataset(behavior, result_type)
        try:
            if result_type == "ab":
                item = load_choice_items(path, result_type)[0]
                return _Question(item.question, f"{behavior}/{path.name}", item.target_letter)
            return _Question(load_open_ended_questions(path)[0], f"{behavior}/{path.name}")
        except UserError:
            continue  # the page only wants an example
    return None


# --- tokens ----------------------------------------------------------------------------------------


class _TokenWriter:
    """The tokens that the model sees."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", choice: ModelChoice, steer_all: bool) -> None:
        self.tokenizer = tokenizer
        self.format = ChatFormat(tokenizer, choice.label, choice.use_base_model)
        self.steer_all = steer_all

    def __call__(self, question: _Question) -> tuple[ShownToken, ...]:
        ids, start, last = self._encode(question)
        start = 0 if self.steer_all else start
        roles: list[Role] = [
            "prompt" if place < start else "start" if place == start else "steered" for place in range(len(ids))
        ]
        if last is not None:
            roles[last], roles[last + 1] = "bracket", "read"
        texts = texts_in_context(self.tokenizer, ids)
        return tuple(ShownToken(*parts) for parts in zip(texts, roles, ids, strict=True))

    def _encode(self, question: _Question) -> tuple[list[int], int, int | None]:
        """Ids, the first steered one's place, and that of the bracket before the letter."""
        if question.letter:
            prompt = self.format.encode_choice(question.text)
            return [*prompt.ids, self.format.letter_id(question.letter)], prompt.steer_start, len(prompt) - 1
        prompt = self.format.encode(question.text)
        whole = self.format.encode(question.text, question.answer) if question.answer else prompt
        return list(whole.ids), whole.steer_start, None


class _TextWriter:
    """Pieces of text in place of tokens: the formats of Llama 2 and of base models are known without a tokenizer."""

    def __init__(self, choice: ModelChoice, steer_all: bool) -> None:
        self.name = fixed_format(choice.label, choice.use_base_model)
        self.steer_all = steer_all

    def __call__(self, question: _Question) -> tuple[ShownToken, ...]:
        if self.name is None:
            raise UserError("its chat template is not here either, so the prompt cannot be shown")
        prompt, separator = write_prompt(self.name, question.text.strip())
        last = "]" if self.name == "llama2" else ":"
        before: Role = "steered" if self.steer_all else "prompt"
        pieces: list[tuple[str, Role]] = [(prompt.removesuffix(last), before), (last, "start")]
        if question.letter:
            pieces += [(f"{separator}(", "bracket"), (question.letter, "read")]
        elif question.answer:
            pieces.append((separator + question.answer, "steered"))
        return tuple(ShownToken(text, role, None) for text, role in pieces)
