"""report.html: one self-contained page, for a person affected what the claim means, for an expert what it rests on.

No script, no network (a content security policy says so to the browser), no font to fetch; it follows the reader's
light or dark scheme, prints, and can be read by ear: landmarks, one heading per section, every drawing with its table.
Every text from the report is escaped. It does not show the annex.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from html import escape
from pathlib import Path

from privacy.report.charts import bar, curve_chart, hundred, line_chart
from privacy.report.measured import measured_beside_claim, measured_in_full
from privacy.report.models import Outside, Report
from privacy.report.words import grade, in_a_hundred, meaning, one_in, upward

ADJACENCY = {
    "add_or_remove_one": "with and without one {unit}",
    "zero_out": "with one {unit} and with that {unit}'s contributions set to zero",
    "replace_one": "with one {unit} and with another in its place",
}
ACCOUNTANTS = {
    "rdp": "Rényi (RDP): quick, never too low, somewhat high",
    "prv": "Privacy random variables (PRV): tight, with its error added",
    "pld": "Privacy-loss distributions (PLD): tight",
    "own": "mmslm's own, independent of the others: tight",
}
SCHEMES = {
    "poisson": "Every {unit} takes part in a step by its own independent coin",
    "truncated_poisson": "An independent coin each, with a largest number per step",
    "fixed_size_without_replacement": "A fixed number per step, drawn at random",
    "shuffle": "In a random order, in turns; no credit is taken for the randomness",
    "none": "By no random rule; no credit is taken for it",
    "full": "Every {unit} takes part in every step",
}
OUTSIDE = {
    "loss_curves": "Loss curves",
    "evaluation": "Evaluation",
    "checkpoint_selection": "Choice of the checkpoint",
    "hyperparameter_trials": "Trials of settings",
    "logs": "Logs",
    "compression": "Compression of the model",
    "other": "Something else",
}


def to_html(report: Report) -> str:
    """The whole page."""
    style = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
    name = report.identity.name or report.identity.id
    contents = [
        ("meaning", "What it means"),
        ("limits", "What it does not cover"),
        ("spending", "How it was spent"),
        ("evidence", "Evidence"),
        ("check", "Check it yourself"),
    ]
    nav = "".join(f'<li><a href="#{anchor}">{words}</a></li>' for anchor, words in contents)
    body = "".join(
        [_answer(report), _meaning(report), _limits(report), _spending(report), _evidence(report), _check(report)]
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="color-scheme" content="light dark">
<meta name="referrer" content="no-referrer">
<title>Privacy report: {escape(name)}</title>
<style>{style}</style>
</head>
<body>
<a class="skip" href="#main">Skip to the report</a>
<div class="sheet">
<header>
<p class="eyebrow">Privacy report · {escape(name)}{_date(report)}</p>
<h1>What could somebody learn about {escape(_you(report))} from this model?</h1>
<p class="lead">{_lead(report)}</p>
</header>
<nav aria-label="Contents"><ul>{nav}</ul></nav>
<main id="main">
{body}
</main>
<footer><p>Report <code>{escape(report.identity.id)}</code> · schema <code>{escape(report.schema_version)}</code>.
This page was made from report.json, which holds every number on it. It loads nothing and sends nothing.</p></footer>
</div>
</body>
</html>
"""


def _you(report: Report) -> str:
    return "one of your photos" if report.claim.unit == "example" else "you"


def _unit(report: Report) -> str:
    return "example" if report.claim.unit == "example" else "participant"


def _date(report: Report) -> str:
    return f" · {escape(report.identity.created[:10])}" if report.identity.created else ""


def _lead(report: Report) -> str:
    claim = report.claim
    if claim.simulation:
        return (
            "This was a <strong>rehearsal on made-up data</strong>. Its chance came from a fixed seed, so the promise "
            "below shows what a real run with the same settings would give; it protects nobody by itself."
        )
    return (
        f"A model was trained with private data under <em>differential privacy</em>. What is protected: "
        f"<strong>{escape(claim.unit_definition)}</strong>. This page says how well, in plain words first."
    )


