"""Runs side by side: what each spent, what it bought, how much a participant sends, and how long it was.

One drawing (epsilon spent of each run's budget) with its table and one sentence that states the same numbers. How many
seconds a round took is not compared: a private run does not write it, since it would tell how many took part.
"""

from __future__ import annotations

from html import escape

from apps.dashboard_page import accounts, badge, card, eps, outcome, paragraph, summary, table
from apps.dashboard_view import Opened, View
from apps.i18n import say
from privacy.report.charts import bar

MOST_METRICS = 3


def compare(view: View, language: str) -> str:
    """The comparison of several runs, and what each data set and each participant has left."""
    titles = list(dict.fromkeys(metric.title for one in view.opened for metric in one.quality))[:MOST_METRICS]
    largest = max((max(one.budget, one.spent or 0.0) for one in view.opened), default=1.0)
    rows = "".join(_row(one, titles, largest, language) for one in view.opened)
    head = (
        say("privacy.run", language),
        say("privacy.verdict", language),
        say("privacy.spent_of", language),
        "",
        "δ",
        *titles,
        say("privacy.sent", language),
        say("privacy.steps", language),
    )
    body = (
        paragraph(summary(view, language))
        + paragraph(_extremes(view, language))
        + table(head, rows, say("privacy.compare", language))
        + f'<p class="hint">{escape(say("privacy.no_time", language))}</p>'
    )
    if view.more:
        body += paragraph(say("privacy.more", language, count=view.more))
    return card("compare", say("privacy.compare", language), body) + card(
        "accounts", say("privacy.accounts", language), accounts(view, language)
    )


def _row(one: Opened, titles: list[str], largest: float, language: str) -> str:
    values = {metric.title: metric.after for metric in one.quality}
    spent = "?" if one.spent is None else eps(one.spent)
    cells = [f"{one.report.claim.delta:.2g}"]
    cells += ["–" if values.get(title) is None else f"{values[title]:.3g}" for title in titles]
    cells += ["–" if one.sent is None else _bytes(one.sent), str(one.report.sampling.steps)]
    drawn = bar((one.spent or 0.0) / (largest or 1.0))
    return (
        f'<tr><th scope="row" dir="ltr">{escape(one.name)}</th><td>{badge(outcome(one), language)}</td>'
        f'<td class="n">{spent} / {eps(one.budget)}</td><td>{drawn}</td>'
        + "".join(f'<td class="n">{escape(cell)}</td>' for cell in cells)
        + "</tr>"
    )


def _extremes(view: View, language: str) -> str:
    """The sentence of the drawing: who spent least and who most, or that all spent the same."""
    known = sorted((one.spent, one.name) for one in view.opened if one.spent is not None)
    if not known:
        return say("privacy.budget_unknown", language)
    (low, least), (high, most) = known[0], known[-1]
    if eps(low) == eps(high):
        return say("privacy.alike", language, epsilon=eps(low))
    return say("privacy.extremes", language, least=least, low=eps(low), most=most, high=eps(high))


def _bytes(count: int) -> str:
    """A size for a person: 48 kB, 1.2 MB."""
    for unit, size in (("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} B"
