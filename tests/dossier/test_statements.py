"""statements.toml: written once, kept, and refused with its culprit."""

import pytest

from densenet_jax.dossier import statements
from densenet_jax.report import ReportError


def test_the_file_is_written_once_and_its_answers_are_read(tmp_path):
    blank = statements.read(tmp_path)
    assert set(blank.values()) == {""}
    path = tmp_path / statements.FILE
    text = path.read_text()
    for item in statements.checklist():
        assert ("ask" in item) == (f'{item["key"]} = ""' in text)
    path.write_text(text.replace('ethics = ""', 'ethics = """\nApproved.\nWaived."""'))
    assert statements.read(tmp_path) == blank | {"ethics": "Approved.\nWaived."}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('ethics = "a', "cannot be read"),
        ("ethics = 3", "'ethics' is not a text in quotes"),
        ('ethic = "yes"', "'ethic' is not one of summary"),
        ("a = " + "[" * 100_000, "cannot be read"),
        ("#" * (statements.MAX_BYTES + 1), "more than 1,048,576 bytes"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, text, message):
    (tmp_path / statements.FILE).write_text(text)
    with pytest.raises(ReportError, match=message) as raised:
        statements.read(tmp_path)
    assert statements.FILE in str(raised.value)
    assert (tmp_path / statements.FILE).read_text() == text


def test_every_item_has_a_place_on_the_page():
    template = (statements.CHECKLIST.parent / "page" / "dossier.html").read_text()
    included = {"model", "configuration"}
    for item in statements.checklist():
        assert f'id="{item["section"]}"' in template or item["section"] in included
        assert ("ask" in item) != ("answer" in item)
        if "ask" in item:
            assert f'statements("{item["section"]}")' in template
