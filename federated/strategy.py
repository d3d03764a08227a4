"""The rounds: sample a cohort, ask it, admit its updates, account, release, step, checkpoint. In this order.

User-level differential privacy in the central model: the server is trusted with single updates while a round lasts, and
with nothing of them after it. The unit is one device (a household). The cohort is sampled by Poisson, for real; every
update is clipped to C; the sum gets Gaussian noise and is divided by q N, a public constant. A device that is sampled
and does not answer, or answers nonsense, contributes zero, which changes no sensitivity.

The ledger is written, and on the disk, before the noise of a round is drawn. So a crash can only leave a round that was
paid for and not used, never one that was used and not paid for. On resuming,

- with seeded (simulation) noise the lost round is computed again: the same cohort, the same noise, the same release,
  hence nothing new is paid and the run ends bit for bit where an undisturbed one does;
- with secure noise it stays spent, the model did not move in it, and the run goes on with the next. The number of
  releases never exceeds the planned one.

What goes into the history is public: it is the configuration, or a function of what was released. How many devices
came,
their names and their losses are shown to the operator while the run lasts, and not written.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from flwr.app import ArrayRecord
from flwr.serverapp import Grid
from torch import Tensor

from federated import wire
from federated.accounts import Account, PrivateAccount, open_account
from federated.bounded import SecureAccount
from federated.checkpoint import Checkpoints, Facts, RoundState
from federated.gate import Admitted, Rejection, admit
from federated.modes import least_contributors
from federated.roster import Roster
from federated.secure_aggregation import SecureAggregationError
from federated.secure_aggregation.plan import SecurePlan
from federated.secure_rounds import SecureRounds
from federated.server_optimiser import ServerOptimiser
from federated.settings import FederatedConfig
from federated.vector import check_vector, norm_quantiles

logger = logging.getLogger(__name__)

FEWEST_TO_JUDGE = 3  # of so many devices asked, all failing is a fault of the run and not of the devices


class RunFailed(RuntimeError):
    """The run cannot go on; the message says why, what is safe, and what to do."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, after everything was made safe; the message says where the run stands and how to go on."""


@dataclass(frozen=True)
class RoundFacts:
    """What is told after a round.

    Public: round (from 1), rounds, epsilon (spent so far; None without privacy), update_norm (L2 of the released mean),
    evaluation (noisy mean loss on the devices, where one was released; nats per token).
    For the operator only, never written by a private run: seconds, cohort, answered, rejections, bytes_up, bytes_down,
    loss (None in a private run: devices do not send it), norms (of the updates: ``vector.norm_quantiles``; empty in a
    private run).
    """

    round: int
    rounds: int
    epsilon: float | None
    update_norm: float
    seconds: float = field(compare=False)
    cohort: int
    answered: int
    rejections: tuple[Rejection, ...]
    bytes_up: int
    bytes_down: int
    loss: float | None
    norms: tuple[float, ...] = ()
    evaluation: float | None = None

    def public(self) -> Facts:
        facts: Facts = {"round": self.round, "epsilon": self.epsilon, "update_norm": self.update_norm}
        return facts if self.evaluation is None else {**facts, "evaluation": self.evaluation}


@dataclass
class Job:
    """Everything a run needs beside the grid.

    initial: [d] float32, the adapters before the first round. layout: of the vector (``AdapterVector.layout``).
    run_dir: gets ``rounds/`` with the checkpoints and, in a private run, ``ledger.jsonl``.
    timeout: seconds to wait for a round's replies; None waits for all of them. may_be_empty: a round whose devices are
    all away is a round without updates (a simulated night) and no fault of the run. after_release: a function of the
    released mean ``[d]`` and public constants only (post-processing), applied before the server's step.
    """

    settings: FederatedConfig
    initial: Tensor
    layout: str
    run_dir: Path
    progress: Callable[[RoundFacts], None] | None = None
    timeout: float | None = None
    may_be_empty: bool = False
    after_release: Callable[[Tensor], Tensor] | None = None


@dataclass(frozen=True)
class Result:
    """vector: [d] float32, the trained adapters. history: public facts, one dict a round. lost: rounds that were spent
    in a crash without moving the model. epsilon: spent (None without privacy). ledger: its file, or None.
    """

    vector: Tensor
    history: tuple[Facts, ...]
    lost: tuple[int, ...]
    epsilon: float | None
    noise_multiplier: float | None
    ledger: Path | None


