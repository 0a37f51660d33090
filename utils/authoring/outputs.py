"""Where the last steps write, and what that was made of. Light: nothing heavy is imported here."""

from pathlib import Path

from utils.authoring.request import AuthoringRequest
from utils.authoring.vectors import choice_request
from utils.files.provenance import read_provenance
from utils.files.reading import sha256_of


def measures_path(request: AuthoringRequest) -> Path:
    """The free answers with what was measured of them."""
    return request.paths.analysis(request.behavior, f"demo_{request.choice.label}.json")


def page_path(request: AuthoringRequest) -> Path:
    return request.paths.analysis(request.behavior, f"behavior_{request.choice.label}.html")


def page_facts(request: AuthoringRequest) -> dict[str, str]:
    """What the page is made of, but for what is missing."""
    paths, behavior = request.paths, request.behavior
    sources = {
        "demo": measures_path(request),
        "choice": choice_request(request).output(behavior),
        "behavior": paths.behavior_file(behavior),
        "written": paths.written(behavior),
        "generate": paths.generate_text_dataset(behavior),
    }
    return {f"{name}_sha256": sha256_of(path) for name, path in sources.items() if path.exists()}


def is_page_current(request: AuthoringRequest) -> bool:
    """Whether the page is there and was made of what is there now."""
    path = page_path(request)
    return path.exists() and page_facts(request).items() <= (read_provenance(path) or {}).items()
