"""Keep transformers' progress bars and load reports out of the way while we load, and restore them afterwards."""

from __future__ import annotations

import logging as python_logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence transformers (and accelerate, which it loads with) in the block: errors only, no bars, no warnings.

    What matters of its load report (missing and unexpected weights) is checked by the caller from the returned
    information, and raised.
    """
    from transformers.utils import logging

    level = logging.get_verbosity()
    bars = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    placing = python_logging.getLogger(
        "accelerate.big_modeling"
    )  # tells of layers that were placed elsewhere
    placing_level = placing.level
    placing.setLevel(python_logging.ERROR)
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        placing.setLevel(placing_level)
        if bars:
            logging.enable_progress_bar()
