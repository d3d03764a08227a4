"""Renyi accounting: the formulas of Opacus and of dp-accounting, of which the larger epsilon counts.

Poisson: Mironov, Talwar, Zhang 1908.10530, which covers both directions of add-or-remove. Opacus evaluates a
fractional order exactly (quadrature agrees to 1e-5); dp-accounting bounds it from above, by up to 0.4 % of epsilon.
Both are upper bounds, and with the larger one an error in either cannot lower the result. Fixed-size subsets under
replace_one: Wang, Balle, Kasiviswanathan 1808.00087 (dp-accounting only), whose noise is relative to the distance 2 of
a replacement. Gaussian: alpha mu^2 / 2. Conversion to (epsilon, delta): Balle et al. 1905.09982, Theorem 21.
Everything else raises.

Opacus' formulas live in one file that needs numpy and scipy only, but importing it as a package starts torch (three
seconds). Where nobody has imported opacus yet, that file is loaded by itself.
"""

from __future__ import annotations

import importlib.util
import logging
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from privacy.accounting.mechanisms import (
    AccountingError,
    Composition,
    FixedSubset,
    Gaussian,
    Mechanism,
    Poisson,
    UnsupportedEvent,
)

Array = NDArray[np.float64]

# Opacus' own orders, then larger ones: with much noise the best order is larger than 63.
ORDERS: tuple[float, ...] = (
    *(1 + x / 10.0 for x in range(1, 100)),
    *(float(x) for x in range(12, 64)),
    *(64.0, 72.0, 80.0, 96.0, 112.0, 128.0, 160.0, 192.0, 256.0, 384.0, 512.0, 768.0, 1000.0),
)


@lru_cache(maxsize=1)
def opacus_rdp() -> ModuleType:
    """Opacus' module `accountants.analysis.rdp`, without the rest of Opacus where possible."""
    name = "opacus.accountants.analysis.rdp"
    if name in sys.modules:
        return sys.modules[name]
    package = importlib.util.find_spec("opacus")
    if package is None or package.origin is None:
        raise AccountingError("opacus is not installed; install it, or use the accountant 'own'.")
    path = Path(package.origin).parent / "accountants" / "analysis" / "rdp.py"
    spec = importlib.util.spec_from_file_location("privacy_opacus_rdp", path)
    if spec is None or spec.loader is None:
        raise AccountingError(f"opacus has no file {path.name} where version 1.6 keeps it; use the accountant 'own'.")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _opacus(rate: float, sigma: float) -> Array:
    """RDP of one Poisson step at ORDERS [O] by Opacus; inf where its series does not converge."""
    result = []
    for order in ORDERS:
        try:
            value = float(opacus_rdp().compute_rdp(q=rate, noise_multiplier=sigma, steps=1, orders=order))
        except (ValueError, OverflowError, ZeroDivisionError, FloatingPointError):
            value = math.inf
        result.append(value if math.isfinite(value) and value >= 0.0 else math.inf)
    return np.array(result)


@contextmanager
def _quiet() -> Iterator[None]:
    """dp-accounting logs every order whose series does not converge; such an order is infinite here, which is safe."""
    logger = logging.getLogger("absl")
    logger.addFilter(_never)
    try:
        yield
    finally:
        logger.removeFilter(_never)


def _never(record: logging.LogRecord) -> bool:
    return False


def _dp_accounting(mechanism: Poisson | FixedSubset) -> Array:
    """RDP of one step at ORDERS [O] by dp-accounting."""
    import dp_accounting
    from dp_accounting import rdp

    if isinstance(mechanism, Poisson):
        relation = dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE
        event = dp_accounting.PoissonSampledDpEvent(
            sampling_probability=mechanism.rate, event=dp_accounting.GaussianDpEvent(mechanism.sigma)
        )
    else:
        relation = dp_accounting.NeighboringRelation.REPLACE_ONE
        event = dp_accounting.SampledWithoutReplacementDpEvent(
            source_dataset_size=mechanism.population,
            sample_size=mechanism.batch,
            event=dp_accounting.GaussianDpEvent(mechanism.sigma / 2.0),
        )
    accountant = rdp.RdpAccountant(orders=list(ORDERS), neighboring_relation=relation)
    with _quiet():
        accountant.compose(event)
    return np.asarray(accountant._rdp, dtype=np.float64)


@lru_cache(maxsize=256)
def _one_step(mechanism: Mechanism) -> tuple[Array, ...]:
    """RDP of one step at ORDERS [O], by each implementation; inf where a series does not converge."""
    match mechanism:
        case Gaussian(mu=mu):
            return (np.array(ORDERS) * mu * mu / 2.0,)
        case Poisson(rate=rate, sigma=sigma, group=1, replace=False):
            return _opacus(rate, sigma), _dp_accounting(mechanism)
        case FixedSubset():
            return (_dp_accounting(mechanism),)
    raise UnsupportedEvent(
        f"no Renyi bound is used here for {type(mechanism).__name__} with these settings; use the accountant 'own'."
    )


def rdp_curves(composition: Composition) -> list[Array]:
    """RDP of the whole composition at ORDERS [O], by each implementation: [Opacus, dp-accounting], or one of them.

    Raises UnsupportedEvent for a mechanism without a Renyi bound.
    """
    found = [(_one_step(mechanism), count) for mechanism, count in composition.parts]
    many = max((len(curves) for curves, _ in found), default=0)
    totals = [np.zeros(len(ORDERS)) for _ in range(many)]
    for curves, count in found:
        for i, total in enumerate(totals):
            total += count * curves[min(i, len(curves) - 1)]
    return totals


def curve_epsilon(curve: Array, delta: float) -> float:
    """epsilon at delta of one RDP curve at ORDERS [O]; inf where no order converged."""
    finite = np.isfinite(curve)
    if not finite.any():
        return math.inf
    orders = np.array(ORDERS)[finite]
    values = curve[finite] - (math.log(delta) + np.log(orders)) / (orders - 1) + np.log((orders - 1) / orders)
    return max(0.0, float(np.min(values)))


def rdp_epsilon(composition: Composition, delta: float) -> float:
    """Upper bound on epsilon at delta. Raises UnsupportedEvent for a mechanism without a Renyi bound."""
    return max((curve_epsilon(curve, delta) for curve in rdp_curves(composition)), default=0.0)


def rdp_delta(composition: Composition, epsilon: float) -> float:
    """Upper bound on delta at epsilon: the same conversion, solved for delta."""
    worst = 0.0
    for curve in rdp_curves(composition):
        finite = np.isfinite(curve)
        if not finite.any():
            return 1.0
        orders = np.array(ORDERS)[finite]
        log_delta = (orders - 1) * (curve[finite] - epsilon + np.log((orders - 1) / orders)) - np.log(orders)
        worst = max(worst, math.exp(min(0.0, float(np.min(log_delta)))))
    return worst
