"""A run's metrics in files: JSON lines and CSV always, TensorBoard's event files where asked. No server, no network.

What may be written depends on the claim. A run with a privacy claim writes what is public: the round, epsilon spent and
left, the length of the released update, the bytes that one device sends and fetches (a constant of the run). How many
devices came, their losses, the lengths of their updates and the time that a round took come from private data and no
mechanism covers them: they go to the operator's terminal and into no file. A run without a claim writes those too.
On the virtual clock cohorts come from a seed, so its figures are written in either case.

A run that goes on writes on: rows of a round that is done again are replaced. TensorBoard was chosen over MLflow
because its files need nothing but a folder (MLflow's file store is being retired for a database), and its own package
over a re-implementation because whoever looks at the files has it anyway. It is an extra: ``pip install mmslm[tracking]``.
"""

from __future__ import annotations

import csv
import io
import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

from federated.checkpoint import write_atomically
from federated.clock import ClockFacts
from federated.settings import FederatedConfig
from federated.strategy import RoundFacts

logger = logging.getLogger(__name__)

ROWS, TABLE, BOARD = "metrics.jsonl", "metrics.csv", "tensorboard"
Row = dict[str, float | int | None]
PUBLIC = ("round", "epsilon_spent", "epsilon_left", "update_norm", "device_bytes_up", "device_bytes_down")


class TrackingError(ValueError):
    """Metrics that cannot be written; the message says why, and what to do."""


class Tracker:
    """Writes a row a round into ``folder``; give it as (part of) a run's progress.

    device_bytes: (up, down) that one device sends and fetches in a round. tensorboard: also write event files.
    """

    def __init__(
        self,
        folder: Path,
        settings: FederatedConfig,
        *,
        device_bytes: tuple[int, int] | None = None,
        tensorboard: bool = False,
    ) -> None:
        self.folder, self.settings, self.device_bytes = folder, settings, device_bytes
        self._with_board = tensorboard
        self._board: Any = _writer_class() if tensorboard else None  # refused now, not after the first round
        self._writer: Any = None
        self.rows: dict[int, Row] = _read(folder / ROWS)

    def __call__(self, facts: RoundFacts, clock: ClockFacts | None = None) -> None:
        row = self.row(facts, clock)
        number = facts.round
        again = any(done >= number for done in self.rows)
        self.rows = {done: kept for done, kept in self.rows.items() if done < number} | {number: row}
        self.folder.mkdir(parents=True, exist_ok=True)
        if again or len(self.rows) == 1:
            everything = list(self.rows.values())
            write_atomically(self.folder / ROWS, "".join(json.dumps(one) + "\n" for one in everything).encode())
            write_atomically(self.folder / TABLE, _table(everything, header=True).encode())
        else:
            with (self.folder / ROWS).open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            with (self.folder / TABLE).open("a", encoding="utf-8", newline="") as file:
                file.write(_table([row], header=False))
        if self._with_board:
            self._to_board(number, row)

    def row(self, facts: RoundFacts, clock: ClockFacts | None = None) -> Row:
        """What is written of a round: the public figures, and without a claim (or on the clock) the rest."""
        left = None if facts.epsilon is None else max(0.0, self.settings.epsilon - facts.epsilon)
        row: Row = {
            "round": facts.round,
            "epsilon_spent": facts.epsilon,
            "epsilon_left": left,
            "update_norm": facts.update_norm,
        }
        if self.device_bytes is not None:
            row["device_bytes_up"], row["device_bytes_down"] = self.device_bytes
        if not self.settings.private:
            row |= {
                "loss": facts.loss,
                "cohort": facts.cohort,
                "answered": facts.answered,
                "dropped": len(facts.rejections),
                "bytes_up": facts.bytes_up,
                "bytes_down": facts.bytes_down,
                "seconds": facts.seconds,
            }
            names = ("norm_least", "norm_quarter", "norm_middle", "norm_three_quarters", "norm_most")
            row |= dict(zip(names, facts.norms or (None,) * 5, strict=True))
        if clock is not None:
            row |= {f"clock_{name}": value for name, value in asdict(clock).items() if name != "round"}
        return row

    def close(self) -> None:
        """Flush the event files. Safe to call twice."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _to_board(self, number: int, row: Row) -> None:
        if self._writer is None:
            # purge_step hides what an interrupted run wrote of this round and of later ones.
            self._writer = self._board(str(self.folder / BOARD), purge_step=number if number > 1 else None)
        for name, value in row.items():
            if value is not None and name != "round":
                group = "clock" if name.startswith("clock_") else "privacy" if name.startswith("epsilon") else "round"
                self._writer.add_scalar(f"{group}/{name.removeprefix('clock_')}", value, number)
        self._writer.flush()


def _writer_class() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise TrackingError(
            "TensorBoard files were asked for and the package tensorboard is not installed; run "
            "pip install 'mmslm[tracking]', or leave them out: metrics.jsonl and metrics.csv are written anyway."
        ) from None
    return SummaryWriter


def _read(path: Path) -> dict[int, Row]:
    """The rows of an earlier part of the run; what comes after a line that a crash broke off is not trusted."""
    rows: dict[int, Row] = {}
    if path.exists():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                row = json.loads(line)
                rows[int(row["round"])] = row
            except (ValueError, KeyError, TypeError):
                logger.warning("%s has a line that is no row; what follows it is written anew", path)
                break
    return rows


def _table(rows: list[Row], *, header: bool) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    if header:
        writer.writerow(rows[-1])
    writer.writerows(row.values() for row in rows)
    return out.getvalue()
