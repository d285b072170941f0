"""What determines samples without a model, whose truth was put there, and stand-ins for a model's activations."""

from typing import Literal, Self

from pydantic import Field, model_validator

from husai.config.base import MOST, Config, Fraction, Positive, Seed, Size, Spread, later


class PlantedConfig(Config):
    """Samples Σ_i z_i·g_i + noise of known unit atoms g_i with sparse z ≥ 0. (docs/method.md §Planted atoms)"""

    d_model: int = Field(default=64, ge=2, le=MOST, description="dimensions of the samples")
    n_atoms: int = Field(default=128, ge=1, le=2**20, description="true atoms")
    k: Positive = Field(default=4, description="groups picked a sample; with group_size 1, active atoms")
    magnitudes: tuple[Size, Size] = Field(
        default=(0.5, 1.5), description="lowest and highest z of an active atom, uniform between them"
    )
    noise: Spread = Field(default=0.0, description="standard deviation of Gaussian noise in each dimension")
    coherence: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="squared weight of a direction all atoms share; about the mean cosine of two",
    )
    zipf: Spread = Field(default=0.0, description="groups are picked in proportion to rank^-zipf; 0: all equally often")
    group_size: Positive = Field(default=1, description="atoms a group; must divide n_atoms; 1: every atom by itself")
    together: Fraction = Field(
        default=0.0, description="probability that all of a picked group fire, else one does (hierarchy: see there)"
    )
    hierarchy: bool = Field(
        default=False,
        description="a group's first atom is a parent that fires whenever the group is picked, with probability "
        "`together` beside one of the others, its children",
    )
    samples: Positive = Field(default=32768, description="samples drawn once, that everything is measured on")
    streamed: bool = later(
        False,
        "whether every training step draws fresh samples of the same atoms; else SAEs train on the ones that are "
        "measured, pass after pass. Left out of files where false",
    )
    seed: Seed = Field(default=0, description="seed of atoms, codes and noise, each with a stream of its own")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        low, high = self.magnitudes
        if low > high:
            raise ValueError(f"magnitudes {low:g} to {high:g} run backwards; the lower end comes first")
        if self.n_atoms % self.group_size:
            raise ValueError(f"group_size {self.group_size} does not divide n_atoms {self.n_atoms}")
        groups = self.n_atoms // self.group_size
        if self.k > groups:
            raise ValueError(f"k {self.k} exceeds the {groups} groups of atoms; allowed is 1 to {groups}")
        if self.group_size == 1 and (self.together or self.hierarchy):
            raise ValueError("together and hierarchy need groups of at least 2 atoms (group_size)")
        if self.rates[0] > 1 + 1e-9:
            raise ValueError(
                f"zipf {self.zipf:g} would pick the commonest group {self.rates[0]:.2f} times a sample; "
                "lower zipf or k until that is at most 1"
            )
        return self

    @property
    def rates(self) -> list[float]:
        """How often a sample picks each group; they sum to k."""
        weights = [rank**-self.zipf for rank in range(1, self.n_atoms // self.group_size + 1)]
        total = sum(weights)
        return [self.k * weight / total for weight in weights]


class CirclesConfig(Config):
    """Samples Σ_k r_k·U_k·(cos w_k c, sin w_k c) + noise, U_k known planes. (docs/method.md §Planted circles)"""

    d_model: Positive = Field(default=128, description="dimensions of the samples")
    p: int = Field(default=113, ge=3, le=MOST, description="answers c = 0 … p - 1, and the period of the circles")
    frequencies: tuple[Positive, ...] = Field(
        default=(3, 17, 34, 41, 50), min_length=1, description="one circle each, from 1 to (p - 1)/2"
    )
    radii: tuple[Size, ...] = Field(
        default_factory=lambda given: (1.0,) * len(given.get("frequencies", ())),
        description="radius of each circle; by default 1",
    )
    noise: Spread = Field(default=0.0, description="standard deviation of Gaussian noise in each dimension")
    repeats: Positive = Field(default=113, description="samples an answer; only noise tells them apart")
    seed: Seed = Field(default=0, description="seed of planes and noise, each with a stream of its own")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        keys, most = self.frequencies, (self.p - 1) // 2
        folded = [k for k in keys if k > most]
        if folded:
            raise ValueError(
                f"frequency {folded[0]} is not from 1 to {most}, the distinct ones mod {self.p}; "
                "k and p - k are the same and are written as the smaller"
            )
        if len(set(keys)) < len(keys):
            raise ValueError(f"frequencies {list(keys)} name one twice; each has one circle")
        if len(self.radii) != len(keys):
            raise ValueError(f"{len(self.radii)} radii for {len(keys)} frequencies; there must be one each")
        if self.d_model < 2 * len(keys):
            raise ValueError(f"d_model {self.d_model} has no room for {len(keys)} orthogonal planes; they take 2 each")
        return self


class PlantedSource(Config):
    """`planted: {...}` in place of a model."""

    planted: PlantedConfig


class CirclesSource(Config):
    """`circles: {...}` in place of a model."""

    circles: CirclesConfig


class ControlConfig(Config):
    """Samples in place of a model's activations that keep only part of what is in them. (docs/method.md §Controls)"""

    kind: Literal["surrogate", "permuted"] = Field(
        description="surrogate: Gaussian, with their mean and covariance; permuted: each principal coordinate shuffled"
    )
    seed: Seed = Field(default=0, description="seed of the Gaussian draw or of the orders")
