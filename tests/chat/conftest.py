"""A tiny model with vectors of all layers, as the fronts of the chat take them."""

from pathlib import Path

import pytest

from llama_wrapper import LlamaWrapper
from tests.models import D_MODEL, N_LAYERS, random_vector
from tests.roots import write_small_datasets, write_vector
from utils.chat.shelf import Shelf
from utils.model.checkpoints import choose_model
from utils.paths import DataPaths


@pytest.fixture(scope="session")
def chat_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Vectors of all layers for two behaviors. To be read only."""
    root = tmp_path_factory.mktemp("chat")
    for place, behavior in enumerate(("sycophancy", "refusal")):
        write_small_datasets(root, behavior)
        for layer in range(N_LAYERS):
            write_vector(root, behavior, layer, random_vector(10 * place + layer))
    return root


@pytest.fixture(scope="session")
def chat_model(tiny_checkpoint: Path) -> LlamaWrapper:
    return LlamaWrapper.load(tiny_checkpoint, "cpu")


@pytest.fixture
def shelf(chat_root: Path, tiny_checkpoint: Path, chat_model: LlamaWrapper) -> Shelf:
    shelf = Shelf(DataPaths(chat_root), choose_model("", str(tiny_checkpoint), False), N_LAYERS, D_MODEL)
    shelf.model = chat_model
    return shelf
