"""Check 2, that nothing was changed: the hash chain, the ledger beside the report, file hashes, the signature.

And the checks on what lies outside the guarantee: trials of settings (7), checkpoints, evaluations and other looks (8).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from privacy.audit.evidence import Evidence
from privacy.audit.result import Check, Verdict, worst
from privacy.canonical import UnreadableError, read_bytes, sha256_file
from privacy.events import PostProcessing
from privacy.ledger import Ledger, LedgerError
from privacy.report.signature import signature_problem

Finding = tuple[Verdict, str]
LEDGER_NAME = "ledger.jsonl"
PAGE_NAME = "report.html"


def check_integrity(evidence: Evidence, trusted_key: str | None, expected_head: str | None) -> Check:
    """2: the chain is whole, and everything that has a hash here has it still."""
    where = "the files beside it" if evidence.run_dir else "nothing beside it was handed in"
    signature = evidence.report.signature
    whose = "" if trusted_key else f" (by {signature.public_key[:12]}...: ask its owner elsewhere)" if signature else ""
    signed = f", the signature is good{whose}" if signature else ""
    count = len(evidence.report.ledger.entries)
    return worst(
        "integrity",
        _integrity_findings(evidence, trusted_key, expected_head),
        f"The hash chain of {count} entries is whole{signed}; {where}"
        + (" match their hashes." if evidence.run_dir else "."),
    )


def _integrity_findings(evidence: Evidence, trusted_key: str | None, expected_head: str | None) -> Iterator[Finding]:
    report = evidence.report
    if evidence.chain_problem:
        yield "fail", evidence.chain_problem
    elif evidence.entries[-1].hash != report.ledger.head:
        yield "fail", "The ledger does not end in the head that the report states: entries are missing or added."
    if expected_head is not None and report.ledger.head != expected_head.lower():
        yield "fail", "The ledger's head is not the one that was asked for: this is another ledger."
    for entry in evidence.entries:
        if entry.kind == "repair" and entry.body["lost_entries"]:
            yield "fail", f"A repair lost {entry.body['lost_entries']} recorded entries; what they released is unknown."
        elif entry.kind == "repair":
            yield "flag", "The ledger was repaired after an interruption; no recorded entry was lost."
    if evidence.entries:
        yield from _header_findings(evidence)
    problem = signature_problem(report.to_json(), trusted_key)
    if problem:
        yield "fail", problem
    if evidence.run_dir is not None:
        yield from _ledger_findings(evidence, evidence.run_dir)
        yield from _file_findings(evidence, evidence.run_dir)


def _header_findings(evidence: Evidence) -> Iterator[Finding]:
    identity, header = evidence.report.identity, evidence.entries[0].body["header"]
    report = evidence.report
    identities = {
        "config_hash": identity.config_hash,
        "model_hash_before": identity.model_hash_before,
        "model_hash_after": identity.model_hash_after,
        "data_commitment": report.data.commitment,
    }
    # What the run said of itself before its first release: the chain holds it, so the report may not say otherwise.
    begun = identities | {
        "unit": report.claim.unit,
        "adjacency": report.claim.adjacency,
        "clip_norm": report.mechanism.clip_norm,
        "noise": report.mechanism.noise,
    }
    for name, value in begun.items():
        if name in header and header[name] != value:
            yield "fail", f"The ledger was begun with another {name.replace('_', ' ')} than the report states."
    ends = [entry.body["public"] for entry in evidence.entries if entry.body.get("topic") == "finished"]
    for end in ends:
        for name, value in identities.items():
            if name in end and end[name] != value:
                what = name.replace("_hash_after", "").replace("_", " ")
                yield "fail", f"The ledger was ended with another {what} than the report states."
    if identity.model_hash_after is not None and not any("model_hash_after" in end for end in ends):
        yield "flag", "Nothing in the ledger says which model the run ended with, so another could stand in its place."
    if "data_commitment" not in header and not any("data_commitment" in end for end in ends):
        yield (
            "flag",
            "Nothing in the ledger ties it to the data, so runs on one data set could be made to look unrelated.",
        )


def _ledger_findings(evidence: Evidence, folder: Path) -> Iterator[Finding]:
    path = folder / LEDGER_NAME
    try:
        ledger = Ledger.open(path)
    except UnreadableError as error:
        yield "fail", f"The run's ledger cannot be compared: {error}"
        return
    except LedgerError as error:
        yield "fail", str(error)
        return
    if ledger.head == evidence.report.ledger.head and ledger.to_json() == evidence.report.ledger.entries:
        return
    if len(ledger) > len(evidence.report.ledger.entries):
        yield "fail", f"{LEDGER_NAME} has entries that the report does not: it was written before the run ended."
    else:
        yield "fail", f"{LEDGER_NAME} is not the ledger in the report."


def _file_findings(evidence: Evidence, folder: Path) -> Iterator[Finding]:
    identity = evidence.report.identity
    for name, stated in identity.files.items():
        parts = PurePosixPath(name).parts
        if not parts or ".." in parts or PurePosixPath(name).is_absolute() or "\\" in name:
            yield "fail", f"The report names the file {name[:80]!r}, which is not inside the run directory."
            continue
        path = folder.joinpath(*parts)
        try:
            if not path.resolve().is_relative_to(folder.resolve()):
                raise UnreadableError(f"{name} leads out of the run directory.")
            found = sha256_file(path)
        except (UnreadableError, OSError, RuntimeError) as error:
            yield "fail", f"A file that the report names cannot be compared: {error}"
            continue
        if found != stated:
            yield (
                "fail",
                f"{name} is not the file that the report describes: its hash is {found[:12]}..., not {stated[:12]}...",
            )
    hashes = set(identity.files.values())
    for label, value in (("configuration", identity.config_hash), ("released model", identity.model_hash_after)):
        if value is None:
            yield "flag", f"The report states no hash of the {label}."
        elif value not in hashes:
            yield "flag", f"No file in the run directory is named as the {label}, so its hash compares with nothing."
    if _page_differs(evidence, folder):
        yield "flag", "report.html is not the page that this report makes; `mmslm report save` makes it anew."
    unnamed = weights_in(folder) - {str(PurePosixPath(name)) for name in identity.files}
    if unnamed:
        yield "flag", f"The run directory holds weights that the report does not name ({sorted(unnamed)[0]})."


def _page_differs(evidence: Evidence, folder: Path) -> bool:
    """Whether the page for people, where there is one, says something else than the report."""
    path = folder / PAGE_NAME
    if not os.path.lexists(path):
        return False
    from privacy.report.html import to_html

    try:
        return read_bytes(path) != to_html(evidence.report).encode("utf-8")
    except UnreadableError:
        return True


def weights_in(folder: Path) -> set[str]:
    """Weights in the run directory, by relative path; at most a few levels deep and a few hundred."""
    found: set[str] = set()
    for pattern in ("*.safetensors", "*/*.safetensors", "*/*/*.safetensors"):
        for path in folder.glob(pattern):
            found.add(path.relative_to(folder).as_posix())
            if len(found) > 200:
                return found
    return found


def check_trials(evidence: Evidence) -> Check:
    """7: trials of settings on the private data are composed into the claim, or flagged."""
    entries = [item for item in evidence.report.outside if item.kind == "hyperparameter_trials"]
    findings: list[Finding] = []
    if not entries:
        findings.append(
            ("flag", "The report does not say how settings were chosen; trials on private data cost privacy too.")
        )
    for item in entries:
        count = "an unknown number of" if item.count is None else str(item.count)
        if item.accounted and not evidence.report.identity.parents and item.data == "private":
            findings.append(("fail", "Trials are said to be accounted for, but the report names no earlier run."))
        elif item.accounted and item.data == "private" and (item.count or 0) > len(evidence.report.identity.parents):
            named = len(evidence.report.identity.parents)
            findings.append(
                ("flag", f"{item.count} trials are said to be accounted for; {named} earlier runs are named.")
            )
        elif item.data == "private" and not item.accounted and item.count != 0:
            findings.append(
                ("flag", f"Settings were chosen in {count} trials on the private data, outside the guarantee.")
            )
    return worst("trials", findings, entries[0].statement if entries else "")


_LOOKS = {
    "checkpoint_selection": "how the checkpoint was chosen",
    "evaluation": "on whose data the model was evaluated",
    "loss_curves": "whether losses were published",
}


def check_selection(evidence: Evidence) -> Check:
    """8: checkpoints, evaluations and logs that looked at private data outside the guarantee are flagged."""
    outside = evidence.report.outside
    findings: list[Finding] = []
    for kind, question in _LOOKS.items():
        if not any(item.kind == kind for item in outside):
            findings.append(("flag", f"The report does not say {question}."))
    for item in outside:
        if item.kind == "hyperparameter_trials" or item.accounted or item.data != "private":
            continue
        # Choosing a checkpoint by private data, or compressing with it, shows in what is released, published or not.
        if item.published or item.kind in ("checkpoint_selection", "compression"):
            findings.append(("flag", f"Outside the guarantee ({item.kind.replace('_', ' ')}): {item.statement}"))
    free = [entry.event.reason for entry in evidence.entries if isinstance(entry.event, PostProcessing)]
    if free:
        more = f" (and {len(free) - 1} more)" if len(free) > 1 else ""
        findings.append(("flag", f"The ledger calls a step free of cost, which nobody can recompute: {free[0]}{more}"))
    said = {item.kind for item in outside}
    for entry in evidence.entries:
        if entry.kind == "remark" and entry.body["topic"] in _LOOKS and entry.body["topic"] not in said:
            findings.append(("flag", f"The ledger remarks on {entry.body['topic']}, of which the report says nothing."))
            break
    if evidence.report.annex is not None:
        findings.append(
            ("flag", "The report carries an annex of facts that depend on private data; do not publish it.")
        )
    return worst("selection", findings, "What else was looked at was public, other people's, or kept inside.")
