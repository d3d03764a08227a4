"""Settings of a federated run: one pydantic model, frozen, unknown keys refused.

The same settings reach the apps in two ways: as the ``federated`` section of a run's YAML, and as the flat keys of
Flower's run configuration (``server.learning-rate``), which knows only str, int, float and bool. The two forms convert
into each other without loss.

What it refuses: a privacy budget that promises nothing (delta of 1/N or more), a cohort that is expected to hold less
than one device, privacy modes that do not go together, and settings that would be ignored silently (``federated.modes``
has the rules).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from federated.modes import PRIVACY_MODES, check_modes

CodecName = Literal["fp32", "bf16", "int8", "topk"]
AggregatorName = Literal["mean", "clipped_mean", "trimmed_mean", "median", "krum", "multi_krum"]
Scalar = bool | int | float | str
Trust = Literal["central", "secure_aggregation", "device"]
_EMPTY: dict[str, Scalar] = {
    "noise-multiplier": 0.0,
    "gate-norm": 0.0,
    "adapters.layers": "",
}  # what stands for None in the flat form


class Section(BaseModel):
    """A part of the settings: frozen, and unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class ServerOptimiserConfig(Section):
    """How the server turns the noisy mean update into a step (post-processing: it costs no privacy).

    "sgd" is federated averaging; "momentum" and "adam" are FedAvgM and FedAdam (Reddi et al., 2021, "Adaptive Federated
    Optimization").
    """

    name: Literal["sgd", "momentum", "adam"] = "adam"
    learning_rate: float = Field(default=0.01, gt=0, le=100, description="server step; 1 with sgd is plain averaging")
    decay_rounds: int = Field(
        default=0, ge=0, description="the rate falls linearly to a tenth over so many rounds; 0 keeps it"
    )
    beta1: float = Field(default=0.9, ge=0, lt=1, description="momentum, and Adam's first moment")
    beta2: float = Field(default=0.99, ge=0, lt=1, description="Adam's second moment")
    tau: float = Field(default=1e-8, gt=0, description="Adam's floor under the root of the second moment")


class AdapterConfig(Section):
    """The low-rank image experts that devices train; nothing else travels.

    train="b" keeps the seeded random A matrices frozen (FFA-LoRA; Sun et al., 2024): half the numbers, and the noisy
    mean of products is then the product of the mean.
    """

    rank: int = Field(default=4, ge=1, le=256)
    layers: tuple[int, ...] | None = Field(
        default=None, description="decoder layers that get experts; None is all of them"
    )
    train: Literal["b", "ab"] = "b"
    seed: int = Field(default=0, ge=0)
    include: tuple[Literal["decoder", "vision", "projector"], ...] = Field(
        default=("decoder",),
        min_length=1,
        description="parts that get experts; only with 'decoder' alone are image features reused",
    )


class BoundedConfig(Section):
    """Devices that come when they like: how soon and how often one may take part, and how the noise is correlated."""

    min_separation: int = Field(default=1, ge=1, description="fewest rounds from one participation to the next")
    max_participations: int = Field(default=1, ge=1, description="in the whole run; a device beyond it is turned away")
    bands: int = Field(default=1, ge=1, description="of the inverse encoder (DP-FTRL); 1 is fresh noise in every round")


class AdaptiveConfig(Section):
    """A clipping norm that follows a private quantile of the updates' norms (Andrew et al., 2021, 1905.03871)."""

    enabled: bool = False
    quantile: float = Field(default=0.5, gt=0, lt=1, description="the share of updates that should not be clipped")
    learning_rate: float = Field(default=0.2, gt=0, le=2, description="of the norm's logarithm")
    count_noise: float = Field(
        default=10.0, gt=0, description="noise on the count of unclipped updates, over its sensitivity of 1/2"
    )


class SecureConfig(Section):
    """Secure aggregation: of a cohort, how many must stay to the end, and how many may collude with the server."""

    threshold: float = Field(
        default=0.67, gt=0.5, le=1, description="share of the cohort without which there is no sum"
    )
    colluders: float = Field(
        default=0.0, ge=0, lt=0.5, description="share of the cohort whose noise is not counted on: they may tell it"
    )
    attempts: int = Field(default=3, ge=1, le=100, description="cohorts to try in one round before the run stops")


