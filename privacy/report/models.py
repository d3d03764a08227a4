"""What a privacy report says, field by field: the one definition behind report.json, its JSON Schema and its readers.

Every model is frozen and strict: unknown keys, numbers that are not finite, and texts of the wrong type are refused.
What depends on private data (exact batch sizes, norms, losses) has no field here; it may only go to the annex, which is
absent unless somebody asks for it.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from privacy.events import Adjacency, Sampling, Scheme, Unit

SCHEMA_VERSION: Final = "mmslm.privacy-report/1"
NOISE_KINDS: Final = ("csprng", "seeded (simulation)")

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", description="SHA-256, 64 lower-case hexadecimal digits.")]
Text = Annotated[str, Field(max_length=4000)]
Sentence = Annotated[str, Field(min_length=1, max_length=4000)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=0, le=10**12)]
NoiseKind = Literal["csprng", "seeded (simulation)"]


class Part(BaseModel):
    """A part of the report: frozen, strict, no unknown keys, finite numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Parent(Part):
    """An earlier run on the same data whose releases this report's claim includes."""

    id: Sentence = Field(description="The earlier report's identity.id.")
    ledger_head: Sha256 = Field(description="The earlier ledger's head hash.")
    events: list[dict[str, Any]] = Field(description="Its releases, equal ones merged with their count.")


class Identity(Part):
    """Which run this is, and with what it was made."""

    id: Text = Field(
        "", description="Stable name of the report: 'report-' and the first 16 digits of the ledger's head."
    )
    name: Text = Field("", description="A name for people.")
    created: Text = Field("", description="When the report was written, ISO 8601 in UTC; empty where not recorded.")
    software: dict[str, str] = Field(default_factory=dict, description="Versions of what computed: package -> version.")
    commit: Text | None = Field(None, description="Commit of the source code.")
    config_hash: Sha256 | None = Field(None, description="SHA-256 of the resolved configuration file.")
    model_hash_before: Sha256 | None = Field(None, description="SHA-256 of the weights before private training.")
    model_hash_after: Sha256 | None = Field(None, description="SHA-256 of the released weights.")
    optimizer_steps: Count | None = Field(None, description="Steps (rounds) that the released checkpoint has taken.")
    files: dict[str, Sha256] = Field(
        default_factory=dict, description="SHA-256 of files beside the report, by path relative to the run directory."
    )
    parents: list[Parent] = Field(default_factory=list, description="Earlier runs on the same data, composed in.")


class Point(Part):
    """One point of the privacy profile: the releases are (epsilon, delta)-private."""

    epsilon: Annotated[float, Field(ge=0)]
    delta: Annotated[float, Field(ge=0, le=1)]


class Spent(Part):
    """Epsilon after some of the releases, at the claim's delta."""

    step: Count = Field(description="The step (round) of the last release counted.")
    releases: Annotated[int, Field(ge=1)] = Field(description="How many ledger events are counted.")
    epsilon: Annotated[float, Field(ge=0)]


class Gdp(Part):
    """Summary as Gaussian differential privacy: covered by one Gaussian of mean mu and deviation 1, down to the claim's
    delta."""

    mu: Positive
    fit_error: Annotated[float, Field(ge=0)] = Field(
        description="Regret: by how much, in both error probabilities, the summary overstates what can be learned."
    )


class Claim(Part):
    """The promise, and all that is needed to understand it."""

    epsilon: Positive = Field(description="Upper bound of the privacy loss.")
    delta: Annotated[float, Field(gt=0, lt=1)] = Field(description="Probability with which the bound may fail.")
    accountant: Sentence = Field("pld", description="Whose computation epsilon rests on: rdp, prv, pld or own.")
    adjacency: Adjacency = Field("add_or_remove_one", description="What neighbouring data sets are.")
    unit: Unit = Field("user", description="What is protected: one example, or one user with all they own.")
    unit_definition: Sentence = Field(description="The unit in words, e.g. 'one household and all its photos'.")
    max_records_per_unit: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Most records a unit may own; null where a unit is sampled and clipped whole, however many."
    )
    released: Sentence = Field(description="What leaves the protected place, e.g. 'the final adapter'.")
    threat_model: Sentence = Field(description="Against whom the promise holds, and whom it trusts.")
    scope: Literal["all_runs_on_this_data", "this_run"] = Field(
        "all_runs_on_this_data",
        description="What the promise covers: everything released from this data so far, or this run alone.",
    )
    simulation: bool = Field(
        False, description="True where noise or sampling come from a seed: nobody's real data may be claimed protected."
    )


