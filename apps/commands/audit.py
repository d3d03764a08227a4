"""``mmslm audit``: recompute what reports claim, and with ``--empirical`` attack a run and write down what was found."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path


def add(command: Callable[..., argparse.ArgumentParser]) -> None:
    """The command's arguments."""
    audit = command("audit", _audit, "recompute what a report claims; exit 1 if any claim is false or unproven")
    audit.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="a report, a run, or a folder of them")
    audit.add_argument("--json", action="store_true", help="machine-readable")
    audit.add_argument(
        "--key",
        default=None,
        metavar="PUBKEY",
        help="every report must be signed by this key: 64 digits, or their file",
    )
    audit.add_argument(
        "--expected-head", default=None, metavar="HASH", help="the ledger's head as known from elsewhere (one report)"
    )
    attack = audit.add_argument_group("attacking a run (--empirical; it may take a minute or two)")
    attack.add_argument("--empirical", action="store_true", help="attack the run, and write the result into its report")
    attack.add_argument("--canaries", type=int, default=1000, metavar="M", help="more find more (default 1000)")
    attack.add_argument("--confidence", type=float, default=0.95, help="of the first attack on a run (default 0.95)")
    attack.add_argument(
        "--households", type=int, default=300, metavar="N", help="membership: so many that trained, and as many others"
    )
    attack.add_argument(
        "--mechanism-only", action="store_true", help="attack the report's events alone: no model, no data"
    )
    attack.add_argument("--no-write", action="store_true", help="show the result and leave the report as it is")
    attack.add_argument("--sign-with", type=Path, default=None, metavar="KEYFILE", help="sign the extended report anew")
    attack.add_argument(
        "--seed", type=int, default=None, help="repeatable, for trying things out; never for a real audit"
    )


def _audit(arguments: argparse.Namespace) -> int:
    from privacy.audit import audit_paths

    head = arguments.expected_head
    if head is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", head):
        raise ValueError(f"--expected-head is {head[:80]!r}; give the 64 hexadecimal digits of a ledger's head.")
    key = None
    if arguments.key is not None:
        from privacy.report.keys import read_public

        key = read_public(arguments.key)
    if arguments.empirical:
        _attack(arguments)
    elif arguments.sign_with or arguments.no_write or arguments.mechanism_only:
        raise ValueError("--sign-with, --no-write and --mechanism-only belong to an attack; add --empirical.")
    result = audit_paths(arguments.paths, trusted_key=key, expected_head=head)
    if head is not None and len(result.reports) > 1:
        raise ValueError(f"--expected-head is one ledger's, and {len(result.reports)} reports were given; give one.")
    print(result.to_json() if arguments.json else result.to_text())
    return int(result.exit_code)


def _attack(arguments: argparse.Namespace) -> None:
    from apps.empirical import Options, attack

    if len(arguments.paths) != 1:
        raise ValueError(f"an attack is on one run, and {len(arguments.paths)} paths were given; give one.")
    lines = attack(
        arguments.paths[0],
        Options(
            canaries=arguments.canaries,
            confidence=arguments.confidence,
            households=arguments.households,
            mechanism_only=arguments.mechanism_only,
            write=not arguments.no_write,
            sign_with=arguments.sign_with,
            seed=arguments.seed,
        ),
    )
    # With --json the standard output is for the machine.
    print("\n".join(lines) + "\n", file=sys.stderr if arguments.json else sys.stdout)
