"""Samples whose truth is exact because it was put there: planted atoms and planted circles. (docs/method.md §Planted atoms)

Written here rather than taken from `sae_lens.synthetic`: its generator draws from the global state, fires atoms
independently, so that no sample has a known number of them, and needs a correlation matrix where a group says it all.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from husai.config import CirclesConfig, PlantedConfig
from husai.errors import HusaiError
from husai.memory import require_memory
from husai.seeding import generator
from husai.truth.fourier import characters
from husai.truth.planes import GroundTruth, Subspace


@dataclass(frozen=True)
class Planted:
    """Samples x = codes @ atoms + noise. atoms: unit rows. codes: z ≥ 0; every atom is active in some sample."""

    x: Float[Tensor, "samples d"]
    atoms: Float[Tensor, "n_true d"]
    codes: Float[Tensor, "samples n_true"]

    @property
    def l0(self) -> float:
        """Mean number of active atoms."""
        return float((self.codes > 0).sum(1).double().mean())

    def describe(self) -> dict[str, Any]:
        """What is planted as plain data; firing rates are of the commonest and the rarest atom."""
        rates = (self.codes > 0).double().mean(0)
        cosines = (self.atoms @ self.atoms.T).fill_diagonal_(0).abs()
        return {
            "atoms": len(self.atoms),
            "dim": self.atoms.shape[1],
            "l0": self.l0,
            "largest_cosine": float(cosines.max()),
            "firing_rates": [float(rates.max()), float(rates.min())],
        }


def plant(config: PlantedConfig) -> Planted:
    """Draw atoms, codes and noise, each from its own stream of the config's seed.

    Raises HusaiError if an atom is active in no sample, since it would be truth that the data do not hold.
    """
    room = config.samples * (16 * config.n_atoms + 8 * config.d_model) + 8 * config.n_atoms * config.d_model
    require_memory(room, f"planted: {config.samples} samples of n_atoms {config.n_atoms} in d_model {config.d_model}")
    atoms = _atoms(config)
    active = _support(config, config.samples, generator("planted-support", config.seed))
    silent = (~active.any(0)).nonzero()
    if len(silent):
        raise HusaiError(
            f"planted: atom {int(silent[0])} is active in none of the {config.samples} samples "
            f"({len(silent)} such atoms); raise samples or together, or lower zipf"
        )
    codes = _codes(active, config, generator("planted-magnitudes", config.seed))
    return Planted(codes @ atoms + _noise("planted-noise", config.samples, config), atoms, codes)


def fresh_samples(config: PlantedConfig) -> Callable[[int, torch.Generator], Float[Tensor, "samples d"]]:
    """A function (count, generator) → further samples of the atoms that `plant` plants."""
    atoms = _atoms(config)

    def draw(count: int, stream: torch.Generator) -> Float[Tensor, "samples d"]:
        codes = _codes(_support(config, count, stream), config, stream)
        return codes @ atoms + config.noise * torch.randn(count, config.d_model, generator=stream)

    return draw


def _codes(
    active: Bool[Tensor, "samples n_true"], config: PlantedConfig, stream: torch.Generator
) -> Float[Tensor, "samples n_true"]:
    low, high = config.magnitudes
    return torch.where(active, low + (high - low) * torch.rand(active.shape, generator=stream), 0.0)


def _atoms(config: PlantedConfig) -> Float[Tensor, "n_true d"]:
    """Isotropic unit directions mixed with a shared one: g = √(1 − coherence)·u + √coherence·e, scaled to length 1."""
    stream = generator("planted-atoms", config.seed)
    own = F.normalize(torch.randn(config.n_atoms, config.d_model, generator=stream), dim=-1)
    shared = F.normalize(torch.randn(config.d_model, generator=stream), dim=-1)
    return F.normalize((1 - config.coherence) ** 0.5 * own + config.coherence**0.5 * shared, dim=-1)


def _support(config: PlantedConfig, samples: int, stream: torch.Generator) -> Bool[Tensor, "samples n_true"]:
    """Which atoms are active: k picked groups a sample, and in each picked group its company. Groups are adjacent rows."""
    picked = pick(torch.tensor(config.rates, dtype=torch.float64), samples, generator=stream)
    whole = torch.rand(picked.shape, generator=stream) < config.together
    chosen = torch.randint(1 if config.hierarchy else 0, config.group_size, picked.shape, generator=stream)
    one = F.one_hot(chosen, config.group_size).bool()
    if config.hierarchy:
        company = one & whole[..., None]
        company[..., 0] = True
    else:
        company = one | whole[..., None]
    return (company & picked[..., None]).flatten(1)


def pick(rates: Float[Tensor, "groups"], samples: int, *, generator: torch.Generator) -> Bool[Tensor, "samples groups"]:
    """Exactly Σ rates groups a sample (a whole number), each at its rate, at most 1.

    Systematic sampling in random order (Madow 1949): the rates, laid end to end in an order drawn for each sample, fill
    a line of length k, and the groups hit by the points u, u + 1, …, u + k − 1 are picked, u uniform on [0, 1).
    """
    order = torch.rand(samples, len(rates), generator=generator).argsort(1)
    ends = rates[order].cumsum(1)
    ends[:, -1] = rates.sum().round()
    passed = (ends - torch.rand(samples, 1, generator=generator, dtype=torch.float64)).ceil()
    hit = passed.diff(dim=1, prepend=passed.new_zeros(samples, 1)) > 0
    return torch.zeros_like(hit).scatter(1, order, hit)


def _noise(purpose: str, rows: int, config: PlantedConfig | CirclesConfig) -> Float[Tensor, "samples d"]:
    return config.noise * torch.randn(rows, config.d_model, generator=generator(purpose, config.seed))


@dataclass(frozen=True)
class Circles:
    """Samples on circles of the answer in Z_p. truth: its planes, exact; columns are the cosine's and sine's direction."""

    x: Float[Tensor, "samples d"]
    answers: Int[Tensor, "samples"]
    p: int
    truth: GroundTruth


def draw_circles(config: CirclesConfig) -> Circles:
    """Orthonormal planes in random position, `repeats` samples of every answer, and noise.

    A plane's two directions are random within it too, so a phase of its own for each circle would change nothing.
    """
    rows = config.p * config.repeats
    require_memory(16 * rows * config.d_model, f"circles: {rows} samples of p {config.p} and d_model {config.d_model}")
    stream = generator("circles-planes", config.seed)
    q, r = torch.linalg.qr(
        torch.randn(config.d_model, 2 * len(config.frequencies), generator=stream, dtype=torch.float64)
    )
    planes = dict(zip(config.frequencies, (q * r.diagonal().sign()).split(2, dim=1), strict=True))
    radii = dict(zip(config.frequencies, config.radii, strict=True))
    answers = torch.arange(config.p).repeat(config.repeats)
    x = sum(
        (radii[k] * characters(k, answers, config.p) @ plane.T for k, plane in planes.items()),
        start=_noise("circles-noise", len(answers), config).double(),
    )
    total = sum(radius**2 for radius in radii.values()) + config.d_model * config.noise**2
    ranked = sorted(config.frequencies, key=lambda k: -radii[k])
    subspaces = tuple(Subspace(k, ("sum",), planes[k], radii[k] ** 2 / total) for k in ranked)
    shares = tuple(("sum", s.k, s.share) for s in subspaces)
    unexplained = config.d_model * config.noise**2 / total
    return Circles(x.float(), answers, config.p, GroundTruth("circles", subspaces, shares, unexplained))
