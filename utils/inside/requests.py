"""What to look into. Light: nothing heavy is imported here."""

from dataclasses import dataclass

from utils.errors import UserError
from utils.figures.requests import InnerProduct
from utils.model.checkpoints import ModelChoice
from utils.paths import DataPaths
from utils.settings import VectorKind

DEFAULT_NEW_TOKENS = 100
DEFAULT_TEXTS = 8


@dataclass(frozen=True)
class TokenPageRequest:
    """A prompt and the model's answer, token by token along a vector.

    Raises:
        UserError: If the prompt is empty.
    """

    prompt: str
    layer: int
    """Shown first."""
    behavior: str
    """Shown first."""
    multiplier: float = 0.0
    """Of that layer's and behavior's vector, added while the model answers; 0 means no steering."""
    max_new_tokens: int = DEFAULT_NEW_TOKENS

    def __post_init__(self) -> None:
        if not self.prompt.strip():
            raise UserError("--prompt is empty; give the text of a question")


@dataclass(frozen=True)
class InsideRequest:
    """Reports for which the model itself is needed."""

    paths: DataPaths
    choice: ModelChoice | None
    """None: the one model that has vectors."""
    behaviors: tuple[str, ...]
    layers: tuple[int, ...] = ()
    """Empty: all that have vectors."""
    decode: bool = False
    """The tokens that each vector promotes most and least."""
    page: TokenPageRequest | None = None
    overwrite: bool = False
    kind: VectorKind = VectorKind()
    inner_product: InnerProduct = "euclidean"
    """Of a page's cosines."""
    n_texts: int = DEFAULT_TEXTS
    """That the J-lens is averaged over."""
    seed: int = 0
    """Of the random vectors beside it, and of resampling."""
