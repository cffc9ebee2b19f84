"""Writes the repository's address into the notebooks: badges of Colab, and what they install.

    python notebooks/address.py OWNER/REPOSITORY [BRANCH]

Until it has run, a badge opens Colab's list of GitHub notebooks, where the owner is typed in.
"""

import json
import pathlib
import re
import sys

COLAB = "https://colab.research.google.com/github/"


def with_address(cell: str, repository: str, branch: str, name: str) -> str:
    """Returns a cell's source with the address; other cells are not changed.

    Args:
      cell: its source.
      repository: OWNER/REPOSITORY on GitHub; "": none.
      branch: the branch that Colab opens and that is installed.
      name: file of the notebook.
    """
    badge = f"{COLAB}{repository}/blob/{branch}/notebooks/{name}" if repository else COLAB
    package = f"git+https://github.com/{repository}@{branch}" if repository else ""
    cell = re.sub(rf"\({COLAB}[^)]*\)", f"({badge})", cell)
    return re.sub(r'^PACKAGE = "[^"]*"', f'PACKAGE = "{package}"', cell, flags=re.MULTILINE)


def main(repository: str, branch: str = "main") -> None:
    for path in pathlib.Path(__file__).parent.glob("*.ipynb"):
        notebook = json.loads(path.read_text(encoding="utf-8"))
        for cell in notebook["cells"]:
            text = with_address("".join(cell["source"]), repository, branch, path.name)
            cell["source"] = text.splitlines(keepends=True)
        text = json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    if not 2 <= len(sys.argv) <= 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
