"""The look of all figures: readable names, the same bytes, two kinds of files."""

import io
import xml.etree.ElementTree

import matplotlib
import pytest
from PIL import Image

from fastdrpl.figures import style
from fastdrpl.figures.output import to_csv


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("cat", "cat"),
        ("Bär → Ω", "Bär → Ω"),
        ("$x$^2", r"\$x\$^2"),
        ("two\nlines\t", r"two\nlines\t"),
        ("\udcff", r"\xff"),
        ("\U000e0001", r"\U000e0001"),
    ],
)
def test_a_name_is_legible(name, shown):
    assert style.legible(name) == shown


def test_a_long_name_is_cut():
    assert style.legible("abcdefgh", 5) == "abcd…"
    assert style.legible("abcde", 5) == "abcde"


def test_what_no_font_has_is_escaped_and_said_once(capsys):
    name = "\U0001f9ff amulet"  # an emoji: the fonts of figures have none of this block
    assert style.legible(name) == style.legible(name) == r"\U0001f9ff amulet"
    assert capsys.readouterr().err.count("no font here") == 1


def paint(figure):
    panel = figure.subplots()
    panel.plot([0, 1], [1, 0], label=style.in_legend("_$a$"))
    panel.set_title(style.legible("$\\frac{"))
    panel.legend()


def test_the_same_figure_is_the_same_file_whatever_is_set(recwarn):
    first = style.render("name", (3, 2), paint)
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "black", "svg.fonttype": "none"}):
        assert style.render("name", (3, 2), paint) == first
        assert matplotlib.rcParams["font.size"] == 30
    assert sorted(first) == ["name.png", "name.svg"]
    with Image.open(io.BytesIO(first["name.png"])) as image:
        assert image.size == (3 * style.DOTS, 2 * style.DOTS)
        assert image.convert("RGB").getpixel((1, 1)) == (255, 255, 255)
    assert xml.etree.ElementTree.fromstring(first["name.svg"]).tag.endswith("svg")
    assert not recwarn.list


def test_numbers_and_texts_of_a_csv():
    made = to_csv(("a", "b"), [(1, 0.1 + 0.2), (None, 'x,"y"'), ("\udcff", 1e-9)])
    assert made.decode() == 'a,b\n1,0.3\n,"x,""y"""\n\\xff,1e-09\n'
