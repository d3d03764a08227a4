"""What the dashboard shows, as HTML: every drawing has its table and one sentence that states the same number.

Every text that comes out of a report is escaped; the page's own sentences are in the person's language, the report's
and the audit's in English, and marked so for screen readers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from apps.dashboard_view import Opened, Quality, Running, Spent, View
from apps.i18n import say
from privacy.audit import CHECKS
from privacy.report.charts import bar, hundred, line_chart
from privacy.report.words import in_a_hundred, meaning

OUTCOMES = ("fail", "flag", "pass")


def outcome(opened: Opened) -> str:
    """ "fail", "flag" or "pass": the gravest of the audit's verdicts."""
    if opened.audit is None or opened.audit.failed or opened.spent is None:
        return "fail"
    return "flag" if opened.audit.flagged else "pass"


def summary(view: View, language: str) -> str:
    """One sentence for everything that was opened: what is announced."""
    if view.running is not None:
        return _running_sentence(view.running, language)
    if len(view.opened) == 1:
        one = view.opened[0]
        return f"{say('privacy.outcome_' + outcome(one), language)} {_budget_sentence(one, language)}"
    total = len(view.opened) + view.more
    failed = sum(outcome(one) == "fail" for one in view.opened)
    return say("privacy.many", language, total=total, failed=failed)


def render(view: View, language: str) -> str:
    """The whole body."""
    notes = "".join(f'<p class="note advice" lang="en" dir="ltr">{escape(note)}</p>' for note in view.notes)
    if view.running is not None:
        return f'<div class="page report-page">{_running(view.running, language)}{notes}</div>'
    parts = []
    if len(view.opened) > 1 or view.more:
        from apps.dashboard_compare import compare

        parts.append(compare(view, language))
    else:
        parts.append(_one(view.opened[0], view, language))
    return f'<div class="page report-page">{notes}{"".join(parts)}</div>'


def _one(opened: Opened, view: View, language: str) -> str:
    found = outcome(opened)
    claim = opened.report.claim
    conclusion = opened.audit.conclusion if opened.audit else ""
    simulation = f'<p class="note advice">{escape(say("privacy.simulation", language))}</p>' if claim.simulation else ""
    banner = (
        f'<section class="verdict {found}" aria-labelledby="report-h"><h2 id="report-h">'
        f'<span class="mark" aria-hidden="true">{_sign(found)}</span>'
        f"{escape(say('privacy.outcome_' + found, language))}</h2>"
        f'<p lang="en" dir="ltr">{escape(opened.name)}: {escape(conclusion)}</p></section>'
    )
    return (
        banner
        + simulation
        + '<div class="tiles">'
        + card("budget", say("privacy.budget", language), _budget(opened, view, language))
        + card("person", say("privacy.person", language), _person(opened, language))
        + "</div>"
        + card(
            "rounds",
            say("privacy.rounds", language),
            _rounds(opened.trajectory, opened.budget, claim.delta, "t1", language),
        )
        + card("accountants", say("privacy.accountants", language), _accountants(opened, language))
        + card("audit", say("privacy.audit", language), _audit(opened, language))
        + card("outside", say("privacy.outside", language), _outside(opened, language))
        + (
            card("quality", say("privacy.quality", language), _quality(opened.quality, language))
            if opened.quality
            else ""
        )
        + card("numbers", say("privacy.numbers", language), _numbers(opened))
    )


def card(name: str, title: str, body: str) -> str:
    return f'<section class="card" aria-labelledby="report-{name}"><h2 id="report-{name}">{escape(title)}</h2>{body}</section>'


def badge(found: str, language: str) -> str:
    words = escape(say("verdict." + found, language))
    return f'<span class="badge {found}"><span aria-hidden="true">{_sign(found)}</span> {words}</span>'


def _sign(found: str) -> str:
    return {"pass": "✓", "flag": "!", "fail": "✕", "not_applicable": "–"}[found]


def _budget_sentence(opened: Opened, language: str) -> str:
    if opened.spent is None:
        return say("privacy.budget_unknown", language)
    return say(
        "privacy.budget_sentence",
        language,
        spent=eps(opened.spent),
        budget=eps(opened.budget),
        left=rest(opened.left or 0.0),
    )


def _budget(opened: Opened, view: View, language: str) -> str:
    report = opened.report
    share = min(1.0, (opened.spent or opened.budget) / opened.budget)
    gauge = (
        f'<div class="gauge" role="img" aria-label="{escape(_budget_sentence(opened, language), quote=True)}">'
        f'<span style="width:{share * 100:.1f}%"></span></div>'
    )
    spent = "?" if opened.spent is None else eps(opened.spent)
    rows = [paragraph(_budget_sentence(opened, language))]
    sampling = report.sampling
    if sampling.rate is not None:
        expected = f"{sampling.rate * sampling.steps:.1f}"
        rows.append(paragraph(say("privacy.per_device", language, expected=expected, steps=sampling.steps)))
    rows.append(accounts(view, language))
    return f'<p class="figure">ε {spent} <small>/ {eps(opened.budget)}</small></p>{gauge}' + "".join(rows)


