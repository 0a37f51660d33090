"""The progress bar of long work."""

import sys
from typing import Any

from utils.model import processes


def progress(iterable: Any = None, **options: Any) -> Any:
    """A tqdm bar on stderr, silent when stderr is no terminal; of several processes only the main one shows it."""
    from tqdm import tqdm

    silent = not (sys.stderr.isatty() and processes.is_main())
    return tqdm(iterable, dynamic_ncols=True, disable=silent, **options)