class Rounds:
    """One run's server side. ``run()`` begins or resumes it, by what the run directory holds."""

    def __init__(self, grid: Grid, job: Job) -> None:
        check_vector(job.initial, job.initial.numel())
        self.grid = grid
        self.job = job
        self.settings = job.settings
        self.dimension = job.initial.numel()
        self.checkpoints = Checkpoints(job.run_dir / "rounds", job.settings.fingerprint())
        self.optimiser = ServerOptimiser(job.settings.server, self.dimension)
        self.roster = Roster(grid, job.settings.households)
        self.vector = job.initial.clone()
        self.lost: tuple[int, ...] = ()
        self.history: list[Facts] = []
        self._secure: SecureRounds | None = None
        self._contributors = 0

    def run(self) -> Result:
        """Train to the last round. Raises Interrupted, RunFailed, CheckpointError, BudgetExceeded or OSError, each
        leaving a run directory that the next call resumes.
        """
        settings = self.settings
        self.job.run_dir.mkdir(parents=True, exist_ok=True)
        state = self.checkpoints.latest()
        account = open_account(settings, self.job.run_dir, fresh=state is None)
        first = self._resume(state, account)
        try:
            for number in range(first, settings.rounds):
                self._round(number, account)
        except KeyboardInterrupt:
            raise Interrupted(self._where()) from None
        return Result(
            vector=self.vector,
            history=tuple(self.history),
            lost=self.lost,
            epsilon=account.epsilon(),
            noise_multiplier=account.noise_multiplier,
            ledger=account.path,
        )

    def _resume(self, state: RoundState | None, account: Account) -> int:
        """Take up the newest checkpoint; returns the number of the round to begin with."""
        done = 0
        if state is not None:
            check_vector(state.vector, self.dimension)
            self.vector, done, self.lost = state.vector, state.rounds_done, state.lost
            self.history = list(state.history)
            self.optimiser.load(state.optimiser, state.optimiser_steps)
            account.load(state.account)
            logger.info("resuming after round %d of %d", done, self.settings.rounds)
        paid = account.rounds_paid(done)
        if paid > done and not account.repeatable:
            lost = tuple(range(done, paid))
            self.lost += lost
            logger.warning(
                "%s spent in an earlier crash without moving the model; going on with round %d of %d",
                f"round {done + 1} was" if len(lost) == 1 else f"rounds {done + 1} to {paid} were",
                paid + 1,
                self.settings.rounds,
            )
            return paid
        return done

    def _round(self, number: int, account: Account) -> None:
        began = time.monotonic()
        account.ask(number)  # before anything is trained: a round that may not be released is not begun
        self.roster.refresh()
        if isinstance(account, SecureAccount):
            cohort, admitted, mean, bytes_up, bytes_down = self._secure_sum(number, account)
        else:
            cohort, admitted, mean, bytes_up, bytes_down = self._sum(number, account)
        for rejection in admitted.rejections:
            level = logging.INFO if rejection.absent else logging.WARNING
            logger.log(level, "round %d: device %d was dropped: %s", number + 1, rejection.device, rejection.reason)
        if mean is None:
            self.lost += (number,)
        else:
            if self.job.after_release is not None:
                mean = self.job.after_release(mean)
            self.vector = self.optimiser.step(self.vector, mean)
        # A private run's devices send no loss. Should one do so all the same, nothing pays for it: it is not looked at.
        losses = () if self.settings.private else admitted.losses
        evaluated = None
        if isinstance(account, PrivateAccount) and account.evaluates(number):
            evaluated = account.release_losses(number, self._losses(account.evaluation_cohort(number), number))
        facts = RoundFacts(
            round=number + 1,
            rounds=self.settings.rounds,
            epsilon=account.epsilon(),
            update_norm=0.0 if mean is None else float(torch.linalg.vector_norm(mean)),
            seconds=time.monotonic() - began,
            cohort=len(cohort),
            answered=len(admitted.updates) if not isinstance(account, SecureAccount) else self._contributors,
            rejections=admitted.rejections,
            bytes_up=bytes_up,
            bytes_down=bytes_down,
            loss=sum(losses) / len(losses) if losses else None,
            norms=() if self.settings.private else norm_quantiles(admitted.updates.values()),
            evaluation=evaluated,
        )
        self.history.append(facts.public())
        self.checkpoints.save(
            RoundState(
                rounds_done=number + 1,
                vector=self.vector,
                optimiser=self.optimiser.state(),
                optimiser_steps=self.optimiser.steps,
                fingerprint=self.checkpoints.fingerprint,
                lost=self.lost,
                history=tuple(self.history),
                account=account.state(),
            )
        )
        if self.job.progress is not None:
            self.job.progress(facts)

    def _sum(self, number: int, account: Account) -> tuple[list[int], Admitted, Tensor | None, int, int]:
        """A round in which the server sees single updates: (cohort, what was admitted, mean, bytes up, bytes down)."""
        cohort = account.cohort(number, self.roster.present())
        admitted, bytes_up, bytes_down = self._train(cohort, number)
        away = self.job.may_be_empty and all(rejection.absent for rejection in admitted.rejections)
        if len(cohort) >= FEWEST_TO_JUDGE and not admitted.updates and not away:
            reasons = {rejection.reason for rejection in admitted.rejections}
            raise RunFailed(
                f"all {len(cohort)} devices of round {number + 1} failed "
                f"({'; '.join(sorted(reasons)[:2])}); nothing was "
                "released or spent in it. Mend the cause and start again to resume."
            )
        return cohort, admitted, account.release(number, admitted.updates, self.dimension), bytes_up, bytes_down

    def _secure_sum(self, number: int, account: SecureAccount) -> tuple[list[int], Admitted, Tensor | None, int, int]:
        """A round in which the server sees a noisy sum only. The mean is None where the sum was given up after paying."""
        assert account.noise_multiplier is not None
        if self._secure is None:
            plan = SecurePlan.of(self.settings, account.noise_multiplier, self.dimension)
            self._secure = SecureRounds(self.grid, self.roster, plan, self.job.layout, self.job.timeout)
        failures: list[str] = []
        for _ in range(self.settings.secure.attempts):
            cohort = account.cohort(number, self.roster.present())
            if len(cohort) < (least := least_contributors(self.settings)):
                failures.append(f"{len(cohort)} devices are there that may take part, and {least} are needed")
                break
            try:
                gathered = self._secure.gather(cohort, number, self.vector)
            except SecureAggregationError as error:
                logger.warning("round %d: a secure sum was given up: %s", number + 1, error)
                failures.append(str(error))
                account.spoilt(number)
                continue
            try:
                mean = account.release_sum(number, gathered.contributors, gathered.reveal)
            except SecureAggregationError as error:
                logger.warning("round %d was paid for, and its sum could not be unmasked: %s", number + 1, error)
                mean = None
            self._contributors = len(gathered.contributors)
            everything = Admitted({}, tuple(gathered.rejections), ())
            return cohort, everything, mean, gathered.bytes_up, gathered.bytes_down
        raise RunFailed(
            f"round {number + 1} has no secure sum after {len(failures)} attempts ({failures[-1]}); nothing was revealed. "
            "Start again when more devices are there."
        )

    def _losses(self, cohort: list[int], number: int) -> dict[int, float]:
        """The loss of each device of ``cohort`` that answered with a number. For the account's eyes only."""
        content = wire.request(wire.to_array(self.vector), number, self.job.layout)
        nodes = {device: node for device in cohort if (node := self.roster.node(device)) is not None}
        messages = [self.grid.create_message(content, wire.EVALUATE, node, str(number + 1)) for node in nodes.values()]
        replies = self.grid.send_and_receive(messages, timeout=self.job.timeout) if messages else []
        asked = {message.metadata.message_id: device for message, device in zip(messages, nodes, strict=True)}
        losses: dict[int, float] = {}
        for reply in replies:
            device = asked.pop(reply.metadata.reply_to_message_id, None)
            facts = None if reply.has_error() else reply.content.metric_records.get(wire.FACTS)
            loss = None if facts is None else facts.get("loss")
            if device is not None and isinstance(loss, float) and math.isfinite(loss):
                losses[device] = max(0.0, loss)
        return losses

    def _train(self, cohort: list[int], number: int) -> tuple[Admitted, int, int]:
        """Send the vector to the cohort and gather what came back: (admitted, bytes up, bytes down)."""
        vector = wire.to_array(self.vector)
        content = wire.request(vector, number, self.job.layout)  # one for all: a grid copies or serialises it
        messages, devices, absent = [], [], []
        for device in cohort:
            node = self.roster.node(device)
            if node is None:
                absent.append(Rejection(device, "it is not connected", absent=True))
                continue
            messages.append(
                self.grid.create_message(content, message_type=wire.TRAIN, dst_node_id=node, group_id=str(number + 1))
            )
            devices.append(device)
        replies = list(self.grid.send_and_receive(messages, timeout=self.job.timeout)) if messages else []
        asked = {message.metadata.message_id: device for message, device in zip(messages, devices, strict=True)}
        admitted = admit(replies, asked, self.dimension, self.settings.codec, most_norm=self.settings.gate_norm)
        up = sum(
            len(array.data)
            for reply in replies
            if reply.has_content()
            for record in reply.content.values()
            if isinstance(record, ArrayRecord)
            for array in record.values()
        )
        everything = Admitted(admitted.updates, (*admitted.rejections, *absent), admitted.losses)
        return everything, up, len(vector.data) * len(messages)

    def _where(self) -> str:
        state = self.checkpoints.latest()
        done = 0 if state is None else state.rounds_done
        return (
            f"Stopped after round {done} of {self.settings.rounds}; everything up to "
            f"there is saved in {self.job.run_dir}, "
            "and the same command goes on from it."
        )
