"""reply: a column is what a single run gives, multiplier 0 is no steering to the bit, and commands give it again."""

import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

import prompting_with_steering
from llama_wrapper import LlamaWrapper
from tests.models import ARCHITECTURES, D_MODEL, N_LAYERS, build_wrapper, count_hooks, random_vector
from tests.roots import put_json, results, write_vector
from utils.behaviors import load_behavior
from utils.chat.commands import Knobs, reproduce
from utils.chat.measures import measure
from utils.chat.replies import End, Probe, ReplySettings, Token, reply
from utils.chat.shelf import Ask, Shelf
from utils.errors import UserError
from utils.inside.readings import Transcript
from utils.model.chat_format import AnswerTokens, Message, PromptTokens
from utils.model.checkpoints import choose_model
from utils.model.side_effects import measure_kl
from utils.model.steering import Steering
from utils.paths import DataPaths

USER = [Message("user", "What is the sea?")]
LONG = [*USER, Message("assistant", "that is not the answer"), Message("user", "Do you agree?")]
VECTOR, OTHER = random_vector(1), random_vector(2)
N_NEW = 12


def answered(
    model: LlamaWrapper, settings: ReplySettings, history: list[Message] = USER
) -> tuple[dict[int, End], dict[int, list[Token]]]:
    ends, tokens = {}, {}
    for event in reply(model, history, settings):
        if isinstance(event, End):
            ends[event.column] = event
        else:
            tokens.setdefault(event.column, []).append(event)
    return ends, tokens