class OnDeviceConfig(Section):
    """DP-SGD inside the device: how a local step draws the device's own photos."""

    sampling_rate: float = Field(default=0.5, gt=0, le=1, description="the chance of each photo to be in a local step")


class PrivateEvaluationConfig(Section):
    """The loss on the devices' own photos while training, as a release of its own: a noisy sum of clipped losses."""

    every: int = Field(default=0, ge=0, description="rounds from one evaluation to the next; 0 is none")
    loss_bound: float = Field(default=10.0, gt=0, description="nats per token; a device's loss counts as no more")
    noise_multiplier: float = Field(default=10.0, gt=0, description="noise on the sum of losses, over loss_bound")


class FederatedConfig(Section):
    """One federated run. Field names are the keys of the YAML section ``federated``."""

    households: int = Field(..., ge=1, le=10_000_000, description="devices that exist: N, a public number")
    photos_per_household: int = Field(default=4, ge=1, le=10_000)
    turns_per_photo: int = Field(default=2, ge=1, le=16, description="captions and questions asked about one photo")
    rounds: int = Field(..., ge=1, le=1_000_000)
    sampling_rate: float = Field(..., gt=0, le=1, description="q: the chance of each device to be in a round's cohort")
    local_steps: int = Field(default=1, ge=1, le=10_000)
    local_learning_rate: float = Field(default=0.1, gt=0, le=1000)
    local_batch: int = Field(default=4, ge=1, le=10_000, description="photos in one local step")
    autocast: bool = Field(
        default=False,
        description="bfloat16 products in the local pass, where the processor has them; updates stay float32",
    )
    codec: CodecName = Field(default="fp32", description="how updates travel; topk keeps a residual on the device")
    gate_norm: float | None = Field(
        default=None, gt=0, description="an update longer than this (L2) is dropped and named; None judges no length"
    )
    aggregator: AggregatorName = Field(
        default="mean", description="how updates become one; all but mean only without a privacy claim"
    )
    hostile_share: float = Field(
        default=0.1, ge=0, lt=0.5, description="share of devices that trimmed_mean and krum are to withstand"
    )
    private: bool = Field(default=True, description="false: no clipping, no noise and no privacy claim (the ceiling)")
    clip_norm: float = Field(default=1.0, gt=0, description="C: L2 bound on one device's update")
    epsilon: float = Field(default=8.0, gt=0, le=1000, description="user-level budget")
    delta: float = Field(default=1e-5, gt=0, lt=1)
    accountant: Literal["rdp", "prv", "pld", "own"] = "pld"
    noise_multiplier: float | None = Field(
        default=None,
        gt=0,
        description="sigma, in units of C; None calibrates it to the budget, a number is held against it",
    )
    trust: Trust = Field(
        default="central",
        description="who may see what: the server single updates; or only sums, with noise from the devices; or each "
        "device protects its own photos",
    )
    participation: Literal["poisson", "bounded"] = Field(
        default="poisson", description="poisson: drawn in secret, amplified; bounded: who comes, within limits"
    )
    bounded: BoundedConfig = BoundedConfig()
    adaptive: AdaptiveConfig = AdaptiveConfig()
    secure: SecureConfig = SecureConfig()
    on_device: OnDeviceConfig = OnDeviceConfig()
    private_evaluation: PrivateEvaluationConfig = PrivateEvaluationConfig()
    server: ServerOptimiserConfig = ServerOptimiserConfig()
    adapters: AdapterConfig = AdapterConfig()
    noise: Literal["secure", "simulation"] = Field(
        default="secure",
        description="simulation: seeded, repeatable, for experiments; secure: the operating system's randomness",
    )
    seed: int = Field(default=0, ge=0, le=2**63 - 1)
    workers: int = Field(
        2, ge=1, le=256, description="threads of the in-process runtime; the result does not depend on it"
    )

    @model_validator(mode="after")
    def _check_whole(self) -> Self:
        units, unit = (
            (self.photos_per_household, "photos on a device")
            if self.trust == "device"
            else (self.households, "devices")
        )
        if self.private and self.delta * units >= 1:
            raise ValueError(
                f"delta is {self.delta:g} with {units} {unit}, which would permit publishing one of them; "
                f"give a delta below {1 / units:.3g}."
            )
        if self.private and self.aggregator != "mean":
            raise ValueError(
                f"aggregator {self.aggregator!r} was asked for together with privacy, whose noise is sized for a clipped "
                "sum: one device could move a robust mean further than C; leave aggregator out (clipping already bounds "
                "what one device can do), or say private: false."
            )
        if self.expected_cohort < 1:
            raise ValueError(
                f"sampling_rate {self.sampling_rate:g} of {self.households} devices expects {self.expected_cohort:.2g} "
                f"devices a round, and at least 1 is needed; raise sampling_rate to {1 / self.households:.3g} or more, "
                "or have more households."
            )
        check_modes(self)
        return self

    @property
    def expected_cohort(self) -> float:
        """q N: the public constant that a round's sum is divided by."""
        return self.sampling_rate * self.households

    @property
    def cohort(self) -> int:
        """Devices asked in a round where participation is bounded: q N, rounded, a public constant."""
        return max(1, round(self.expected_cohort))

    @property
    def divisor(self) -> float:
        """The public constant that a round's sum is divided by."""
        return self.expected_cohort if self.participation == "poisson" else float(self.cohort)

    def without_privacy(self) -> FederatedConfig:
        """The same run without clipping and noise: the ceiling that the private run is compared with."""
        plain = {name: type(self).model_fields[name].default for name in PRIVACY_MODES}
        return self.model_copy(update={"private": False, **plain})

    def fingerprint(self) -> str:
        """SHA-256 over all that decides the result; a run directory resumes only under an equal one.

        ``workers`` is left out: it changes the speed, not the numbers.
        """
        data = self.model_dump(mode="json", exclude={"workers"})
        return hashlib.sha256(json.dumps(data, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    def to_run_config(self) -> dict[str, Scalar]:
        """Flat keys for Flower's run configuration, all of them, because Flower overrides only keys that exist.

        It has no None and no tuples: a noise-multiplier to calibrate is 0, all layers are "", a tuple is "0,2,4".
        """
        flat: dict[str, Scalar] = {}
        for name, value in self.model_dump(mode="python").items():
            inner = value.items() if isinstance(value, dict) else ((None, value),)
            for part, scalar in inner:
                key = (name if part is None else f"{name}.{part}").replace("_", "-")
                if isinstance(scalar, tuple):
                    flat[key] = ",".join(map(str, scalar))
                else:
                    flat[key] = _EMPTY[key] if scalar is None else scalar
        return flat

    @classmethod
    def from_run_config(cls, run_config: Mapping[str, Scalar], *, other_keys: frozenset[str] = frozenset()) -> Self:
        """Read the flat form back; keys named in ``other_keys`` belong to somebody else and are passed over.

        Raises ValueError (pydantic's) for an unknown key or a value out of range.
        """
        data: dict[str, Any] = {}
        for key, value in run_config.items():
            if key in other_keys:
                continue
            if _EMPTY.get(key) == value:
                continue
            section, _, part = key.replace("-", "_").partition(".")
            if not part:
                data[section] = value
            elif isinstance(place := data.setdefault(section, {}), dict):
                place[part] = _tuple(section, part, value)
            else:
                raise ValueError(
                    f"run configuration key {key!r}: {section!r} is a value, not a section; name one of the two."
                )
        return cls.model_validate(data)


def _tuple(section: str, part: str, value: Scalar) -> Any:
    """The flat form of the two tuple fields, "0,2,4" and "decoder,vision", back into tuples."""
    if section != "adapters" or part not in ("layers", "include"):
        return value
    parts = [piece.strip() for piece in str(value).split(",") if piece.strip()]
    try:
        return tuple(parts) if part == "include" else tuple(int(piece) for piece in parts)
    except ValueError:
        raise ValueError(
            f"adapters.layers is {value!r}; give layer numbers with commas between, such as '0,2,4'."
        ) from None
