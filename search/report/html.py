"""HTML from the templates, style and vendored scripts in ``pages``.

Knows no studies. Names that users chose and error messages are escaped: by the template in text,
by `embedded` in the data of a script.
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
    """Return a page from its template; every value that the template names must be given."""
    source = str(text(template)).replace("{# style #}", str(text("page.css")))
    return _environment().from_string(source).render(**values)


def embedded(data: Mapping[str, Any]) -> Markup:
    """Return JSON that cannot end the script element around it."""
    shown = json.dumps(data, allow_nan=False, ensure_ascii=True, separators=(",", ":"))
    for sign in "<>&":
        shown = shown.replace(sign, f"\\u{ord(sign):04x}")
    return Markup(shown)


def text(name: str) -> Markup:
    """Return one of the files in ``pages``."""
    files = resources.files("heterosis.search.report") / "pages"
    return Markup((files / name).read_text(encoding="utf-8"))


def script(name: str) -> Markup:
    """Return a vendored script, with the first lines of its licence."""
    return text(f"vendor/{name}")


def now() -> str:
    """Return the current time, as a page shows it."""
    return datetime.datetime.now().astimezone().isoformat(sep=" ", timespec="minutes")


@cache
def _environment() -> Environment:
    return Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
