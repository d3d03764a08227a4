"""Accounting: epsilon and time of each accountant on the oracle settings, calibration, and a budget over a long run.

    python benchmarks/accounting.py [--repeat 3] [--slow]

Prints one line per setting with epsilon and CPU seconds by accountant (caches cleared before each), then calibration,
a budget asked before every one of 3000 steps, and resolving a million events. --slow adds users with several examples
by dp-accounting (minutes). Times are CPU seconds of this process, the least of the repeats.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

from privacy.accounting import BudgetExceeded, calibrate_noise, epsilon, resolve
from privacy.accounting import epsilon as price
from privacy.accounting.discretise import loss_grids
from privacy.accounting.epsilon import _priced
from privacy.accounting.pld import _composed, _single
from privacy.accounting.prv import prv_epsilon
from privacy.accounting.rdp import _one_step
from privacy.budget import Budget
from privacy.events import GaussianRelease, Sampling

SETTINGS = {
    "A": (4.0, 0.01, 10000, 1e-5),
    "B": (1.3, 256 / 60000, 3515, 1e-5),
    "C": (1.1, 256 / 60000, 14062, 1e-5),
    "D": (0.7, 256 / 60000, 10546, 1e-5),
    "E": (1.5, 0.04, 2250, 1e-5),
    "G": (0.7, 1024 / 42061, 411, 8e-6),
    "H": (0.48, 98304 / 233e6, 6000, 1 / (2 * 233e6)),
    "M": (0.8, 256 / 30000, 3000, 1e-5),
    "N": (1.0, 0.05, 100, 1e-5),
    "O": (0.8, 0.05, 1000, 1e-6),
}
ACCOUNTANTS = ("rdp", "prv", "pld", "own")


def clear() -> None:
    """Forget every cached mechanism."""
    for cached in (_priced, _single, _composed, prv_epsilon, _one_step, loss_grids):
        cached.cache_clear()


def seconds(call: Callable[[], object], repeat: int) -> tuple[float, object]:
    """The least CPU time of `repeat` calls without caches, and the result."""
    best, result = float("inf"), None
    for _ in range(repeat):
        clear()
        start = time.process_time()
        result = call()
        best = min(best, time.process_time() - start)
    return best, result


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--slow", action="store_true", help="users with several examples by dp-accounting, too")
    options = parser.parse_args()
    for name in ACCOUNTANTS:  # imports are paid once, and not measured
        price([GaussianRelease(1.0)], 1e-5, name)  # type: ignore[arg-type]
    print("epsilon (CPU seconds)")
    print("     " + "".join(f"{name:>20}" for name in ACCOUNTANTS) + f"{'own - pld':>12}")
    for key, (sigma, rate, steps, delta) in SETTINGS.items():
        events = [GaussianRelease(sigma, Sampling("poisson", rate), count=steps)]
        cells, values = [], {}
        for name in ACCOUNTANTS:
            spent, value = seconds(lambda e=events, d=delta, n=name: epsilon(e, d, n), options.repeat)
            values[name] = float(value)  # type: ignore[arg-type]
            cells.append(f"{values[name]:11.5f} ({spent:5.2f})")
        print(f"{key:>4} " + " ".join(f"{cell:>19}" for cell in cells) + f"{values['own'] - values['pld']:12.1e}")

    print("\nsetting M under other assumptions (own, CPU seconds)")
    poisson = Sampling("poisson", 256 / 30000)
    others = {
        "replace one": GaussianRelease(0.8, poisson, count=3000, adjacency="replace_one"),
        "at most 320 per batch": GaussianRelease(
            0.8, Sampling("truncated_poisson", 256 / 30000, population=30000, max_batch=320), count=3000
        ),
        "at most 288 per batch": GaussianRelease(
            0.8, Sampling("truncated_poisson", 256 / 30000, population=30000, max_batch=288), count=3000
        ),
        "shuffled, 26 epochs": GaussianRelease(0.8, Sampling("shuffle", population=30000, batch=256), count=3000),
        "a user with 2 examples": GaussianRelease(0.8, poisson, count=3000, contributions_per_unit=2),
        "a user with 4 examples": GaussianRelease(0.8, poisson, count=3000, contributions_per_unit=4),
        "a user with 8 examples": GaussianRelease(0.8, poisson, count=3000, contributions_per_unit=8),
    }
    for label, event in others.items():
        spent, value = seconds(lambda e=event: epsilon([e], 1e-5, "own"), 1)
        line = f"{label:>24} {value:9.4f} ({spent:.2f})"
        if options.slow and event.adjacency != "replace_one":
            spent, value = seconds(lambda e=event: epsilon([e], 1e-5, "pld"), 1)
            line += f"   dp-accounting {value:9.4f} ({spent:.2f})"
        print(line)

    print("\ncalibration to epsilon 3 at delta 1e-5 (CPU seconds)")
    for name in ACCOUNTANTS:
        spent, noise = seconds(
            lambda n=name: calibrate_noise(3.0, 1e-5, sampling=poisson, steps=3000, accountant=n), options.repeat
        )
        print(f"{name:>6} noise {noise:.5f} ({spent:.2f})")

    print("\na budget asked before every step, until it refuses")
    noise = calibrate_noise(3.0, 1e-5, sampling=poisson, steps=3000)
    for name in ("pld", "own"):
        clear()
        budget, event, steps = Budget(3.0, 1e-5, name), GaussianRelease(noise, poisson), 0  # type: ignore[arg-type]
        start = time.process_time()
        try:
            while True:
                budget.spend(event)
                steps += 1
        except BudgetExceeded:
            pass
        print(f"{name:>6} {steps} steps, {time.process_time() - start:.2f} s")

    event = GaussianRelease(1.0, poisson)
    start = time.process_time()
    resolve(event for _ in range(1_000_000))
    print(f"\nresolving a million events: {time.process_time() - start:.2f} s")


if __name__ == "__main__":
    main()
