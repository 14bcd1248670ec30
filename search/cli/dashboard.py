"""The command `heterosis dashboard`: a study in optuna-dashboard."""

from __future__ import annotations

from typing import Annotated

import typer

from .common import StudyArgument, quieten_libraries


def dashboard(
    study: StudyArgument,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8080,
) -> None:
    """Open a study in optuna-dashboard, even while its search runs (extra `dashboard`).

    Serves a copy of the journal with a note on every trial; the study is only read.
    """
    quieten_libraries()
    try:
        from optuna_dashboard import run_server
    except ImportError:
        raise ValueError(
            "`heterosis dashboard` needs optuna-dashboard: pip install 'heterosis[dashboard]'"
        ) from None
    from ..report.dashboard import mirrored

    with mirrored(study) as mirror:
        typer.echo(f"{study} is at http://{host}:{port}/dashboard/ (Ctrl-C ends)")
        run_server(mirror.storage, host=host, port=port)
