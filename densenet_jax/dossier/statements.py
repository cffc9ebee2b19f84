"""The items of reporting checklists, and people's answers to them in statements.toml."""

import functools
import pathlib
import textwrap
import tomllib
from typing import Any

from densenet_jax import atomic_files
from densenet_jax.report.run_files import ReportError
from densenet_jax.training.rundir import bounded_files

CHECKLIST = pathlib.Path(__file__).parent / "checklist.toml"
FILE = "statements.toml"
MAX_BYTES = 2**20
_HEAD = """\
# Questions about this model that only people can answer. Write answers between the quotes (three
# quotes on each side for several lines), and write the dossier again: they appear on its page.
"""


@functools.cache
def checklist() -> list[dict[str, str]]:
    """Returns {"key", "title", "refs", "section", and "ask" or "answer"} of each item."""
    return tomllib.loads(CHECKLIST.read_text(encoding="utf-8"))["item"]


def read(folder: pathlib.Path) -> dict[str, str]:
    """Returns the statements of a dossier by key of their item; writes the file to fill in first.

    Args:
      folder: of the dossier.

    Returns:
      {key: text}; "" for items that are not filled in.

    Raises:
      ReportError: the file is not TOML, or has something else than texts of known items.
    """
    keys, path = [item["key"] for item in checklist() if "ask" in item], folder / FILE
    try:
        with bounded_files.open_file(path) as file:
            text = file.read(MAX_BYTES + 1)
        if len(text) > MAX_BYTES:
            raise ValueError(f"it has more than {MAX_BYTES:,} bytes")
        found: dict[str, Any] = tomllib.loads(text.decode())
    except FileNotFoundError:
        atomic_files.write(path, _blank())
        found = {}
    except (OSError, ValueError, RecursionError) as e:
        raise ReportError(
            f"{path} cannot be read ({e}); correct it, or move it away for a new one."
        ) from None
    for key, value in found.items():
        if key not in keys or not isinstance(value, str):
            what = "is not a text in quotes" if key in keys else f"is not one of {', '.join(keys)}"
            raise ReportError(f"{path}: {key!r} {what}; correct it, or move the file away.")
    return {key: found.get(key, "").strip() for key in keys}


def _blank() -> str:
    """Returns the file to fill in."""
    parts = [_HEAD]
    for item in checklist():
        if "ask" in item:
            lines = textwrap.wrap(f"{item['title']}. {item['ask']} ({item['refs']})", 98)
            parts.append("".join(f"# {line}\n" for line in lines) + f'{item["key"]} = ""\n')
    return "\n".join(parts)
