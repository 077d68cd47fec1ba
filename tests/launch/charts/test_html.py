"""Whatever string reaches a page is inert there; tables, and templates, are whole."""

import re

import jinja2
from markupsafe import Markup
import pytest

from launch.charts import html
from tests.support.paths import ROOT

EVIL = "<b>&\"'</b>\x00\u202e"
INERT = "&lt;b&gt;&amp;&#34;&#39;&lt;/b&gt;\\u0000\\u202e"
TEMPLATES = [path for path in (ROOT / "launch").rglob("*") if path.suffix in (".html", ".css")]


@pytest.mark.parametrize("part", [html.faint, html.escape_text])
def test_plain_string_is_escaped_and_its_hidden_characters_spelt_out(part):
    assert INERT in part(EVIL)


def test_every_string_of_a_card_is_inert_unless_it_is_markup():
    card = html.Card(EVIL, EVIL, EVIL)
    drawn = html._part("card", card)
    assert drawn.count(INERT) == 3 and "<b>" not in drawn
    assert "<i>x</i>" in html._part("card", html.Card("", Markup("<i>x</i>")))


def test_figures_heads_and_texts_of_tables_and_tiles_are_inert():
    assert html.tiles([(EVIL, EVIL)]).count(INERT) == 2
    drawn = html.table([EVIL, "number"], [[(EVIL, "second"), 1.5], [None, None]])
    assert INERT in drawn and "<b>" not in drawn and "\x00" not in drawn
    cells = re.findall(r"<td( class=\"num\")?>(.*?)</td>", drawn)
    assert [right != "" for right, _ in cells] == [False, True, False, True]
    assert [cell for _, cell in cells][1:] == ["1.50", "–", "–"]
    assert cells[0][1].count("<bdi>") == 2 and "<br>" in cells[0][1]


def test_text_that_is_too_long_ends_in_an_ellipsis():
    assert html.text_html("abcdef", 4) == "<bdi>abc…</bdi>"
    assert html.text_html("abcd", 4) == "<bdi>abcd</bdi>"


def test_template_without_a_value_that_it_writes_is_an_error():
    with pytest.raises(jinja2.UndefinedError, match="'letters' is undefined"):
        html.render("corpus_report/letters.html")


def test_templates_fetch_nothing_and_switch_no_escaping_off():
    assert {path.suffix for path in TEMPLATES} == {".html", ".css"}
    for path in TEMPLATES:
        text = path.read_text()
        assert not re.search(r"\bsafe\b|autoescape|<script|https?:|@import|\burl\(", text), path


def test_every_template_is_packaged_with_the_module_beside_it():
    (patterns,) = re.findall(r'package_data=\{"launch": (\[.*?\])', (ROOT / "setup.py").read_text())
    assert patterns == '["*/*.html", "*/*.css"]'
    assert {len(path.relative_to(ROOT / "launch").parts) for path in TEMPLATES} == {2}
