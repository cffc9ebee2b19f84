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
    """Keeps the words of commands in a sentence whole: browsers break lines inside of them."""

    def whole(code):
        if not re.search(r"\W", code[1]):
            return code[0]
        return f"<code>{re.sub(r'[^ ]+', wrapped, code[1])}</code>"

    wrapped = r'<span class="whole">\g<0></span>'
    return re.sub(r"(?<!</span>)<code>([^<]+)</code>", whole, html)  # blocks have a span before
