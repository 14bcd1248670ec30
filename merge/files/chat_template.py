"""Choose the chat template of a merged model by mergekit's `chat_template`.

Templates are text in a model's directory; nothing is rendered here.
"""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import MappingProxyType

from ..mergekit.parameters import MergekitError

__all__ = ["choose_template", "template_of"]
TEMPLATE_FILE = "chat_template.jinja"
_NAMED = MappingProxyType(
    {
        "chatml": "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
        "{{ message['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    }
)
"""Templates by name; ChatML is OpenAI's published format."""


def choose_template(asked: str, folders: Sequence[Path]) -> str | None:
    """Return the text of a chat template.

    Args:
        asked: `auto` (the most common one of the models, the first on a tie), a name, or Jinja
        text.
        folders: The models' directories, base first.

    Returns:
        None if `auto` finds no template.

    Raises:
        MergekitError: For any other text.
    """
    if asked == "auto":
        templates = [text for folder in folders if (text := template_of(folder))]
        return Counter(templates).most_common(1)[0][0] if templates else None
    if asked in _NAMED:
        return _NAMED[asked]
    if "{" not in asked:
        raise MergekitError(
            f"`chat_template` must be auto, {', '.join(_NAMED)} or the text of a Jinja template, "
            f"got {asked!r}; write out the text of that template"
        )
    return asked


def template_of(folder: Path) -> str | None:
    """Return the chat template of a model directory, or None."""
    if (folder / TEMPLATE_FILE).is_file():
        return (folder / TEMPLATE_FILE).read_text(encoding="utf-8")
    try:
        settings = json.loads((folder / "tokenizer_config.json").read_bytes())
    except (OSError, ValueError):
        return None
    template = settings.get("chat_template") if isinstance(settings, dict) else None
    if isinstance(template, list):  # several, each with a name
        named = {t.get("name"): t.get("template") for t in template if isinstance(t, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None
