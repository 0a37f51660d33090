"""Does a vector that was made under one system prompt steer under another? Three by three: none, for, against.

After Tan et al. (2024, arXiv 2407.12404), who test steering vectors out of the persona that they were made under.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from utils.data.records import TextPair
from utils.errors import UserError
from utils.research.benchmark_material import Material, PairStore
from utils.research.benchmark_measures import Subject, preferences
from utils.research.benchmark_methods import METHODS, Framing
from utils.research.benchmark_request import PROMPTS

if TYPE_CHECKING:
    from utils.research.benchmark_choice import AmountChooser


def transfer(
    store: PairStore, chooser: "AmountChooser", answer: Mapping[str, Any], items: Sequence[TextPair]
) -> dict[str, Any]:
    """Effects of the answer vector made and tested under each system prompt, at the answer's layer and amount.

    Args:
        store: The behavior's pairs.
        chooser: Of the amounts.
        answer: The unit of the method `answer`.
        items: The test items.

    Returns:
        Of each pair of prompts, made and tested under, the effects on the items, [3, 3, n_items].

    Raises:
        UserError: If there is no such unit, or the behavior has no system prompts.
    """
    if "layer" not in answer:
        raise UserError("the method answer was not run, whose layer and amount it takes; add it to --methods")
    layer, amount = answer["layer"], answer["amount"]
    subjects = []
    for tested in PROMPTS:
        framing = Framing(store.known.system_prompt(tested))
        for made in PROMPTS:
            vectors: Any = METHODS["answer"].make(Material(store, range(len(store.texts)), made))
            steering = chooser.steering_of(vectors, "add")
            subjects += [Subject(chooser.model, steering(layer, sign * amount), framing) for sign in (1, -1)]
    found = preferences(subjects, items, chooser.request.batch_size)
    effects = (found[0::2] - found[1::2]).reshape(len(PROMPTS), len(PROMPTS), len(items))
    return {"layer": layer, "amount": amount, "effects": effects.swapaxes(0, 1).tolist()}
