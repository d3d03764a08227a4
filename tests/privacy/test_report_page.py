"""The page for people: true words, self-contained, escaped, readable by ear, in print and in both colour schemes."""

from __future__ import annotations

import itertools
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from report_samples import make_run
from scipy.stats import norm

from privacy.report import Pricer, Report, check_report, read_report, write_report
from privacy.report.charts import ticks
from privacy.report.html import to_html
from privacy.report.models import Point
from privacy.report.words import in_a_hundred, meaning, upward

CSS = Path(__file__).parents[2] / "privacy" / "report" / "page.css"
VOID = {"meta", "link", "br", "hr", "img", "input", "line", "path", "circle", "rect"}


class Outline(HTMLParser):
    """Checks nesting while reading, and keeps what the tests ask about."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if dict(attrs).get("id"):
            self.ids.append(str(dict(attrs)["id"]))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    return check_report(make_run(tmp_path_factory.mktemp("page") / "run", Pricer()))


@pytest.fixture(scope="module")
def page(report: Report) -> str:
    return to_html(report)


def test_the_page_is_well_formed_and_has_landmarks_and_one_title(page: str) -> None:
    outline = Outline()
    outline.feed(page)
    outline.close()
    assert outline.open == []
    names = [tag for tag, _ in outline.tags]
    for landmark in ("header", "nav", "main", "footer"):
        assert names.count(landmark) == 1
    assert names.count("h1") == 1
    assert len(outline.ids) == len(set(outline.ids))
    assert dict(next(attrs for tag, attrs in outline.tags if tag == "html"))["lang"] == "en"
    for tag, attrs in outline.tags:
        if tag == "svg":
            assert attrs.get("role") == "img" or attrs.get("aria-hidden") == "true"
        if tag == "section" or attrs.get("role") == "img":
            for target in str(attrs["aria-labelledby"]).split():
                assert target in outline.ids
        if tag == "th":
            assert attrs.get("scope") in ("col", "row")
        if tag == "a":
            assert str(attrs["href"])[1:] in outline.ids


def test_headings_do_not_skip_a_level(page: str) -> None:
    levels = [int(level) for level in re.findall(r"<h([1-6])", page)]
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))


def test_the_page_loads_nothing_and_runs_nothing(page: str) -> None:
    assert "default-src 'none'" in page
    for word in ("<script", "<img", "<link", "<iframe", "@import", "url(", "javascript:", " onload", " onclick"):
        assert word not in page.lower()
    outside = set(re.findall(r"https?://[^\s\"'<]+", page))
    assert outside <= {"http://www.w3.org/2000/svg"}


def test_every_text_of_the_report_is_escaped(report: Report) -> None:
    attack = '"><script>alert(1)</script><b x="'
    data = report.to_json()
    for part, field in [("claim", "unit_definition"), ("claim", "released"), ("claim", "threat_model")]:
        data[part][field] = attack
    data["identity"]["name"] = attack
    data["identity"]["created"] = attack
    data["identity"]["software"] = {attack: attack}
    data["outside"][0]["statement"] = attack
    data["data"]["description"] = attack
    data["sampling"]["sampler"] = attack
    data["verification"][0]["accountant"] = attack
    html = to_html(check_report(data))
    assert "<script" not in html
    assert "<b x" not in html


def test_the_annex_is_never_shown(report: Report) -> None:
    data = report.to_json() | {"annex": {"clipped_fraction": 0.987654321}}
    assert "0.987654321" not in to_html(check_report(data))


def test_the_numbers_on_the_page_are_the_reports(report: Report, page: str) -> None:
    assert f"ε = {upward(report.claim.epsilon)}" in page
    for row in report.verification:
        assert f"{row.epsilon:.4f}" in page
    assert upward(report.claim.epsilon_without_amplification or 0) in page
    assert report.ledger.head in page
    for item in report.outside:
        assert item.statement in page


def gaussian_profile(mu: float) -> list[Point]:
    points = []
    for index in range(400):
        eps = index / 20
        delta = norm.cdf(mu / 2 - eps / mu) - math.exp(eps) * norm.cdf(-mu / 2 - eps / mu)
        points.append(Point(epsilon=eps, delta=float(min(1.0, max(0.0, delta)))))
    return points


@pytest.mark.parametrize("mu", [0.3, 1.0, 2.0])
def test_the_plain_words_are_the_true_limits_of_a_gaussian(mu: float) -> None:
    # Closed forms for one Gaussian: accuracy Phi(mu / 2), power Phi(Phi^-1(a) + mu). The words may not promise less.
    sense = meaning(9.0, 1e-9, gaussian_profile(mu))
    best = norm.cdf(mu / 2)
    assert best <= sense.best_guess <= best + 0.002
    for share, found in sense.recognised:
        true = norm.cdf(norm.ppf(share) + mu)
        assert true - 1e-12 <= found <= true * 1.05 + 1e-4


def test_without_a_profile_the_claim_alone_limits_everything() -> None:
    sense = meaning(1.0, 0.0, [])
    odds = math.e
    assert sense.best_guess == pytest.approx(odds / (1 + odds))
    assert dict(sense.posterior)[0.5] == pytest.approx(odds / (1 + odds))
    assert sense.odds_factor == pytest.approx(odds)
    assert meaning(5000.0, 0.1, []).best_guess <= 1


@pytest.mark.parametrize(
    ("share", "words"),
    [(0.5, "50 in 100"), (0.6001, "61 in 100"), (0.0241, "2.5 in 100"), (0.99991, "100 in 100"), (1.0, "100 in 100")],
)
def test_shares_are_rounded_against_the_promise(share: float, words: str) -> None:
    assert in_a_hundred(share) == words


@pytest.mark.parametrize(
    ("value", "words"), [(7.98341, "7.984"), (8.0, "8"), (0.54191, "0.542"), (123456.0, "1.235e+05"), (1e-5, "1e-05")]
)
def test_numbers_are_rounded_up(value: float, words: str) -> None:
    assert upward(value) == words


def relative_luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(first: str, second: str) -> float:
    high, low = sorted((relative_luminance(first), relative_luminance(second)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def schemes() -> list[dict[str, str]]:
    found = []
    for block in re.findall(r":root \{(.*?)\}", CSS.read_text(), re.DOTALL):
        colours = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{3,6})", block))
        found.append({k: v if len(v) == 7 else "#" + "".join(c * 2 for c in v[1:]) for k, v in colours.items()})
    return found


@pytest.mark.parametrize("scheme", [0, 1, 2], ids=["light", "dark", "print"])
def test_text_has_at_least_the_contrast_of_wcag_aa(scheme: int) -> None:
    colours = schemes()[scheme]
    for text in ("ink", "soft", "accent", "warn"):
        for ground in ("paper", "card"):
            assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
    assert contrast(colours["accent"], colours["accent-soft"]) >= 4.5
    assert contrast(colours["warn"], colours["warn-soft"]) >= 4.5


def test_ticks_are_round_and_within() -> None:
    assert ticks(0, 8.6) == [0, 2, 4, 6, 8]
    assert ticks(0, 0.0013)[1] == pytest.approx(0.0005)
    assert ticks(3, 3) == [3]


def test_a_simulation_and_an_example_level_claim_say_so(report: Report) -> None:
    data = report.to_json()
    data["claim"]["simulation"] = True
    assert "rehearsal on made-up data" in to_html(check_report(data))
    data["claim"]["unit"] = "example"
    assert "A single photo is protected, not a person" in to_html(check_report(data))


def test_the_page_written_is_the_page_that_the_file_makes(tmp_path: Path) -> None:
    plain = make_run(tmp_path / "run", Pricer())
    plain["identity"]["software"] = {"torch": "2", "mmslm": "1"}  # canonical JSON sorts names, a program need not
    plain["mechanism"]["dtypes"] = {"update": "float32", "noise": "float64"}
    file, page = write_report(tmp_path, plain)
    assert page.read_text(encoding="utf-8") == to_html(check_report(read_report(file)))
