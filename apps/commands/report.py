"""``mmslm report``: a run's privacy report as a page (HTML) or as paper (PDF); signing and the rest: report_actions.

The page is self-contained and loads nothing. The PDF is printed by a Chromium, Chrome or Edge on this machine, which
writes a tagged (accessible) one and is already there on most; a library of our own would add a large dependency for a
worse one. Where none is found, the command says so and how to print the page by hand.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from apps.commands import report_actions

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "microsoft-edge", "msedge")
APPLICATIONS = ("/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",)
SECONDS = 120


def add(command: Callable[..., argparse.ArgumentParser]) -> None:
    """The command and its actions."""
    report = command(
        "report",
        lambda arguments: int(arguments.action(arguments)),
        "save a privacy report as a page or PDF, sign it, export it",
    )
    actions = report.add_subparsers(dest="report_command", required=True, metavar="ACTION")

    def action(name: str, handler: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        sub = actions.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        sub.set_defaults(action=handler)
        return sub

    def on_run(sub: argparse.ArgumentParser) -> argparse.ArgumentParser:
        sub.add_argument("run", type=Path, metavar="RUN", help="a run's folder, or a report")
        return sub

    saving = on_run(action("save", _save, "save a report as a page or a PDF"))
    saving.add_argument(
        "--out", type=Path, default=None, metavar="FILE", help="a .html or .pdf file (default: report.html beside it)"
    )
    keygen = action("keygen", report_actions.keygen, "make a signing key, yours alone, and its public half beside it")
    keygen.add_argument("file", type=Path, metavar="FILE")
    sign = on_run(action("sign", report_actions.sign, "sign a report; an earlier signature is replaced"))
    sign.add_argument("--key", type=Path, required=True, metavar="FILE", help="the signing key (`mmslm report keygen`)")
    export = on_run(action("export", report_actions.export, "write a report as a record of the OpenDP registry"))
    export.add_argument("--opendp", type=Path, required=True, metavar="OUT", help="the YAML file to write")
    about = "who publishes, and what for; a form is written if absent"
    export.add_argument("--about", type=Path, required=True, metavar="FILE", help=about)
    schema = action("schema", report_actions.schema, "print the JSON Schema of reports")
    schema.add_argument("--out", type=Path, default=None, metavar="FILE")


def _save(arguments: argparse.Namespace) -> int:
    run: Path = arguments.run
    out = arguments.out or (run / "report.html" if run.is_dir() else run.with_suffix(".html"))
    print(save(run, out))
    return 0


def save(path: Path, out: Path) -> Path:
    """Writes the report at ``path`` to ``out`` (.html or .pdf). Raises ValueError or OSError with one sentence."""
    from privacy.canonical import read_json
    from privacy.report.build import check_report
    from privacy.report.html import to_html

    if out.suffix.lower() not in (".html", ".pdf"):
        raise ValueError(f"{out.name} ends in {out.suffix or 'nothing'}: name a file that ends in .html or .pdf.")
    if not out.resolve().parent.is_dir():
        raise FileNotFoundError(f"There is no folder {out.parent}: make it, or choose another place for {out.name}.")
    browser = find_browser() if out.suffix.lower() == ".pdf" else None
    page = to_html(check_report(read_json(path / "report.json" if path.is_dir() else path)))
    if browser is None:
        out.write_text(page, encoding="utf-8")
    else:
        print_pdf(page, out, browser)
    return out


def find_browser() -> str:
    """The browser that prints. Raises FileNotFoundError where there is none."""
    named = os.environ.get("MMSLM_CHROMIUM")
    found = (
        [named] if named else [shutil.which(name) for name in BROWSERS] + [a for a in APPLICATIONS if Path(a).exists()]
    )
    for browser in found:
        if browser and shutil.which(browser):
            return browser
    raise FileNotFoundError(
        "No Chromium, Chrome or Edge was found to print a PDF: install one, name it in MMSLM_CHROMIUM, or save the report "
        "as .html and print that from any browser."
    )


def print_pdf(page: str, out: Path, browser: str) -> None:
    """``page`` as a PDF at ``out``, written whole or not at all. Raises OSError where the browser fails."""
    with tempfile.TemporaryDirectory() as folder:
        source, printed = Path(folder) / "report.html", Path(folder) / "report.pdf"
        source.write_text(page, encoding="utf-8")
        command = [
            browser,
            "--headless",
            "--disable-gpu",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--no-first-run",
            "--no-pdf-header-footer",
            f"--user-data-dir={folder}/profile",
            f"--print-to-pdf={printed}",
            source.as_uri(),
        ]
        # Chromium's own sandbox does not start as root, as in containers; the page is ours and runs no script.
        if hasattr(os, "geteuid") and os.geteuid() == 0:
            command.insert(1, "--no-sandbox")
        try:
            subprocess.run(command, check=True, timeout=SECONDS, capture_output=True)
        except (subprocess.SubprocessError, OSError) as error:
            raise OSError(
                f"{browser} could not print the PDF ({type(error).__name__}): save .html and print that."
            ) from None
        if not printed.is_file() or not printed.read_bytes().startswith(b"%PDF"):
            raise OSError(f"{browser} wrote no PDF: save the report as .html and print that from a browser.")
        shutil.copyfile(printed, out)
