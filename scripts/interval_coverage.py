"""How often do the intervals of this package hold the truth? Simulated, where the truth is known.

    python scripts/interval_coverage.py [--out results/coverage] [--simulations 1000]

Writes coverage.csv, one row a method, population and number of seeds, and coverage.md: the share of nominal 95% intervals
that hold the true value, its Monte-Carlo error, and the mean width. Two methods that do not hold stand beside:
pairs taken as independent, and a percentile bootstrap over seeds that leaves self-pairs out. (docs/method.md §Uncertainty)
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from jaxtyping import Float

from husai.analysis.stats import (
    Interval,
    corrected_interval,
    jackknife_interval,
    plain_interval,
    skewed_interval,
)
from husai.analysis.variance import crossed_components
from husai.console import exits, say
from husai.report.text import markdown

SEEDS = (3, 5, 10, 20, 40)
LEVELS = (3, 5, 10)
MEAN = 0.6
RESAMPLES, BOOTSTRAPPED = 400, 500
Matrices = Float[np.ndarray, "simulations seeds seeds"]
Values = Float[np.ndarray, "simulations seeds"]


def pair_noise(shape: tuple[int, int], generator: np.random.Generator) -> Matrices:
    """Symmetric standard normal noise of single pairs."""
    count, seeds = shape
    above = np.triu(generator.normal(size=(count, seeds, seeds)), 1)
    return above + above.transpose(0, 2, 1)


def additive(seed: float, pair: float, draw: str = "normal") -> Callable[..., tuple[float, Matrices]]:
    """MEAN + q_i + q_j + e_ij. seed, pair: their standard deviations. draw: how q is spread."""

    def drawn(shape: tuple[int, int], generator: np.random.Generator) -> tuple[float, Matrices]:
        q = seed * seed_effects(draw, shape, generator)
        return MEAN, MEAN + q[:, :, None] + q[:, None] + pair * pair_noise(shape, generator)

    return drawn


def seed_effects(draw: str, shape: tuple[int, int], generator: np.random.Generator) -> Values:
    """With mean 0 and standard deviation 1: normal, skewed (an exponential tail downwards), or with one seed in ten far off."""
    if draw == "skewed":
        return 1 - generator.exponential(size=shape)
    if draw == "outlier":
        far = generator.random(shape) < 0.1
        return (generator.normal(size=shape) - 10 * far + 1) / np.sqrt(1 + 100 * 0.09)
    return generator.normal(size=shape)


def bounded(shape: tuple[int, int], generator: np.random.Generator) -> tuple[float, Matrices]:
    """Products of two seeds' qualities, which pile up below 1, less a little: nothing is additive or symmetric."""
    quality, noise = generator.beta(20, 1, size=shape), np.abs(pair_noise(shape, generator))
    mean = (20 / 21) ** 2 * (1 - 0.01 * np.sqrt(2 / np.pi))
    return mean, quality[:, :, None] * quality[:, None] * (1 - 0.01 * noise)


def vectors(shape: tuple[int, int], generator: np.random.Generator) -> tuple[float, Matrices]:
    """Cosines of 20-dimensional unit vectors around a common one: what a matched atom is, seen from two seeds."""

    def unit(*size: int) -> np.ndarray:
        drawn = 0.3 * generator.normal(size=(*size, 20))
        drawn[..., 0] += 1
        return drawn / np.linalg.norm(drawn, axis=-1, keepdims=True)

    seeds = unit(*shape)
    return float((unit(300_000).mean(0) ** 2).sum()), seeds @ seeds.transpose(0, 2, 1)


PAIR_POPULATIONS: dict[str, Callable[..., tuple[float, Matrices]]] = {
    "seeds matter (sd .03, pairs .01)": additive(0.03, 0.01),
    "both (.02, .03)": additive(0.02, 0.03),
    "pairs matter (.01, .03)": additive(0.01, 0.03),
    "pairs only (0, .03)": additive(0.0, 0.03),
    "skewed seeds (.03, .01)": additive(0.03, 0.01, "skewed"),
    "skewed seeds, both (.03, .03)": additive(0.03, 0.03, "skewed"),
    "bounded near 1": bounded,
    "cosines of vectors": vectors,
    "a tenth of the seeds far off": additive(0.06, 0.01, "outlier"),
}
SINGLE_POPULATIONS = ("normal", "skewed", "outlier")


def held(intervals: list[Interval], truth: float) -> tuple[float, float]:
    """Share that holds the truth, and mean width."""
    inside = [low <= truth <= high for _, low, high in intervals]
    return float(np.mean(inside)), float(np.mean([high - low for _, low, high in intervals]))


def independent(matrices: Matrices) -> list[Interval]:
    """Pairs taken as so many independent values."""
    above = np.triu_indices(matrices.shape[1], 1)
    return [plain_interval(matrix[above]) for matrix in matrices]