class StatedClaim(Claim):
    """The claim as the report states it: with what follows from the ledger."""

    epsilon_without_amplification: Positive | None = Field(
        None,
        description=(
            "Epsilon if it were known who took part in which step, for a unit drawn as often as all but one in a million; "
            "null where sampling amplified nothing."
        ),
    )
    gdp: Gdp | None = Field(None, description="Summary as Gaussian differential privacy.")
    profile: list[Point] = Field(
        default_factory=list, max_length=64, description="The (epsilon, delta) pairs that hold at once."
    )
    trajectory: list[Spent] = Field(
        default_factory=list, max_length=64, description="Epsilon over the steps, at the claim's delta."
    )


class NoiseRun(Part):
    """A run of releases with one noise multiplier."""

    value: Positive = Field(description="Standard deviation of the noise over the clipping norm.")
    count: Annotated[int, Field(ge=1)]


class Mechanism(Part):
    """How each contribution was bounded and what noise was added."""

    clip_kind: Literal["flat", "per_layer", "automatic", "adaptive"] = Field(
        "flat", description="One norm; one norm per layer; normalised gradients; a norm that follows the data."
    )
    clip_norm: Positive = Field(description="C: the largest L2 norm of one contribution.")
    layer_clip_norms: dict[str, Positive] | None = Field(
        None, description="Per-layer clipping: each layer's norm; the root of the sum of their squares is C."
    )
    count_noise_multiplier: Positive | None = Field(
        None,
        description="Adaptive clipping: noise on the counted share of clipped contributions, over its sensitivity.",
    )
    divisor: Positive = Field(description="What the noisy sum is divided by: a public constant.")
    divisor_is_public: bool = Field(True, description="False would leak the true batch size.")
    dtypes: dict[str, str] = Field(default_factory=dict, description="Precision of forward, clipping, sum and noise.")
    noise: NoiseKind = Field(description="Where the noise's randomness comes from.")
    sensitivity: Positive | None = Field(
        None, description="Largest L2 move of one sum between neighbours, in C; follows from ledger and adjacency."
    )
    noise_multipliers: list[NoiseRun] = Field(
        default_factory=list, description="Noise over C, release by release, run-length coded; follows from the ledger."
    )


class SamplingFacts(Part):
    """The sampler that ran."""

    sampler: Sentence = Field(description="Name of the class that drew the records, e.g. PoissonSampler.")
    randomness: Literal["csprng", "seeded (simulation)", "none"] = Field("csprng", description="Where it draws from.")
    scheme: Scheme = Field(description="How records are chosen, as in the ledger's events.")
    rate: Annotated[float, Field(gt=0, le=1)] | None = None
    population: Annotated[int, Field(ge=1)] | None = None
    batch: Annotated[int, Field(ge=1)] | None = None
    max_batch: Annotated[int, Field(ge=1)] | None = None
    steps: Annotated[int, Field(ge=1)] = Field(description="Steps (rounds) that the run says it took.")
    participation_bound: Annotated[int, Field(ge=1)] | None = Field(
        None, description="In how many steps a unit takes part at most; null where chance alone decides."
    )

    @classmethod
    def of(cls, sampler: Any, *, steps: int, participation_bound: int | None = None) -> Self:
        """Facts straight from the sampler object that ran (see `privacy.sampling`)."""
        sampling: Sampling = sampler.sampling
        return cls(
            sampler=type(sampler).__name__,
            randomness=sampler.kind,
            steps=steps,
            participation_bound=participation_bound,
            **sampling.to_json(),
        )

    @property
    def sampling(self) -> Sampling:
        """The event's Sampling that these facts amount to. Raises EventError where they contradict themselves."""
        return Sampling(self.scheme, self.rate, self.population, self.batch, self.max_batch)


