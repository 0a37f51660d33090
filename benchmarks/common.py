"""What the benchmarks share: models, questions, the machine's own rate, clocks, tables."""

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from llama_wrapper import LlamaWrapper
from utils.behaviors import published_behaviors
from utils.data.records import ChoiceItem, ContrastPair, load_choice_items, load_contrast_pairs
from utils.files.writing import write_json
from utils.model.checkpoints import choose_model
from utils.model.loading import pick_device
from utils.model.steering import Steering
from utils.paths import REPOSITORY, DataPaths
from utils.settings import ResultType

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# Llama 2 7B (Touvron et al. 2023, table 1 and the published configuration)
LLAMA_2_7B: dict[str, Any] = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
}


def make_parser(docstring: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=docstring, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=REPOSITORY, metavar="DIR", help="folder that holds datasets/")
    parser.add_argument("--model", metavar="PATH", help="checkpoint (default: the embedded 135M model)")
    parser.add_argument(
        "--random_weights", choices=["7b"], help="Llama 2 7B's architecture with random weights; needs a GPU"
    )
    parser.add_argument("--device", default="auto", help="cpu, cuda, ... (default: the best available)")
    parser.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], default="float32")
    parser.add_argument("--seed", type=int, default=0, help="of the random vectors (default: 0)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here too")
    return parser


def skip_without_gpu(args: argparse.Namespace) -> bool:
    """Whether the benchmark asked for needs a GPU that is not there; says so."""
    if args.random_weights and pick_device(args.device).type == "cpu":
        print(f"--random_weights {args.random_weights} needs a GPU and there is none here: skipped")
        return True
    return False


def load_model(args: argparse.Namespace) -> LlamaWrapper:
    if args.random_weights:
        return random_llama_7b(args)
    choice = choose_model("135m", args.model, False)
    return LlamaWrapper.load(choice, args.device, args.dtype)


def random_llama_7b(args: argparse.Namespace) -> LlamaWrapper:
    """Llama 2 7B's architecture with random weights and a tokenizer trained on the questions themselves."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(args.seed)
    with torch.device(pick_device(args.device)):
        model = AutoModelForCausalLM.from_config(LlamaConfig(**LLAMA_2_7B), dtype=getattr(torch, args.dtype))
    return LlamaWrapper(model, _trained_tokenizer(args.data), "Llama-2-7b-random-weights")


def _trained_tokenizer(data: Path) -> "PreTrainedTokenizerFast":
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    texts = [path.read_text(encoding="utf-8") for path in sorted((data / "datasets").rglob("*.json"))]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=8000, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet)
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def load_items(args: argparse.Namespace, behavior: str, result_type: ResultType, count: int) -> list[ChoiceItem]:
    return load_choice_items(DataPaths(args.data).test_dataset(behavior, result_type), result_type)[:count]


def load_pairs(args: argparse.Namespace, count: int) -> list[ContrastPair]:
    """`count` contrast pairs, over all behaviors, repeated where there are fewer."""
    paths = DataPaths(args.data)
    files = [paths.generate_dataset(behavior) for behavior in published_behaviors()]
    pairs = [pair for path in files if path.exists() for pair in load_contrast_pairs(path)]
    return (pairs * (count // len(pairs) + 1))[:count]


def random_steerings(model: LlamaWrapper, layers: Sequence[int], multipliers: Sequence[float], seed: int) -> list:
    """A steering for each layer and multiplier, with unit-norm random vectors; one None for all multipliers 0."""
    generator = torch.Generator().manual_seed(seed)
    steerings: list[Steering | None] = [None] if 0 in multipliers else []
    for layer in layers:
        vector = torch.nn.functional.normalize(torch.randn(model.d_model, generator=generator), dim=0)
        steerings += [Steering(layer, multiplier, vector.to(model.device)) for multiplier in multipliers if multiplier]
    return steerings


def seconds(work: Callable[[], Any], device: torch.device) -> float:
    """Wall-clock seconds of `work`, the device's queue included."""
    _wait(device)
    start = time.perf_counter()
    work()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a large square matrix product, median of 10 after 3 warm-ups."""
    size = 8192 if device.type == "cuda" else 2048
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    times = [seconds(lambda: left @ right, device) for _ in range(13)][3:]
    return 2 * size**3 / statistics.median(times)


def count_flops(work: Callable[[], Any]) -> int:
    """Floating-point operations of the matrix products and attention in `work`, counted by torch."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def peak_memory(device: torch.device) -> float:
    """Peak memory of this process so far, MiB: on the GPU where there is one, else resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    divisor = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / divisor


def memory_in_own_process(module: str, of: object, argv: Sequence[str] | None) -> float:
    """Peak memory in MiB that `python -m module ... --memory_of OF` prints last."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    command = [sys.executable, "-m", module, *arguments, "--memory_of", str(of)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def report(title: str, rows: Sequence[tuple[str, str]], figures: dict[str, Any], args: argparse.Namespace) -> None:
    """Print the table; write it as JSON where --json asks for it."""
    width = max(len(name) for name, _ in rows)
    print(f"\n{title}")
    for name, value in rows:
        print(f"  {name:<{width}}  {value}")
    if args.json:
        machine = {"platform": platform.platform(), "threads": torch.get_num_threads(), "torch": torch.__version__}
        if torch.cuda.is_available():
            machine["gpu"] = torch.cuda.get_device_name()
        write_json(args.json, {"title": title, "machine": machine, "figures": json.loads(json.dumps(figures))})