def bootstrap(matrices: Matrices) -> list[Interval]:
    """Percentiles over resampled seeds; pairs of a seed with itself are left out."""
    matrices = matrices[:BOOTSTRAPPED] * (1 - np.eye(matrices.shape[1]))
    seeds = matrices.shape[1]
    drawn = np.random.default_rng(0).multinomial(seeds, np.full(seeds, 1 / seeds), size=RESAMPLES)
    drawn = drawn[(drawn > 0).sum(1) > 1]
    pairs = seeds**2 - (drawn**2).sum(1)
    means = np.einsum("bs,nst,bt->nb", drawn, matrices, drawn, optimize=True) / pairs
    return [Interval(float(m.mean()), *map(float, np.quantile(m, (0.025, 0.975)))) for m in means]


METHODS: dict[str, Callable[[Matrices], list[Interval]]] = {
    "jackknife": lambda matrices: [jackknife_interval(matrix) for matrix in matrices],
    "corrected": lambda matrices: [corrected_interval(matrix) for matrix in matrices],
    "independent pairs": independent,
    "bootstrap": bootstrap,
}


ORDER = ("t", *METHODS, "generalized")


def coverage_of_pairs(simulations: int, seeds: tuple[int, ...] = SEEDS) -> Iterator[dict[str, Any]]:
    """Rows for scores of pairs; `corrected` from 5 seeds on."""
    for count in seeds:
        for index, (population, draw) in enumerate(PAIR_POPULATIONS.items()):
            truth, matrices = draw((simulations, count), np.random.default_rng([count, index]))
            for method, interval in METHODS.items():
                if method != "corrected" or count >= 5:
                    yield row("pairs", method, population, count, interval(matrices), truth)


def coverage_of_seeds(simulations: int) -> Iterator[dict[str, Any]]:
    """Rows for scores of single SAEs."""
    for count in SEEDS:
        for index, population in enumerate(SINGLE_POPULATIONS):
            values = seed_effects(population, (simulations, count), np.random.default_rng([count, index]))
            for method, interval in (("t", plain_interval), ("corrected", skewed_interval)):
                yield row("single SAEs", method, population, count, [interval(drawn) for drawn in values], 0.0)


def coverage_of_components(simulations: int) -> Iterator[dict[str, Any]]:
    """Rows for the variance that an init seed brings, of a square design of init seeds and data orders."""
    for levels in LEVELS:
        for share in (0.0, 0.2, 0.5, 0.9):
            generator = np.random.default_rng([levels, int(10 * share)])
            intervals = []
            for _ in range(simulations):
                own = generator.normal(size=(levels, 1)) * share**0.5
                values = own + generator.normal(size=(levels, levels)) * (1 - share) ** 0.5
                intervals.append(Interval(*crossed_components(values, ("init", "data"))["init",]))
            name = f"{share:.0%} of the variance"
            yield row("variance of one factor", "generalized", name, levels, intervals, share)


def row(of: str, method: str, population: str, seeds: int, intervals: list[Interval], truth: float) -> dict[str, Any]:
    coverage, width = held(intervals, truth)
    error = (coverage * (1 - coverage) / len(intervals)) ** 0.5
    found = {"of": of, "method": method, "population": population, "seeds": seeds, "simulations": len(intervals)}
    return {**found, "coverage": coverage, "error": error, "width": width}


def text(rows: list[dict[str, Any]]) -> str:
    """Markdown: a table a kind of score, a row a population, a column a method and number of seeds."""
    parts = ["# Coverage of nominal 95% intervals\n\nIn brackets the mean width over that of the first method.\n"]
    for of in dict.fromkeys(one["of"] for one in rows):
        own = [one for one in rows if one["of"] == of]
        methods = [name for name in ORDER if any(one["method"] == name for one in own)]
        header = ["population", "levels of each" if of == "variance of one factor" else "seeds", *methods]
        lines = []
        for population in dict.fromkeys(one["population"] for one in own):
            for seeds in dict.fromkeys(one["seeds"] for one in own):
                found = {o["method"]: o for o in own if (o["population"], o["seeds"]) == (population, seeds)}
                first = found[methods[0]]["width"]
                cells = [f"{found[methods[0]]['coverage']:.3f}"]
                cells += [
                    f"{found[m]['coverage']:.3f} ({found[m]['width'] / first:.2f})" if m in found else "–"
                    for m in methods[1:]
                ]
                lines.append([population, str(seeds), *cells])
        worst = max(one["error"] for one in own if one["method"] in ("jackknife", "corrected", "t", "generalized"))
        parts.append(
            f"## {of[0].upper()}{of[1:]}\n\nMonte-Carlo error at most {worst:.3f}.\n\n{markdown(header, lines)}"
        )
    return "\n".join(parts)


@exits
def main(
    out: Annotated[Path, typer.Option(help="folder for coverage.csv and coverage.md")] = Path("results/coverage"),
    simulations: Annotated[int, typer.Option(min=10, help="of each population and number of seeds")] = 1000,
) -> int:
    """Simulate, write both tables and print the second."""
    import pandas as pd

    rows = [*coverage_of_pairs(simulations), *coverage_of_seeds(simulations)]
    rows += coverage_of_components(max(10, simulations // 5))
    out.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).round(6).to_csv(out / "coverage.csv", index=False)
    (out / "coverage.md").write_text(text(rows), encoding="utf-8")
    say(text(rows))
    return 0


if __name__ == "__main__":
    typer.run(main)
