"""Chat templates: which one a merged model gets where mergekit's YAML asks for one.

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
    """The text of a chat template.

    Args:
        asked: `auto` (the commonest among the models, on a tie the first), a name, or Jinja text.
        folders: The models' directories, base first.

    Returns:
        None where `auto` finds no template.

    Raises:
        MergekitError: If it is neither.
    """
    if asked == "auto":
        found = [template for folder in folders if (template := template_of(folder))]
        return Counter(found).most_common(1)[0][0] if found else None
    if asked in _NAMED:
        return _NAMED[asked]
    if "{" not in asked:
        raise MergekitError(
            f"`chat_template` must be auto, {', '.join(_NAMED)} or the text of a Jinja template, "
            f"got {asked!r}; write out the text of that template"
        )
    return asked


def template_of(folder: Path) -> str | None:
    """The chat template of a model directory, or None."""
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
