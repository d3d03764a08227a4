"""`mmslm audit --empirical` on a run of every privacy mode: attacked, checked, written down, and loud on a planted bug."""

from __future__ import annotations

import shutil
from html import unescape

import pytest
import torch
from apps_mode_runs import MODES, report_of

from apps import cli
from federated import adaptive, bounded, on_device
from federated.secure_aggregation.plan import SecurePlan
from federated.secure_aggregation.ring import Ring
from privacy.audit.empirical import claim
from privacy.correlated import CorrelatedNoise
from privacy.mechanism import GaussianSum
from privacy.noise import SeededNoise
from privacy.report import read_report

CHECKED = {"noise", "sensitivity", "sampler"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """mode -> its finished run, made when it is first asked for."""
    made = {}

    def run(mode):
        if mode not in made:
            made[mode] = tmp_path_factory.mktemp(mode) / "run"
            report_of(mode, made[mode])
        return made[mode]

    return run


@pytest.fixture
def attack(finished, tmp_path, capsys, monkeypatch):
    """attack(mode) -> (exit code, what was printed, the report, the page)."""
    # A coarse search for the second bound: pricing many amounts of noise takes most of the time.
    monkeypatch.setattr(claim, "_PRECISION", 3.0)
    monkeypatch.setattr(claim, "_MOST_NOISE", 2.0)

    def attacked(mode):
        run = tmp_path / "run"
        shutil.copytree(finished(mode), run)
        before = {path.name for path in run.iterdir()}
        code = cli.main(["audit", "--empirical", str(run), "--canaries", "60", "--households", "0", "--seed", "1"])
        assert {path.name for path in run.iterdir()} - before <= {"report.html"}, "the attack leaves nothing behind"
        told = capsys.readouterr()
        return code, told.out + told.err, read_report(run), unescape((run / "report.html").read_text())

    return attacked


@pytest.mark.parametrize("mode", sorted(MODES))
def test_an_honest_run_is_attacked_checked_and_passes(mode, attack):
    code, told, report, page = attack(mode)
    assert code == 0, told
    first, *others = report["audit"]
    assert {check["check"] for check in first["details"]["checks"]} >= CHECKED
    assert all(check["passed"] for check in first["details"]["checks"]), first
    assert all(entry["lower_bound"] <= report["claim"]["epsilon"] for entry in [first, *others])
    assert "sensitivity: kept" in told and "sensitivity: kept" in page
    events_alone = first["details"]["attacked"] == "the report's events, replayed"
    assert events_alone == (mode == "device")
    assert first["m"] == (12 if mode == "secure" else 60)
    limits = first["details"].get("not_shown", [])
    assert bool(limits) == (mode in ("secure", "device", "evaluated"))
    assert all(f"not shown: {sentence}" in told and sentence[:40] in page for sentence in limits)
    if mode == "evaluated":
        assert "evaluation noise: kept" in told and "evaluation sensitivity: kept" in told


def unclipped(vector, clip_norm):
    return vector.double(), False, True


def drawn_once(self, total, step):
    self.noise.add_(total, self.std, step=0)
    return (total / self.divisor).float()


def correlated_once(self, shape, std, *, step, stream=0, dtype=torch.float32):
    return self.source.normal(shape, std, step=0, dtype=dtype)


def quiet_shares(self, simulated_by):
    return torch.zeros(self.dimension, dtype=torch.int64).numpy()


def unbounded(self, vector):
    return (vector.clip(-1e6, 1e6) * self.scale).astype("int64").astype("uint32")


BUGS = {
    ("adaptive", "noise"): (GaussianSum, "_finish", drawn_once),
    ("adaptive", "sensitivity"): (adaptive, "clip_vector", unclipped),
    ("evaluated", "noise"): (GaussianSum, "_finish", drawn_once),
    ("bounded", "noise"): (CorrelatedNoise, "normal", correlated_once),
    ("bounded", "sensitivity"): (bounded, "clip_vector", unclipped),
    ("secure", "noise"): (SecurePlan, "noise", quiet_shares),
    ("secure", "sensitivity"): (Ring, "encode", unbounded),
    ("device", "noise"): (SeededNoise, "_stream", None),
    ("device", "sensitivity"): (on_device, "FlatClip", None),
}


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "promise"), BUGS, ids=[" ".join(bug) for bug in BUGS])
def test_a_bug_in_the_modes_own_path_fails_the_audit(mode, promise, finished, attack, monkeypatch):
    finished(mode)  # the run itself was honest: the attack looks at the code as it is now
    place, name, bug = BUGS[mode, promise]
    if (mode, promise) == ("device", "noise"):
        stream = SeededNoise._stream

        def bug(self, step, number, size):
            return stream(self, 0, number, size)
    elif mode == "device":
        clip = on_device.FlatClip

        def bug(norm):
            return clip(100 * norm)

    monkeypatch.setattr(place, name, bug)
    if promise == "sensitivity" and mode == "adaptive":
        monkeypatch.setattr("privacy.mechanism.clip_vector", unclipped)
    code, told, report, page = attack(mode)
    assert code == 1
    broken = {check["check"] for check in report["audit"][0]["details"]["checks"] if not check["passed"]}
    assert promise in broken
    if mode != "device":  # there the noise follows from the norm that the engine was told
        assert {check.split()[-1] for check in broken} == {promise}
    assert f"{promise}: BROKEN" in told and "A promise was found broken" in told
    assert "<strong>BROKEN</strong>" in page


def test_a_report_of_a_bounded_run_alone_says_what_to_do(finished, tmp_path, capsys):
    shutil.copy(finished("bounded") / "report.json", tmp_path / "alone.json")
    assert cli.main(["audit", "--empirical", str(tmp_path / "alone.json"), "--canaries", "60"]) == 2
    assert "give the run's folder" in capsys.readouterr().err
