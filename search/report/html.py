"""HTML from the templates, style and vendored scripts in ``pages``.

Knows no studies. What a person named (parents, tasks, the study) and what an error says is
escaped: by the template where it is text, by `embedded` where it is data of a script.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

PLOTS, TABLES = "plotly-cartesian.min.js", "dataTables.min.js"


def render(template: str, **values: Any) -> str:
    """A page from its template; every value that the template names must be given."""
    source = str(text(template)).replace("{# style #}", str(text("page.css")))
    return _environment().from_string(source).render(**values)


def embedded(data: Mapping[str, Any]) -> Markup:
    """JSON that cannot end the script element that it stands in."""
    shown = json.dumps(data, allow_nan=False, ensure_ascii=True, separators=(",", ":"))
    for sign in "<>&":
        shown = shown.replace(sign, f"\\u{ord(sign):04x}")
    return Markup(shown)


def text(name: str) -> Markup:
    """One of the files in ``pages``, as it is."""
    files = resources.files("heterosis.search.report") / "pages"
    return Markup((files / name).read_text(encoding="utf-8"))


def script(name: str) -> Markup:
    """A vendored script, with its licence's first lines as they are."""
    return text(f"vendor/{name}")


def now() -> str:
    """When a page is drawn, as a person reads it."""
    return datetime.datetime.now().astimezone().isoformat(sep=" ", timespec="minutes")


@cache
def _environment() -> Environment:
    return Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
