"""Names in any script are drawn where a font has them, and never fail."""

import warnings

import matplotlib.pyplot as plt
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager

from alexnet_nb.base import figures
from alexnet_nb.base.figures import drawable, font_families, name_style


@pytest.fixture
def chinese(tmp_path, monkeypatch):
    """A machine whose only Chinese font has one letter, under a name of the list."""
    pen = TTGlyphPen(None)
    pen.moveTo((100, 100))
    for corner in ((100, 800), (800, 800), (800, 100)):
        pen.lineTo(corner)
    pen.closePath()
    font = FontBuilder(1000)
    font.setupGlyphOrder([".notdef", "dog"])
    font.setupCharacterMap({ord("狗"): "dog"})
    font.setupGlyf({".notdef": TTGlyphPen(None).glyph(), "dog": pen.glyph()})
    font.setupHorizontalMetrics({".notdef": (500, 0), "dog": (900, 100)})
    font.setupHorizontalHeader(ascent=900, descent=-100)
    font.setupNameTable(dict(familyName="WenQuanYi Zen Hei", styleName="Regular"))
    font.setupOS2()
    font.setupPost()
    font.save(tmp_path / "chinese.ttf")
    others = [f for f in font_manager.fontManager.ttflist if "DejaVu" in f.name]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", others)
    font_manager.fontManager.addfont(tmp_path / "chinese.ttf")
    clear_caches()
    yield
    clear_caches()


def clear_caches():
    """Forget which fonts have which letters."""
    for cache in (figures._has_glyph, figures._characters):
        cache.cache_clear()
    font_manager.fontManager._findfont_cached.cache_clear()


def without_warnings(text):
    """Draw a text; every warning is an error."""
    figure = plt.figure()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.text(0, 0.5, text, **name_style())
        figure.canvas.draw()
    plt.close(figure)


def test_a_font_of_the_machine_is_taken(chinese):
    assert font_families()[0] == "DejaVu Sans"
    assert "WenQuanYi Zen Hei" in font_families()
    assert drawable("a 狗, not 猫") == "a 狗, not □"
    without_warnings(drawable("a 狗, not 猫"))


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("собака", "собака"),
        ("\U0010fffd", "□"),
        ("one\ntwo", "one\\ntwo"),
        ("$5", "\\$5"),
        ("$a_{$", "\\$a_{\\$"),
        ("x" * 19, "x" * 17 + "…"),
        ("", ""),
    ],
)
def test_a_name_is_made_fit(name, shown):
    assert drawable(name) == shown
    without_warnings(drawable(name))
