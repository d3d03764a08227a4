"""The privacy-random-variable accountant of Opacus (Gopi, Lee, Wutschitz 2106.02848).

It prices Poisson-sampled Gaussian sums under add-or-remove (and zero-out) with one record per unit, and Gaussians.
Anything else raises. It returns its upper bound: the estimate plus `eps_error`. Importing opacus starts torch (three
seconds), once.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

from privacy.accounting.mechanisms import AccountingError, Composition, Gaussian, Poisson, UnsupportedEvent, condense

EPS_ERROR = 0.01


def _history(composition: Composition) -> list[tuple[float, float, int]]:
    history = []
    for mechanism, count in composition.parts:
        match mechanism:
            case Gaussian(mu=mu):
                history.append((1.0 / mu, 1.0, count))
            case Poisson(rate=rate, sigma=sigma, group=1, replace=False):
                history.append((sigma, rate, count))
            case _:
                raise UnsupportedEvent(
                    f"Opacus' PRV accountant was given {type(mechanism).__name__}; expected Poisson sampling under "
                    "add-or-remove with one record per unit. Use the accountant 'own'."
                )
    return history


@contextmanager
def _grid_warnings_silenced() -> Iterator[None]:
    """Opacus asks its own Renyi accountant only how wide a grid has to be, with orders that nobody can choose from outside.

    Where its largest order fits best ("Optimal order is the largest alpha"), the grid is wider than need be: slower, and
    epsilon is the same. Our own Renyi numbers use more orders and do not come by this way.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Optimal order is the (largest|smallest) alpha")
        yield


@lru_cache(maxsize=64)
def prv_epsilon(composition: Composition, delta: float, *, eps_error: float = EPS_ERROR) -> float:
    """Upper bound on epsilon at delta: Opacus' estimate plus eps_error.

    Raises UnsupportedEvent for a mechanism it does not price, AccountingError where Opacus' numerics give up (delta
    far below 1e-9, or hardly any privacy loss).
    """
    if composition.empty:
        return 0.0
    history = _history(condense(composition))
    import numpy as np
    from opacus.accountants import PRVAccountant

    accountant = PRVAccountant()
    accountant.history = history
    try:
        with np.errstate(all="ignore"), _grid_warnings_silenced():
            result = float(accountant.get_epsilon(delta, eps_error=eps_error))
    except (RuntimeError, ValueError, OverflowError) as error:
        raise AccountingError(
            f"Opacus' PRV accountant gave up on these events ({error}); use 'pld' or 'own'."
        ) from error
    if not np.isfinite(result):
        raise AccountingError("Opacus' PRV accountant returned no finite epsilon for these events; use 'pld' or 'own'.")
    return max(0.0, result)
