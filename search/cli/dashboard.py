"""The command `heterosis dashboard`: a study in optuna-dashboard."""

from __future__ import annotations

from typing import Annotated

import typer

from .common import StudyArgument, console, quieten_libraries, say


def dashboard(
    study: StudyArgument,
    host: Annotated[str, typer.Option("--host", help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="Port.")] = 8080,
) -> None:
    """Open a study in optuna-dashboard, also while its search runs (pip: heterosis[dashboard]).

    A copy of the journal is served, with a note on every trial; the study itself is only read.
    """
    quieten_libraries()
    try:
        from optuna_dashboard import run_server
    except ImportError:
        raise ValueError(
            "`heterosis dashboard` needs optuna-dashboard: pip install 'heterosis[dashboard]'"
        ) from None
    from ..report.dashboard import mirrored

    screen = console()
    with mirrored(study) as mirror:
        say(screen, f"{study} is at http://{host}:{port}/dashboard/ (Ctrl-C ends)")
        run_server(mirror.storage, host=host, port=port)
