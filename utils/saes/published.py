"""The repair that the published checkpoints of "SAEs are highly dataset dependent" need.

They were trained with normalised input; folding the factor back into the weights left b_dec out (an error of the
sae-lens of that time). The published scripts mend that after loading, and then fold the norms of the decoder rows.
"""

from pathlib import Path

from utils.errors import UserError
from utils.saes import formats
from utils.saes.dictionary import SAE
from utils.saes.published_sources import PUBLISHED, WANDB_ENTITY


def repaired(folder: Path, which: str) -> SAE:
    """Read a published checkpoint as it was uploaded, and mend it.

    b_dec is divided by the factor, then every decoder row is brought to norm 1.

    Raises:
        UserError: If the folder does not hold a standard SAE of the published place in the model.
    """
    published = PUBLISHED[which]
    config = formats.read_config(folder)
    weights = formats.read_weights(folder)
    if config["architecture"] != "standard" or config["apply_b_dec_to_input"]:
        raise UserError(
            f"{folder / formats.CONFIG_NAME}: not the published checkpoint {published.artifact}, which is a standard "
            f"SAE that does not subtract b_dec from its input; fetch it from {published.url}"
        )
    if config["normalize_activations"] == "none":
        raise UserError(
            f"{folder / formats.CONFIG_NAME}: normalize_activations is none, so this checkpoint is mended already; "
            f"fetch the one at {published.url}"
        )
    if "b_dec" in weights:
        weights["b_dec"] = weights["b_dec"] / published.factor
    stored = formats.interpret(config, weights, folder)
    own = {"published_as": f"{WANDB_ENTITY}/{published.project}/{published.artifact}", "factor": published.factor}
    mended = formats.StoredSAE(
        formats.fold_decoder_norms(stored.weights),
        *(stored.architecture, stored.k, stored.layer, published.model, published.source, own),
    )
    return SAE.from_stored(mended, which)
