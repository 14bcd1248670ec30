"""Keep other libraries' chatter off the person's screen while we call them. Knows logging only.

Levels are raised for the length of a ``with`` block and put back; an exception passes through, and
what these libraries log as an error is still shown, except under `silent`.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

_LOUD = (
    "lm_eval",
    "datasets",
    "transformers",
    "huggingface_hub",
    "evaluate",
    "httpx",
    "fsspec",
    "absl",
)


@contextmanager
def quiet() -> Iterator[None]:
    """Show only errors of lm-eval, datasets, transformers and friends, and no bars of datasets."""
    import datasets
    from datasets.utils.logging import disable_progress_bar, enable_progress_bar

    loggers = [logging.getLogger(name) for name in _LOUD]
    levels = [logger.level for logger in loggers]
    bars = datasets.utils.are_progress_bars_disabled()
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    disable_progress_bar()
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if not bars:
            enable_progress_bar()


@contextmanager
def silent(name: str) -> Iterator[None]:
    """Show nothing of one library, for a call whose exceptions say what its log would."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