def settings(*columns: tuple[Steering, ...], **changes: object) -> ReplySettings:
    return ReplySettings(tuple(columns), Probe(1, VECTOR), **{"max_new_tokens": N_NEW, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_multiplier_0_is_bit_equal_to_no_steering(chat_model: LlamaWrapper, temperature: float) -> None:
    zero = answered(chat_model, settings((Steering(1, 0.0, VECTOR),), temperature=temperature))
    none = answered(chat_model, settings((), temperature=temperature))
    assert zero == none, "projections too"
    both = answered(chat_model, settings((), (Steering(1, 0.0, VECTOR),), temperature=temperature))
    assert (
        [t.projection for t in both[1][0]] == [t.projection for t in both[1][1]] == [t.projection for t in none[1][0]]
    )


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_column_of_a_strip_is_what_a_single_run_gives(architecture: str) -> None:
    model, history = build_wrapper(architecture), LONG
    columns = [(Steering(2, m, VECTOR), Steering(0, 1.0, OTHER)) for m in (-2.0, -1.0, 1.0, 2.0)]
    ends, tokens = answered(model, settings((), *columns), history)
    assert len({end.token_ids for end in ends.values()}) > 1, "the steerings change what is said"
    for index, column in enumerate([(), *columns]):
        alone, alone_tokens = answered(model, settings(column), history)
        assert alone[0].token_ids == ends[index].token_ids
        assert alone[0].text == ends[index].text
        one, other = ([t.projection for t in found] for found in (alone_tokens[0], tokens[index]))
        assert one == pytest.approx(other, abs=1e-5)
    assert count_hooks(model.model) == 0


def test_a_projection_is_the_cosine_where_the_token_goes_in_as_steered(chat_model: LlamaWrapper) -> None:
    steering = Steering(1, 2.0, VECTOR)
    prompt = chat_model.chat_format.encode_conversation(USER)
    ends, tokens = answered(chat_model, settings((steering,)))
    ids = [token.token_id for token in tokens[0]]
    whole = PromptTokens((*prompt.ids, *ids), prompt.steer_start)
    expected = chat_model.token_projections(Transcript(whole, len(prompt), ()), 1, VECTOR, steering).cosines
    assert [t.projection for t in tokens[0]] == pytest.approx(expected[len(prompt) :].tolist(), abs=1e-5)
    assert ("".join(token.text for token in tokens[0]) + ends[0].rest).strip() == ends[0].text


def test_a_conversation_of_one_message_is_the_prompt_of_every_other_script() -> None:
    for label, base in (("tiny-chat", False), ("Llama-2-tiny", False), ("tiny", True)):
        chat_format = build_wrapper(label=label, use_base_model=base).chat_format
        assert chat_format.encode_conversation(USER) == chat_format.encode(USER[0].content)
        whole = chat_format.tokenizer.decode(chat_format.encode_conversation(LONG).ids)
        assert [whole.count(message.content) for message in LONG] == [1, 1, 1]
        assert whole.index(LONG[1].content) < whole.index(LONG[2].content)
    with pytest.raises(UserError, match="takes turns"):
        chat_format.encode_conversation(LONG[1:])


def test_llama_2_conversations_are_written_as_it_was_trained() -> None:
    chat_format = build_wrapper(label="Llama-2-tiny").chat_format
    tokens = chat_format.encode_conversation(LONG)
    text = chat_format.tokenizer.decode(tokens.ids)
    assert text == "<s>[INST] What is the sea? [/INST] that is not the answer </s><s>[INST] Do you agree? [/INST]"
    assert chat_format.tokenizer.decode(tokens.ids[tokens.steer_start :]) == "]"


def test_a_conversation_that_fills_the_context_ends_with_one_line(chat_model: LlamaWrapper) -> None:
    long = [Message("user", "owl " * 118)]  # 480 of 512 tokens
    n_prompt = len(chat_model.chat_format.encode_conversation(long))
    ends, tokens = answered(chat_model, settings((), max_new_tokens=100), long)
    assert ends[0].reason == "context"
    assert n_prompt + len(tokens[0]) == 512
    with pytest.raises(UserError, match="no room for an answer") as caught:
        answered(chat_model, settings(()), [Message("user", "owl " * 130)])
    assert "\n" not in str(caught.value)


def test_kl_is_that_of_choosing_and_a_loop_falls_apart(chat_model: LlamaWrapper) -> None:
    steering = Steering(1, 2.0, VECTOR)
    columns = ((), (steering,), (Steering(1, 0.0, VECTOR),))
    prompt = chat_model.chat_format.encode_conversation(USER)
    ends, _ = answered(chat_model, settings(*columns))
    base, steered, zero = measure(chat_model, prompt, columns, ends)
    answer = AnswerTokens((*prompt.ids, *ends[0].token_ids), prompt.steer_start, len(ends[0].token_ids))
    expected = measure_kl(chat_model, [answer], [steering]).kl.double().mean()
    assert steered.kl == pytest.approx(float(expected), rel=1e-4)
    assert (base.kl, zero.kl, base.faults, zero.faults) == (0.0, 0.0, (), ())
    looped = {0: End(0, "length", "one two three four five six", ends[0].token_ids)}
    looped[1] = End(1, "length", "I am so glad. " * 6, ends[1].token_ids)
    assert "distinct-2" in measure(chat_model, prompt, columns, looped)[1].faults


@pytest.mark.parametrize(
    ("asks", "temperature", "system"),
    [
        ((Ask("sycophancy", 2, 1.5),), 0.0, None),
        ((Ask("refusal", 1, -2.0),), 0.9, "pos"),
        ((), 0.7, None),
    ],
)
def test_reply_is_what_the_printed_command_gives_at_the_same_seed(
    shelf: Shelf,
    chat_model: LlamaWrapper,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    asks: tuple[Ask, ...],
    temperature: float,
    system: str | None,
) -> None:
    prompts = load_behavior(shelf.paths, "refusal").system_prompt("pos") if system else None
    knobs = Knobs(asks, prompts, temperature, seed=7, max_new_tokens=N_NEW)
    command = reproduce(shelf, USER, knobs)
    write, run = command.split(" && ")
    monkeypatch.chdir(tmp_path)
    subprocess.run(write, shell=True, check=True)  # noqa: S602
    argv = shlex.split(run)[1:]
    argv[argv.index("--root") + 1] = str(shutil.copytree(shelf.paths.root, tmp_path / "root"))
    assert prompting_with_steering.main(argv) == 0
    ((record,),) = results(tmp_path / "root").values()
    columns = tuple(shelf.steering(ask) for ask in asks)
    ends, _ = answered(chat_model, ReplySettings((columns,), None, prompts, temperature, 7, N_NEW))
    assert record["model_output"] == ends[0].text


def test_what_no_command_gives_again_is_said_in_a_line(shelf: Shelf) -> None:
    asks = (Ask("sycophancy", 2, 1.5), Ask("refusal", 1, 1.0))
    for history, knobs, why in (
        (LONG, Knobs(asks[:1]), "earlier turns"),
        (USER, Knobs(asks), "one layer, one multiplier"),
        (USER, Knobs(asks[:1], "Be a pirate."), "--system_prompt"),
    ):
        assert reproduce(shelf, history, knobs).startswith("# no command: ")
        assert why in reproduce(shelf, history, knobs)


def test_the_chosen_layer_and_multiplier_are_the_default_and_answer_vectors_come_before_letters(
    tmp_path: Path,
) -> None:
    for layer in (0, 2):
        write_vector(tmp_path, "refusal", layer, random_vector(layer))
    torch.save(random_vector(9), tmp_path / "normalized_vectors/refusal/vec_layer_3_tiny-chat_read=answer.pt")
    shelf = Shelf(DataPaths(tmp_path), choose_model("", "tiny-chat", False), N_LAYERS, D_MODEL)
    assert shelf.entry("refusal").kind.reading == "answer"
    assert shelf.ask("refusal") == Ask("refusal", 3, 1.0)
    one = {"layer": 2, "strength": 0.2, "kl_95": 0.5, "effect": 1.0, "low": 0.5, "high": 1.5}
    test = {"n": 3, "effect": 1.0, "low": 0.5, "high": 1.5, "p_value": 0.01, "at_minus": -1.0, "at_plus": 1.0}
    content = {
        "behavior": "refusal",
        "layer": 2,
        "strength": 0.2,
        "multiplier": 2.34567,
        "n_validation": 4,
        "linear_up_to_strength": 0.1,
        "kl_budget": 1.0,
        "validation": [one],
        "test": {**test, "moved_right": 1.0},
        "controls": {},
    }
    put_json(tmp_path / "vectors/refusal/chosen_tiny-chat.json", content)
    assert shelf.ask("refusal") == Ask("refusal", 2, 2.35)
    with pytest.raises(UserError, match=r"layers 0,2, not of layer 1"):
        shelf.ask("refusal", 1)
