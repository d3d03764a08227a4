"""How strong the one-run audit is on the ideal Gaussian mechanism, with standard errors, and whether another k would help.

    python benchmarks/empirical_power.py [runs per cell, default 1000]

Each cell draws its runs from one seed. `default` is the k that the audit takes; `best` the largest mean over many k, each
fixed beforehand: what nobody who fixes k can beat by more than the noise of choosing the best.
"""

from __future__ import annotations

import math
import sys
import time
from functools import cache

import numpy as np

from privacy.accounting.summary import gaussian_mu
from privacy.audit.empirical.one_run import Method, gdp_bound, gdp_epsilon, guesses, steinke_bound

DELTA, SIGNIFICANCE = 1e-5, 0.05
FACTORS = (0.6, 0.8, 1.0, 1.3, 1.6, 2.0, 2.5, 3.0, 4.0)  # of the root of m


@cache
def bound(method: Method, m: int, r: int, v: int) -> float:
    if method == "steinke":
        return steinke_bound(m, r, v, DELTA, SIGNIFICANCE)
    return gdp_epsilon(gdp_bound(m, r, v, SIGNIFICANCE), DELTA)


def main(runs: int) -> None:
    print(f"{'epsilon':>7} {'m':>5} {'method':<8} {'default':>14} {'above truth':>12} {'best k':>16}")
    began = time.process_time()
    for epsilon in (2, 4, 8):
        for m in (100, 1000):
            rng = np.random.default_rng([epsilon, m])
            coins = rng.random((runs, m)) < 0.5
            order = np.argsort(rng.standard_normal((runs, m)) + gaussian_mu(epsilon, DELTA) * coins, axis=1)
            ranked = np.take_along_axis(coins, order, 1)
            top, bottom = np.cumsum(ranked[:, ::-1], 1), np.cumsum(~ranked, 1)
            methods: tuple[Method, ...] = ("steinke", "f-dp")
            for method in methods:
                chosen = guesses(m, method)
                found = {
                    k: np.array([bound(method, m, 2 * k, int(v)) for v in top[:, k - 1] + bottom[:, k - 1]])
                    for k in {chosen, *(round(f * math.sqrt(m)) for f in FACTORS)}
                }
                values = found[chosen]
                best = max(found, key=lambda k: float(found[k].mean()))
                print(
                    f"{epsilon:>7} {m:>5} {method:<8} {values.mean():7.3f} ±{values.std() / math.sqrt(runs):.3f} "
                    f"{(values > epsilon).mean():>11.1%} {found[best].mean():9.3f} (k={best})",
                    flush=True,
                )
    print(f"{time.process_time() - began:.0f} CPU seconds")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000)
