"""Keep other libraries quiet: logs, progress bars and exceptions of many lines. Knows logging.

`quiet` and `log_level` restore what they change when their ``with`` block ends, also after an
exception. Errors that a library logs are still shown, unless the level is above ``logging.ERROR``.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

LIBRARIES = (
    "lm_eval",
    "datasets",
    "transformers",
    "huggingface_hub",
    "evaluate",
    "httpx",
    "fsspec",
    "absl",
    "filelock",
)
"""Libraries that log more than users need."""


def quieten() -> None:
    """Log only errors of `LIBRARIES` for the rest of the process."""
    for name in LIBRARIES:
        logging.getLogger(name).setLevel(logging.ERROR)


@contextmanager
def log_level(level: int, *names: str) -> Iterator[None]:
    """Set the log level of some libraries for a ``with`` block."""
    loggers = [logging.getLogger(name) for name in names]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(level)
    try:
        yield
    finally:
        for logger, old in zip(loggers, before, strict=True):
            logger.setLevel(old)


@contextmanager
def quiet() -> Iterator[None]:
    """Log only errors of `LIBRARIES`, and hide the progress bars of datasets."""
    import datasets
    from datasets.utils.logging import disable_progress_bar, enable_progress_bar

    has_bars = not datasets.utils.are_progress_bars_disabled()
    disable_progress_bar()
    try:
        with log_level(logging.ERROR, *LIBRARIES):
            yield
    finally:
        if has_bars:
            enable_progress_bar()


def one_line(error: BaseException) -> str:
    """Return the type and message of an exception on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
