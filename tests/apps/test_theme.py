"""Every pair of colours that meets on the page has AA contrast in both modes; nothing comes from elsewhere."""

from __future__ import annotations

import re

import pytest

from apps import theme

TEXT_PAIRS = [
    ("ink", "ground"), ("ink", "surface"), ("ink", "sunken"), ("soft", "ground"), ("soft", "surface"), ("soft", "sunken"),
    ("on-main", "main"), ("main-ink", "main-soft"), ("main-ink", "surface"), ("on-stop", "stop"),
    ("danger-ink", "danger-soft"), ("doubt-ink", "doubt-soft"), ("good-ink", "good-soft"),
]  # fmt: skip
EDGE_PAIRS = [("edge", "surface"), ("edge", "sunken"), ("focus", "surface"), ("focus", "ground"), ("main", "surface")]


def luminance(colour: str) -> float:
    """WCAG 2.2 relative luminance."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    """WCAG 2.2 contrast ratio."""
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_the_formula_gives_the_published_values() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21.0)
    assert contrast("#767676", "#ffffff") == pytest.approx(4.54, abs=0.01)


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_text_has_a_contrast_of_at_least_four_and_a_half(mode: str) -> None:
    colours = theme.tokens()[mode]
    found = {pair: contrast(colours[pair[0]], colours[pair[1]]) for pair in TEXT_PAIRS}
    assert {pair: round(value, 2) for pair, value in found.items() if value < 4.5} == {}


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_edges_and_focus_have_a_contrast_of_at_least_three(mode: str) -> None:
    colours = theme.tokens()[mode]
    found = {pair: contrast(colours[pair[0]], colours[pair[1]]) for pair in EDGE_PAIRS}
    assert {pair: round(value, 2) for pair, value in found.items() if value < 3.0} == {}


def test_both_modes_name_the_same_colours() -> None:
    modes = theme.tokens()
    assert modes["light"].keys() == modes["dark"].keys() and len(modes["light"]) > 20
    with pytest.raises(ValueError, match="lacks"):
        theme.tokens("body {}")


def test_style_and_scripts_name_no_address_and_scripts_write_no_markup() -> None:
    everything = theme.css() + theme.head()
    assert re.findall(r"https?://(?!www\.w3\.org)", everything) == []
    assert (
        "innerHTML" not in theme.head()
        and "localStorage" not in theme.head()
        and "insertAdjacentHTML" not in theme.head()
    )


def test_the_words_cannot_end_the_script_element_early() -> None:
    assert theme.head().lower().count("</script") == 1


def test_the_theme_asks_for_no_font_from_elsewhere() -> None:
    made = theme.theme()
    assert made._font_css == [] and not made._stylesheets


def test_markup_that_gradio_would_run_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for bad in ("a `b`", "${x}", "{{x}}", "a\\b"):
        monkeypatch.setattr(theme, "read", lambda name, bad=bad: bad)
        with pytest.raises(ValueError, match="Gradio would run"):
            theme.markup("x.html")