def accounts(view: View, language: str) -> str:
    """Who has how much left: each participant of each run, and each data set over all runs that were opened."""

    def cells(spent: float | None, budget: float) -> str:
        left = None if spent is None else max(0.0, budget - spent)
        values = ("?" if spent is None else eps(spent), eps(budget), "?" if left is None else rest(left))
        return "".join(f'<td class="n">{escape(value)}</td>' for value in values)

    body = "".join(
        f'<tr><th scope="row">{escape(say("privacy.each_device", language, run=one.name))}</th>'
        f"{cells(one.spent, one.budget)}</tr>"
        for one in view.opened
    )
    for group in view.result.groups if view.result else ():
        budgets = [one.budget for one in view.opened if one.report.data.commitment == group.commitment]
        if budgets:
            name = say("privacy.data_set", language, name=group.commitment[:12], runs=group.runs)
            body += f'<tr><th scope="row">{escape(name)}</th>{cells(group.epsilon, max(budgets))}</tr>'
    head = tuple(say(f"privacy.{key}", language) for key in ("whose", "spent", "allowed", "left"))
    return table(head, body, say("privacy.accounts", language))


def _person(opened: Opened, language: str) -> str:
    claim = opened.report.claim
    sense = meaning(claim.epsilon, claim.delta, claim.profile)
    right = min(100, max(50, -int(-sense.best_guess * 100 // 1)))
    sentence = say("privacy.guess", language, count=in_a_hundred(sense.best_guess).removesuffix(" in 100"))
    picture = hundred(
        right, name="report-guess", title=sentence, description=say("privacy.dots", language, gained=right - 50)
    )
    unit = f'<p class="hint" lang="en" dir="ltr">{escape(claim.unit_definition)}</p>'
    return f"<p>{escape(sentence)}</p>{picture}{unit}"


def _rounds(points: Sequence[Spent], budget: float | None, delta: float, name: str, language: str) -> str:
    if not points:
        return paragraph(say("privacy.no_releases", language))
    last = points[-1]
    sentence = say(
        "privacy.rounds_sentence", language, epsilon=eps(last.epsilon), releases=last.releases, delta=f"{delta:.2g}"
    )
    limit = (budget, f"ε {eps(budget)}") if budget else None
    chart = line_chart(
        [(0, 0.0)] + [(point.releases, point.epsilon) for point in points],
        name=name,
        title=say("privacy.rounds", language),
        description=sentence,
        x_label=say("privacy.releases", language),
        y_label="ε",
        limit=limit,
    )
    rows = [(str(point.releases), str(point.step), eps(point.epsilon)) for point in points]
    head = (say("privacy.releases", language), say("privacy.round", language), "ε")
    return paragraph(sentence) + chart + _folded(say("privacy.table", language), head, rows, numeric=True)


def _accountants(opened: Opened, language: str) -> str:
    if not opened.accountants:
        return paragraph(say("privacy.budget_unknown", language))
    values = opened.accountants
    claim = opened.report.claim
    largest = max(values.values()) or 1.0
    sentence = say(
        "privacy.accountants_sentence",
        language,
        low=eps(min(values.values())),
        high=eps(max(values.values())),
        claim=eps(claim.epsilon),
        accountant=claim.accountant.upper(),
    )
    rows = "".join(
        f'<tr><th scope="row">{escape(name.upper())}</th><td class="n">{eps(value)}</td><td>{bar(value / largest)}</td></tr>'
        for name, value in values.items()
    )
    rows += "".join(
        f'<tr><th scope="row">{escape(name.upper())}</th><td class="n">–</td><td lang="en" dir="ltr">{escape(reason)}</td></tr>'
        for name, reason in opened.refused.items()
    )
    return paragraph(sentence) + table(
        (say("privacy.accountant", language), "ε", ""), rows, say("privacy.accountants", language)
    )


def _audit(opened: Opened, language: str) -> str:
    if opened.audit is None:
        return paragraph(say("privacy.budget_unknown", language))
    counts = {name: sum(check.verdict == name for check in opened.audit.checks) for name in OUTCOMES}
    sentence = say(
        "privacy.audit_sentence", language, passed=counts["pass"], flagged=counts["flag"], failed=counts["fail"]
    )
    rows = "".join(
        f'<tr><th scope="row" lang="en" dir="ltr">{escape(CHECKS.get(check.id, check.id))}</th>'
        f"<td>{badge(check.verdict, language)}</td>"
        f'<td lang="en" dir="ltr">{escape(check.reason)}</td></tr>'
        for check in opened.audit.checks
    )
    head = (say("privacy.check", language), say("privacy.verdict", language), say("privacy.reason", language))
    return paragraph(sentence) + table(head, rows, say("privacy.audit", language))


def _outside(opened: Opened, language: str) -> str:
    items = "".join(
        f'<li lang="en" dir="ltr"><strong>{escape(item.kind.replace("_", " "))}</strong>: {escape(item.statement)}</li>'
        for item in opened.report.outside
    )
    return (
        paragraph(say("privacy.outside_sentence", language, count=len(opened.report.outside)))
        + f'<ul class="outside">{items}</ul>'
    )


def _quality(metrics: Sequence[Quality], language: str) -> str:
    def cell(value: float | None) -> str:
        return "–" if value is None else f"{value:.3g}"

    rows = "".join(
        f'<tr><th scope="row" lang="en" dir="ltr">{escape(m.title)}</th>'
        + "".join(f'<td class="n">{cell(value)}</td>' for value in (m.before, m.after, m.ceiling))
        + "</tr>"
        for m in metrics
    )
    head = (
        say("privacy.metric", language),
        say("privacy.before", language),
        say("privacy.after", language),
        say("privacy.ceiling", language),
    )
    return table(head, rows, say("privacy.quality", language))


def _numbers(opened: Opened) -> str:
    report = opened.report
    claim, mechanism, sampling = report.claim, report.mechanism, report.sampling
    noise = ", ".join(f"{run.value:.4g} ({run.count}×)" for run in mechanism.noise_multipliers[:4])
    plain = claim.epsilon_without_amplification
    facts = [
        ("Claim", f"ε = {claim.epsilon:.6g} at δ = {claim.delta:.3g}, {claim.accountant}, {claim.adjacency}"),
        ("Without amplification", "no difference" if plain is None else f"ε = {plain:.4g}"),
        ("Unit", claim.unit_definition),
        ("Released", claim.released),
        ("Threat model", claim.threat_model),
        (
            "Sampling",
            f"{sampling.sampler}, {sampling.scheme}, q = {sampling.rate}, {sampling.steps} steps, {sampling.randomness}",
        ),
        (
            "Mechanism",
            f"{mechanism.clip_kind} clipping at C = {mechanism.clip_norm:.6g}, noise / C = {noise}, from {mechanism.noise}",
        ),
        ("Divisor", f"{mechanism.divisor:.6g}" + (" (public)" if mechanism.divisor_is_public else "")),
        ("Data", f"commitment {report.data.commitment}"),
        ("Ledger", f"{len(report.ledger.entries)} entries, head {report.ledger.head}"),
    ]
    return (
        '<dl class="facts" lang="en" dir="ltr">'
        + "".join(f"<dt>{k}</dt><dd>{escape(v)}</dd>" for k, v in facts)
        + "</dl>"
    )


def _running_sentence(running: Running, language: str) -> str:
    last = running.trajectory[-1] if running.trajectory else Spent(0, 0, 0.0)
    budget = "?" if running.budget is None else eps(running.budget)
    rounds = "?" if running.rounds is None else str(running.rounds)
    return say(
        "privacy.running_sentence",
        language,
        releases=last.releases,
        rounds=rounds,
        epsilon=eps(last.epsilon),
        budget=budget,
    )


def _running(running: Running, language: str) -> str:
    body = f"<p>{escape(_running_sentence(running, language))}</p>"
    chart = _rounds(running.trajectory, running.budget, running.delta, "t1", language)
    return card("running", f"{say('privacy.running', language)}: {running.name}", body + chart)


def eps(value: float) -> str:
    return f"{value:.2f}" if value >= 0.1 or value == 0 else f"{value:.3g}"


def rest(value: float) -> str:
    """What is left of a budget: below a hundredth the digits are the search's for the noise, and tell a person nothing."""
    return "< 0.01" if 0 < value < 0.01 else eps(value)


def paragraph(sentence: str) -> str:
    return f"<p>{escape(sentence)}</p>"


def table(head: Iterable[str], rows: str, caption: str) -> str:
    columns = "".join(f'<th scope="col">{escape(title)}</th>' if title else "<td></td>" for title in head)
    return (
        f'<div class="scroll" role="group" tabindex="0" aria-label="{escape(caption, quote=True)}"><table>'
        f'<caption class="visually-hidden">{escape(caption)}</caption>'
        f"<thead><tr>{columns}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _folded(title: str, head: Iterable[str], rows: Iterable[Sequence[str]], *, numeric: bool) -> str:
    style = ' class="n"' if numeric else ""
    body = "".join("<tr>" + "".join(f"<td{style}>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<details><summary>{escape(title)}</summary>{table(head, body, title)}</details>"
