"""What the site needs beyond the pages in this folder; mkdocs calls these functions."""

import pathlib
import re

from mkdocs.structure.files import File

ROOT = pathlib.Path(__file__).parent.parent
PAGES = {"CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}


def on_files(files, config):
    """Puts a copy of each page beside the others; its links are then relative to them."""
    for name, page in PAGES.items():
        text = (ROOT / name).read_text(encoding="utf-8").replace("](docs/", "](")
        for other, there in PAGES.items():
            text = text.replace(f"]({other})", f"]({there})")
        files.append(File.generated(config, page, content=text))
    return files


def on_page_content(html, **_):
    """Keeps the words of commands in a sentence whole: browsers break lines after any hyphen."""

    def whole(code):
        words = re.split(r"( +)", code[1])
        return "".join(f'<span class="whole">{w}</span>' if "-" in w else w for w in words)

    return re.sub(r"(?<!</span>)(?<=<code>)([^<]*-[^<]*)(?=</code>)", whole, html)