class DataFacts(Part):
    """The protected data, as far as it may be known."""

    commitment: Sha256 = Field(description="Keyed commitment to the data set: equal for every run on the same data.")
    commitment_scheme: Text = Field("hmac-sha256", description="How the commitment was made.")
    population: Annotated[int, Field(ge=1)] | None = Field(None, description="N, the number of units, where public.")
    population_is_public: bool = Field(False, description="Whether N may be known without harming anybody.")
    deduplicated: Text = Field("not stated", description="What was done about copies of one photo at several owners.")
    public_pretraining: Text = Field("not stated", description="What the base model saw before, and whose data it was.")
    tokenizer_trained_on: Text = Field("not stated", description="The tokenizer's training text.")
    description: Text = Field("", description="The data in a sentence.")

    @model_validator(mode="after")
    def _population_only_if_public(self) -> Self:
        if (self.population is not None) != self.population_is_public:
            raise ValueError("population is stated exactly where population_is_public is true")
        return self


OutsideKind = Literal[
    "loss_curves", "evaluation", "checkpoint_selection", "hyperparameter_trials", "logs", "compression", "other"
]


class Outside(Part):
    """Something that the guarantee does not cover, or a statement that there is no such thing."""

    kind: OutsideKind
    statement: Sentence = Field(description="What was done, in a sentence.")
    data: Literal["none", "public", "held_out_people", "private"] = Field(
        description="Whose data it looked at. 'private' is the data that the claim protects."
    )
    published: bool = Field(False, description="Whether its result left the protected place.")
    accounted: bool = Field(False, description="Whether its privacy cost is among the ledger's events or parents.")
    count: Count | None = Field(None, description="How many, for instance trials or checkpoints.")


class EmpiricalAudit(Part):
    """A measured lower bound on epsilon: how much an attack really found out."""

    method: Sentence
    m: Annotated[int, Field(ge=1)] = Field(description="Canaries.")
    r: Count = Field(description="Guesses made.")
    v: Count = Field(description="Guesses that were right.")
    confidence: Annotated[float, Field(gt=0, lt=1)]
    lower_bound: Annotated[float, Field(ge=0)] = Field(description="Epsilon is at least this, with that confidence.")
    delta: Annotated[float, Field(ge=0, lt=1)] = Field(description="The delta of the lower bound.")
    rule: Text = Field("", description="The rule against multiple testing.")
    details: dict[str, Any] = Field(default_factory=dict, description="Further public numbers of the attack.")


class Verification(Part):
    """One accountant's epsilon for the same events, at the claim's delta."""

    accountant: Sentence
    epsilon: Annotated[float, Field(ge=0)]
    upper_bound: bool = Field(True, description="Whether it is a proven upper bound.")
    note: Text = ""


class LedgerCopy(Part):
    """The whole ledger."""

    entries: list[dict[str, Any]] = Field(min_length=1, description="The entries, as in ledger.jsonl.")
    head: Sha256 = Field(description="Hash of the last entry.")


class Signature(Part):
    """An ed25519 signature over the canonical encoding of the report without this part."""

    algorithm: Literal["ed25519"] = "ed25519"
    public_key: Sha256 = Field(description="The 32 bytes of the public key, hexadecimal.")
    value: Annotated[str, Field(pattern=r"^[0-9a-f]{128}$")] = Field(description="The 64 bytes of the signature.")


class Report(Part):
    """A privacy report: one claim, and everything that is needed to check it."""

    schema_version: Literal["mmslm.privacy-report/1"] = SCHEMA_VERSION
    identity: Identity
    claim: StatedClaim
    mechanism: Mechanism
    sampling: SamplingFacts
    ledger: LedgerCopy
    data: DataFacts
    outside: list[Outside]
    audit: list[EmpiricalAudit] = Field(default_factory=list, description="Measured lower bounds; may be empty.")
    verification: list[Verification] = Field(min_length=1, description="Every accountant's epsilon.")
    annex: dict[str, Any] | None = Field(
        None, description="Facts that depend on private data. Null unless asked for; never to be published."
    )
    signature: Signature | None = None

    def to_json(self) -> dict[str, Any]:
        """The JSON object, every field present."""
        return self.model_dump(mode="json")