def _answer(report: Report) -> str:
    claim = report.claim
    sense = meaning(claim.epsilon, claim.delta, claim.profile)
    right = min(100, max(50, -int(-sense.best_guess * 100 // 1)))
    word, why = grade(claim.epsilon)
    picture = hundred(
        right,
        name="guess",
        title=f"The best possible guesser is right at most {in_a_hundred(sense.best_guess)} times",
        description=f"A hundred dots: 50 plain ones for luck, at most {right - 50} ringed ones that a guesser may gain.",
    )
    example = (
        " A single photo is protected, not a person: somebody who gave several photos has less protection than this."
        if claim.unit == "example"
        else ""
    )
    return f"""
<section class="answer" aria-labelledby="short"><div class="card">
<h2 id="short">The short answer</h2>
<p class="number">at most {in_a_hundred(sense.best_guess)} <small>guesses right; luck alone gives 50</small></p>
<p>Imagine that a coin decides whether {escape(_whose(report))}. Somebody then studies everything that was
released, with any method, any computer and any other knowledge about the world. In at most
<strong>{in_a_hundred(sense.best_guess)}</strong> cases can they tell what the coin said.{example}</p>
<figure>{picture}<figcaption>Plain: right by luck. Ringed: the most that the release can add.
Empty: wrong all the same.</figcaption></figure>
<p class="soft">The formal promise is ε = {upward(claim.epsilon)} at δ = {claim.delta:.2g}: a
<strong>{word}</strong> guarantee. {escape(why)}</p>
</div>{measured_beside_claim(report)}</section>"""


def _whose(report: Report) -> str:
    return "one photo of yours is used" if report.claim.unit == "example" else "you take part, with all that is yours"


def _meaning(report: Report) -> str:
    claim = report.claim
    sense = meaning(claim.epsilon, claim.delta, claim.profile)
    rows = "".join(
        f'<tr><th scope="row">{_accused(share)}</th><td class="n">{in_a_hundred(found)}</td><td>{bar(found)}</td></tr>'
        for share, found in sense.recognised
    )
    beliefs = "".join(
        f'<tr><th scope="row">{before:.0%}</th><td class="n">{_percent(after)}</td></tr>'
        for before, after in sense.posterior
    )
    honest = (
        "<p>For an ε of this size the last table says little: on paper, one very unlucky outcome could all but settle a "
        "suspicion. The two limits above show how rarely that can happen.</p>"
        if claim.epsilon > 3
        else ""
    )
    adjacency = ADJACENCY[claim.adjacency].format(unit=_unit(report))
    return f"""
<section id="meaning" aria-labelledby="meaning-h"><h2 id="meaning-h">What the promise means</h2>
<p>The promise compares two worlds: the data {escape(adjacency)}. Whatever was released would have come out almost as
readily in the other world, how nearly is what ε limits. So nobody can be sure which of the two is real, and the same limit holds
for everything that being in the data could reveal about {escape(_you(report))}.</p>
<h3>Picking out who took part</h3>
<p>The more careful an accuser is not to accuse wrongly, the fewer they can recognise.</p>
<div class="scroll"><table><caption>The most that any attack can recognise</caption>
<thead><tr><th scope="col">Wrongly accused, of those not in the data</th>
<th scope="col" class="n">Recognised, of those in it</th><td aria-hidden="true"></td></tr></thead>
<tbody>{rows}</tbody></table></div>
<h3>How far a suspicion can grow</h3>
<p>Whatever somebody suspects about {escape(_you(report))} beforehand, the odds of it can change at most by the factor
e<sup>ε</sup> = {_factor(sense.odds_factor)}; with a probability of {claim.delta:.2g} ({one_in(claim.delta)}) this limit may
fail.</p>
<div class="scroll"><table><caption>Certainty before and, at the very worst, after</caption>
<thead><tr><th scope="col">Suspicion before</th><th scope="col" class="n">Certainty after, at most</th></tr></thead>
<tbody>{beliefs}</tbody></table></div>
{honest}
<h3>Who is protected, from whom</h3>
<dl class="facts">
<dt>Protected</dt><dd>{escape(claim.unit_definition)}</dd>
<dt>Released</dt><dd>{escape(claim.released)}</dd>
<dt>Against</dt><dd>{escape(claim.threat_model)}</dd>
<dt>Covers</dt><dd>{_scope(report)}</dd>
</dl></section>"""


def _accused(share: float) -> str:
    return f"1 in {round(1 / share):,}"


def _factor(value: float) -> str:
    return f"{math.ceil(value):,}" if value < 1e6 else "more than a million"


def _percent(share: float) -> str:
    # Rounded up, so that protection is never overstated; never shown as a certainty that the bound does not give.
    text = f"{-(-share * 1000 // 1) / 10:.1f}" if share < 0.999 else f"{min(share * 100, 99.9999):.4f}"
    return f"{text}%"


def _scope(report: Report) -> str:
    if report.claim.scope == "this_run":
        return "This run alone. Other releases from the same data add to what can be learned."
    earlier = len(report.identity.parents)
    if earlier:
        return f"Everything released from this data so far: this run and {earlier} earlier."
    return "Everything released from this data so far, which is this run alone."


def _limits(report: Report) -> str:
    items = "".join(_outside_item(item) for item in report.outside)
    listed = f'<ul class="outside">{items}</ul>' if items else "<p>The report states nothing about this.</p>"
    return f"""
<section id="limits" aria-labelledby="limits-h"><h2 id="limits-h">What the promise does not cover</h2>
<p>No guarantee covers everything. These remain, and an honest reader weighs them too.</p>
{listed}
<h3>And always</h3>
<ul>
<li>What is true of many people can be learned, also about you: that most kitchens have a kettle is no secret.</li>
<li>What you or others publish elsewhere is not protected by this.</li>
<li>The promise is about what was released. Whoever holds the photos themselves still holds them.</li>
</ul></section>"""


def _outside_item(item: Outside) -> str:
    if item.accounted:
        pill, style = "accounted for", "pill"
    elif item.data in ("none", "public"):
        pill, style = "no private data", "pill"
    elif item.data == "held_out_people":
        pill, style = "other people's data", "pill out"
    elif item.published or item.kind in ("checkpoint_selection", "compression"):
        pill, style = "outside the promise", "pill out"
    else:
        pill, style = "kept inside", "pill"
    count = f" ({item.count})" if item.count is not None else ""
    title = f"<strong>{OUTSIDE[item.kind]}{count}</strong>"
    return f'<li><span class="{style}">{pill}</span>{title}{escape(item.statement)}</li>'


def _spending(report: Report) -> str:
    claim = report.claim
    parts = ['<section id="spending" aria-labelledby="spending-h"><h2 id="spending-h">How the promise was spent</h2>']
    parts.append("<p>Each step reveals a little. The total after each step was known before the step was taken.</p>")
    if claim.trajectory:
        last = claim.trajectory[-1]
        chart = line_chart(
            [(0, 0.0)] + [(point.releases, point.epsilon) for point in claim.trajectory],
            name="steps",
            title="Epsilon over the steps",
            description=f"Epsilon rises to {upward(last.epsilon)} after {last.releases} releases; see the table.",
            x_label="releases",
            y_label="ε spent",
            limit=(claim.epsilon, f"claimed: {upward(claim.epsilon)}"),
        )
        rows = ((f"{point.releases}", f"{point.step}", f"{point.epsilon:.4f}") for point in claim.trajectory)
        parts.append(
            f"<figure>{chart}<figcaption>ε at δ = {claim.delta:.2g}, after each release.</figcaption></figure>"
            + _folded("The numbers", ("Releases", "Step", "ε"), rows, "Epsilon after so many releases", numeric=True)
        )
    if len([point for point in claim.profile if point.delta > 0]) > 1:
        chart = curve_chart(
            [(point.epsilon, point.delta) for point in claim.profile],
            name="profile",
            title="The privacy profile",
            description="For every epsilon, the probability delta with which it may fail; see the table.",
            x_label="ε",
            y_label="δ",
            mark=(claim.epsilon, claim.delta, f"the claim: ε {upward(claim.epsilon)}, δ {claim.delta:.2g}"),
        )
        pairs = ((f"{point.epsilon:.3f}", f"{point.delta:.3g}") for point in claim.profile)
        parts.append(
            f"<h3>One promise, many readings</h3><figure>{chart}<figcaption>All these (ε, δ) pairs hold at once: a "
            "stricter ε, with a larger chance of failing.</figcaption></figure>"
            + _folded("The numbers", ("ε", "δ"), pairs, "The privacy profile", numeric=True)
        )
    parts.append("</section>")
    return "".join(parts)


def _evidence(report: Report) -> str:
    claim, mechanism, sampling = report.claim, report.mechanism, report.sampling
    largest = max(row.epsilon for row in report.verification) or 1.0
    rows = "".join(
        f'<tr><th scope="row">{escape(ACCOUNTANTS.get(row.accountant, row.accountant))}</th>'
        f'<td class="n">{row.epsilon:.4f}</td><td>{bar(row.epsilon / largest)}</td></tr>'
        for row in report.verification
    )
    plain = (
        f"<p>If it were known who took part in which step, ε would be "
        f"<strong>{upward(claim.epsilon_without_amplification)}</strong>. The difference rests on keeping that secret.</p>"
        if claim.epsilon_without_amplification is not None
        else "<p>No part of the promise rests on keeping secret who took part in which step.</p>"
    )
    gdp = (
        f"<p>In one number: close to one Gaussian release with μ = {claim.gdp.mu:.3g} "
        f"(a summary that overstates either error rate by up to {claim.gdp.fit_error:.2g}).</p>"
        if claim.gdp
        else ""
    )
    noise = ", ".join(f"{run.value:.4g} ({run.count}×)" for run in mechanism.noise_multipliers[:6])
    more = " …" if len(mechanism.noise_multipliers) > 6 else ""
    facts = [
        ("Clipping", f"{mechanism.clip_kind.replace('_', ' ')}, C = {mechanism.clip_norm:.6g}"),
        ("Noise over C", f"{noise}{more}; source: {mechanism.noise}"),
        ("Divided by", f"{mechanism.divisor:.6g}" + (" (a public constant)" if mechanism.divisor_is_public else "")),
        ("Precision", ", ".join(f"{key} {value}" for key, value in sorted(mechanism.dtypes.items())) or "not stated"),
        ("Who takes part", SCHEMES[sampling.scheme].format(unit=_unit(report)) + f" ({sampling.sampler})"),
        ("Rate", _rate(report)),
        ("Steps", str(sampling.steps)),
        ("How many took part", str(report.data.population) if report.data.population_is_public else "not public"),
        ("Data", report.data.description or "not described"),
        ("Copies", report.data.deduplicated),
        ("Seen before, in public", report.data.public_pretraining),
        ("Tokenizer trained on", report.data.tokenizer_trained_on),
        (
            "Software",
            ", ".join(f"{key} {value}" for key, value in sorted(report.identity.software.items())) or "not stated",
        ),
    ]
    listed = "".join(f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in facts)
    return f"""
<section id="evidence" aria-labelledby="evidence-h"><h2 id="evidence-h">What it rests on</h2>
<h3>The same events, computed independently</h3>
<div class="scroll"><table>
<caption>ε at δ = {claim.delta:.2g}, by every accountant that can treat these events</caption>
<thead><tr><th scope="col">Accountant</th><th scope="col" class="n">ε</th><td aria-hidden="true"></td></tr></thead>
<tbody>{rows}</tbody></table></div>
<p>The claim, ε = {upward(claim.epsilon, 6)}, rests on the <strong>{escape(claim.accountant)}</strong> accountant.</p>
{plain}{gdp}
<h3>What an attack really found</h3>
{measured_in_full(report)}
<h3>How it was done</h3>
<dl class="facts">{listed}</dl></section>"""


def _rate(report: Report) -> str:
    sampling = report.sampling
    parts = []
    if sampling.rate is not None:
        parts.append(f"q = {sampling.rate:.6g}")
    if sampling.batch is not None:
        parts.append(f"batch of {sampling.batch}")
    if sampling.max_batch is not None:
        parts.append(f"at most {sampling.max_batch}")
    return ", ".join(parts) or "everybody, every step"


def _check(report: Report) -> str:
    identity = report.identity
    signature = (
        f"ed25519 by <code>{escape(report.signature.public_key)}</code>"
        if report.signature
        else "not signed; compare the ledger's head with one that you were given another way"
    )
    facts = [
        ("Ledger's head", f"<code>{escape(report.ledger.head)}</code>"),
        ("Entries", f"{len(report.ledger.entries)}"),
        ("Configuration", f"<code>{escape(identity.config_hash or 'not stated')}</code>"),
        ("Model before", f"<code>{escape(identity.model_hash_before or 'not stated')}</code>"),
        ("Model after", f"<code>{escape(identity.model_hash_after or 'not stated')}</code>"),
        ("Data commitment", f"<code>{escape(report.data.commitment)}</code>"),
        ("Signature", signature),
    ]
    listed = "".join(f"<dt>{key}</dt><dd>{value}</dd>" for key, value in facts)
    return f"""
<section id="check" aria-labelledby="check-h"><h2 id="check-h">Check it yourself</h2>
<p>You need not trust whoever gave you this page. The file report.json beside it holds every release; this command
computes ε again from them, with several accountants, and says what is false or cannot be proven:</p>
<pre><code>mmslm audit report.json</code></pre>
<dl class="facts">{listed}</dl></section>"""


def _folded(
    summary: str, columns: tuple[str, ...], rows: Iterable[tuple[str, ...]], caption: str, *, numeric: bool
) -> str:
    style = ' class="n"' if numeric else ""
    head = "".join(f'<th scope="col"{style}>{escape(column)}</th>' for column in columns)
    body = "".join("<tr>" + "".join(f"<td{style}>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return (
        f'<details><summary>{escape(summary)}</summary><div class="scroll"><table><caption>{escape(caption)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div></details>"
    )
