"""What ``mmslm report`` does beside pages: keys, signatures, the registry's record, the schema."""

from __future__ import annotations

import argparse
import json
from pathlib import Path


def keygen(arguments: argparse.Namespace) -> int:
    from privacy.report.keys import new_key

    beside, public = new_key(arguments.file)
    print(f"the signing key is in {arguments.file}: keep it secret, and out of every run's folder")
    print(f"its public half is in {beside}; give it to whoever checks your reports, and not by the same way as these:")
    print(f"  mmslm audit REPORT --key {public}")
    return 0


def sign(arguments: argparse.Namespace) -> int:
    from privacy.audit import audit_paths
    from privacy.report import read_report, rewrite_report, sign_report
    from privacy.report.keys import load_key, public_half

    key = load_key(arguments.key)
    file = _file(arguments.run)
    signed = sign_report(read_report(file), key)
    audit = audit_paths([arguments.run])
    if audit.exit_code != 0:
        raise ValueError(f"{file} was not signed, because its claim does not hold: {audit.conclusion}")
    rewrite_report(file, signed)
    print(f"signed {file} by the key {public_half(key)}")
    return 0


def export(arguments: argparse.Namespace) -> int:
    from privacy.report import read_report
    from privacy.report.opendp import FORM, deployment_from, to_opendp

    if not arguments.about.exists():
        arguments.about.write_text(FORM, encoding="utf-8")
        raise ValueError(f"{arguments.about} was written as a form: fill it in, and give the same command again.")
    text = to_opendp(read_report(arguments.run), deployment_from(arguments.about))
    arguments.opendp.write_text(text, encoding="utf-8")
    print(f"the registry's record is in {arguments.opendp}; its status is Draft until somebody answers for it")
    return 0


def schema(arguments: argparse.Namespace) -> int:
    from privacy.report import json_schema

    text = json.dumps(json_schema(), indent=1, ensure_ascii=False)
    if arguments.out is None:
        print(text)
    else:
        arguments.out.write_text(text + "\n", encoding="utf-8")
        print(f"the schema is in {arguments.out}")
    return 0


def _file(run: Path) -> Path:
    return run / "report.json" if run.is_dir() else run
