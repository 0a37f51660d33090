"""Parts of steering vectors as vector files, so that sweeps can steer with them: `--part rank2`."""

import logging
from collections.abc import Mapping
from dataclasses import replace

import torch

from utils.files.provenance import record_provenance
from utils.files.reading import load_vector
from utils.files.writing import save_tensor
from utils.research.decompose_request import DecomposeRequest
from utils.research.svd_components import FloatArray
from utils.vectors.files import normalize_command

log = logging.getLogger(__name__)


def write_parts(
    request: DecomposeRequest, behavior: str, layer: int, parts: Mapping[str, FloatArray], made: Mapping[str, object]
) -> int:
    """Write parts beside their vector, in `parts/`: as they are, and scaled to the whole normalised vector's norm.

    The first, in vectors/, add up to the vector; the second, in normalized_vectors/, are what the sweeps add, so that
    a multiplier adds the same norm whichever part it is of.

    Args:
        request: Whose vectors.
        behavior: The vector's.
        layer: The vector's.
        parts: By name; none of them zero.
        made: For the provenance record.

    Returns:
        How many parts were written.
    """
    whole = request.vector(behavior, layer, normalized=True)
    norms: list[tuple[bool, float | None]] = [(False, None)]
    if whole.is_file():
        norms.append((True, float(load_vector(whole).double().norm())))
    else:
        then = normalize_command(request.paths, [], request.choice, kind=request.kind)
        log.warning("%s not found, so parts were not scaled to it and no sweep finds them; run: %s", whole, then)
    for normalized, norm in norms:
        files = {
            request.paths.vector(
                behavior, layer, request.choice.label, normalized=normalized, kind=replace(request.kind, part=name)
            ): vector
            for name, vector in parts.items()
        }
        folder = next(iter(files)).parent
        scaled = {"scaled_to": "the norm of the whole normalised vector"} if normalized else {}
        record_provenance(folder, [path.name for path in files], {**made, **scaled})
        for path, vector in files.items():
            tensor = torch.from_numpy(vector)
            save_tensor(path, (tensor if norm is None else tensor * (norm / tensor.norm())).float())
        log.info("wrote %s: %d parts of layer %d: %s", folder, len(files), layer, ", ".join(parts))
    return len(parts)
