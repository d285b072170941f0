"""How far any SAEs agree, whoever trained them: every measure of stability beside its chance levels. (docs/method.md)"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise, takewhile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from husai.analysis.agreement import Agreement
from husai.analysis.nulls import CODED_NULLS, NullScore, adjusted, coded_sampler
from husai.analysis.rungs import Rung, directions, rungs
from husai.analysis.stability import activation_matching, stability
from husai.analysis.stats import Interval, monte_carlo_p, pair_interval
from husai.analysis.tails import tail_p, z_score
from husai.analysis.verdict import rung_sentence
from husai.errors import HusaiError
from husai.measure.rows import MIN_P_DRAWS
from husai.sae.dictionary import PART, Dictionary
from husai.samples import Samples
from husai.seeding import generator

ROOM = 1 << 28  # codes kept at once for `activation_matching`
CODED_DRAWS = 3
UNIT = 1e-3  # decoder rows whose length is this close to 1 are called unit rows
DRAWS = ((256, 100), (1024, 20))  # live atoms up to which so many draws are made; beyond, two


@dataclass(frozen=True)
class Measured:
    """One measure of all pairs beside its chance levels."""

    agreement: Agreement
    nulls: dict[str, NullScore]

    @property
    def judged(self) -> bool:
        """Whether there are an interval and chance levels to hold it against."""
        return bool(self.nulls) and self.agreement.interval.low == self.agreement.interval.low

    @property
    def levels(self) -> dict[str, Interval]:
        """The chance levels with the range of 95% of their draws; nulls of codes have too few draws for one."""
        levels = {name: Interval(null.mean, null.low, null.high) for name, null in self.nulls.items()}
        none = float("nan")
        return {n: Interval(level.mean, none, none) if n in CODED_NULLS else level for n, level in levels.items()}

    @property
    def adjusted(self) -> dict[str, Interval | None]:
        """(score − null) / (1 − null), pair by pair; None where the null of a pair is above .9."""
        found = {name: adjusted(self.agreement.both, null.pairs) for name, null in self.nulls.items()}
        return {name: None if matrix is None else pair_interval(matrix) for name, matrix in found.items()}

    def to_json(self) -> dict[str, Any]:
        nulls = {
            name: {
                "mean": null.mean,
                "low": null.low,
                "high": null.high,
                "draws": len(null.draws),
                **_chance(self.agreement.interval.mean, null.draws),
            }
            for name, null in self.nulls.items()
        }
        rescaled = {name: None if found is None else found._asdict() for name, found in self.adjusted.items()}
        return {**self.agreement.interval._asdict(), "nulls": nulls, "adjusted": rescaled}


def _chance(observed: float, draws: Float[np.ndarray, "draws"]) -> dict[str, float]:
    """The counted p, z where the draws vary, and p_fitted where the tail can be fitted; nothing of too few draws."""
    if len(draws) < MIN_P_DRAWS:
        return {}
    steps, tail = z_score(observed, draws), tail_p(observed, draws)
    found = {"p": monte_carlo_p(observed, draws)} | ({"z": steps} if steps == steps else {})
    return found | ({"p_fitted": tail.p} if tail.how == "fitted" else {})


@dataclass(frozen=True)
class Comparison:
    """S SAEs pair by pair.

    n_live: atoms that were compared, of d_sae. counts: for every such atom, in how many other SAEs it reappears.
    everywhere: mean share of atoms that reappear in all others; everywhere_nulls: the same of null dictionaries. gap: what
    the best matching's pwmcc may exceed that of the one found by; 0 where it is exact. notes: what was left out, and why.
    """

    names: list[str]
    kinds: list[str]
    d_sae: list[int]
    n_live: list[int]
    measures: dict[str, Measured]
    counts: tuple[Int[np.ndarray, "n"], ...]
    everywhere: float
    everywhere_nulls: dict[str, float]
    gap: Float[np.ndarray, "seeds seeds"]
    notes: list[str]

    @property
    def labels(self) -> list[str]:
        """Names without the folders that all of them lie in."""
        paths = [Path(name) for name in self.names]
        levels = zip(*(path.parts[:-1] for path in paths), strict=False)
        common = len(list(takewhile(lambda parts: len({*parts}) == 1, levels)))
        return [str(Path(*path.parts[common:])) for path in paths]

    @property
    def sentences(self) -> dict[str, str]:
        """Which rungs of its ladder every measure exceeds."""
        return {name: rung_sentence(one.agreement.interval, one.levels, name) for name, one in self.measures.items()}

    def to_json(self) -> dict[str, Any]:
        pwmcc = self.measures["pwmcc"]
        size = len(self.names)
        return {
            "saes": self.names,
            "d_sae": self.d_sae,
            "n_live": self.n_live,
            **{name: one.agreement.matrix.tolist() for name, one in self.measures.items()},
            "mean_pwmcc": pwmcc.agreement.interval.mean,
            "nulls": {name: null.mean for name, null in pwmcc.nulls.items()},
            "adjusted": {name: found and found.mean for name, found in pwmcc.adjusted.items()},
            "measures": {name: found.to_json() for name, found in self.measures.items()},
            "reappearance_counts": [np.bincount(count, minlength=size).tolist() for count in self.counts],
            "reappear_in_all": {"value": self.everywhere, "nulls": self.everywhere_nulls},
            "gap": self.gap.tolist(),
            "sentence": self.sentences["pwmcc"],
            "sentences": self.sentences,
            "notes": self.notes,
        }


class Live(NamedTuple):
    """atoms, encoders: unit rows of live latents, and codes: theirs on the kept samples; None where there are none.

    signed: whether codes are, as it says or on any sample.
    """

    atoms: Float[Tensor, "n d_out"]
    encoders: Float[Tensor, "n d_in"] | None
    codes: Float[Tensor, "kept n"] | None
    l0: float
    signed: bool


def compare(
    saes: Sequence[Dictionary],
    names: Sequence[str],
    samples: Samples | None = None,
    *,
    draws: int | None = None,
    progress: Callable[[str], object] = lambda _: None,
) -> Comparison:
    """Every measure of stability of at least two SAEs of one width d, however many atoms they have.

    samples: without them dead latents cannot be told, and the only null is `ambient`. draws: of every null; by default 100
    up to 256 live atoms, 20 up to 1024, else 2. progress is told what begins. Raises HusaiError for fewer than two SAEs,
    other widths, and an SAE without any live atom.
    """
    _require_alike(saes, names)
    kept = None if samples is None else _kept(len(samples.sources[0]), sum(sae.d_sae for sae in saes))
    progress("live atoms")
    sources = [None] * len(saes) if samples is None else samples.sources
    live = [_live(sae, name, x, kept) for sae, name, x in zip(saes, names, sources, strict=True)]
    signed = any(one.signed for one in live)
    atoms, encoders = [one.atoms for one in live], [one.encoders for one in live if one.encoders is not None]
    encoders = encoders if len(encoders) == len(live) else None
    progress("pairs")
    found = stability(atoms, encoders, abs=signed)
    count = draws or next((count for size, count in DRAWS if max(map(len, atoms)) <= size), 2)
    nulls: dict[str, dict[str, NullScore]] = {name: {} for name in found.known}
    everywhere: dict[str, float] = {}
    for rung, draw in _rungs(atoms, encoders, samples).items():
        progress(f"null {rung}")
        streams = [generator(f"null-{rung}", 0, r) for r in range(count)]
        drawn = [stability(*draw(stream), abs=signed) for stream in streams]
        for name in found.known:
            nulls[name][rung] = NullScore.of(np.stack([one.known[name].both for one in drawn]))
        everywhere[rung] = float(np.mean([one.everywhere for one in drawn]))
    measures = {name: Measured(one, nulls[name]) for name, one in found.known.items()}
    if samples is not None and kept is not None:
        progress("activations")
        x = None if samples.x is None else samples.x[kept]
        measures["activation_matching"] = _activations(live, x, signed, count)
    return Comparison(
        list(names),
        [str(sae.meta.get("architecture", "")) for sae in saes],
        [sae.d_sae for sae in saes],
        [len(one) for one in atoms],
        measures,
        found.counts,
        float(found.everywhere.mean()),
        everywhere,
        found.pwmcc.gap,
        _notes(saes, names, live, samples, found.pwmcc.gap),
    )


def _rungs(atoms: list[Tensor], encoders: list[Tensor] | None, samples: Samples | None) -> dict[str, Rung]:
    """`ambient` alone where there are no samples to draw from."""
    if samples is None or samples.x is None:
        return {"ambient": directions("ambient", atoms[0], [len(own) for own in atoms])}
    return rungs(samples.x, atoms, encoders, samples.truth)


def _require_alike(saes: Sequence[Dictionary], names: Sequence[str]) -> None:
    if len(saes) < 2:
        raise HusaiError(f"compare: needs at least 2 SAEs, and 3 for an interval; got {len(saes)}")
    for (sae, name), (other, beside) in pairwise(zip(saes, names, strict=True)):
        if sae.d_out != other.d_out:
            raise HusaiError(
                f"{beside}: its atoms have {other.d_out} dimensions, but those of {name} have {sae.d_out}; only SAEs of the "
                "same activations can be compared"
            )


def _kept(rows: int, atoms: int) -> Int[Tensor, "kept"]:
    """Evenly spaced samples, as many as there is room for the codes of."""
    count = min(rows, max(2, ROOM // atoms))
    return torch.linspace(0, rows - 1, count, dtype=torch.float64).round().long()


def _live(sae: Dictionary, name: str, x: Tensor | None, kept: Tensor | None) -> Live:
    """Raises HusaiError if no latent is live, or for NaN among weights, samples or codes."""
    for what, weights in (("W_dec", sae.W_dec), ("W_enc", sae.W_enc)):
        if weights is not None and not bool(weights.isfinite().all()):
            raise HusaiError(f"{name}: {what} holds NaN or infinity; its training diverged or it is damaged")
    alive, codes, l0, signed = sae.W_dec.norm(dim=1) > 0, None, 0.0, sae.signed_codes
    if not bool(alive.any()):
        raise HusaiError(f"{name}: all its atoms are dead; every decoder row is 0")
    if not bool(alive.all()):
        warnings.warn(
            f"{name}: {int((~alive).sum())} of its {sae.d_sae} decoder rows are 0 and count as dead", stacklevel=3
        )
    if x is not None and kept is not None:
        if not bool(x.isfinite().all()):
            raise HusaiError(f"{name}: cannot be run on activations that hold NaN or infinity")
        fires, some, active = torch.zeros(sae.d_sae, dtype=torch.bool), [], 0
        for start in range(0, len(x), PART):
            part = sae.encode(x[start : start + PART])
            if not bool(part.isfinite().all()):
                raise HusaiError(f"{name}: gives codes that are NaN or infinite")
            signed = signed or sae.is_signed(part)
            fires |= (part != 0).any(0)
            active += int((part != 0).sum())
            some.append(part[kept[(kept >= start) & (kept < start + PART)] - start])
        alive = alive & fires
        if not bool(alive.any()):
            raise HusaiError(f"{name}: all its atoms are dead; none fires on any of the {len(x)} activations")
        codes, l0 = torch.cat(some)[:, alive], active / len(x)
    encoders = None if sae.W_enc is None else F.normalize(sae.W_enc.float(), dim=1)[alive]
    return Live(sae.atoms[alive], encoders, codes, l0, signed)


def _activations(live: Sequence[Live], x: Tensor | None, signed: bool, draws: int) -> Measured:
    """Correlations of codes, beside those of null dictionaries that have something to say of every sample."""

    observed = activation_matching([one.codes for one in live if one.codes is not None], abs=signed)
    l0, nulls = float(np.mean([one.l0 for one in live])), {}
    for null in CODED_NULLS if x is not None else ():
        assert x is not None
        draw, drawn = coded_sampler(null, x, l0, signed=signed), []
        for r in range(min(draws, CODED_DRAWS)):
            stream = generator(f"null-{null}", 0, r)
            codes = [draw(len(one.atoms), stream).codes for one in live]
            drawn.append(activation_matching(codes, abs=signed).matrix)
        nulls[null] = NullScore.of(np.stack(drawn))
    return Measured(observed, nulls)


def _lengths(sae: Dictionary) -> tuple[float, float]:
    """The smallest and largest length of a decoder row that is not 0."""
    lengths = sae.W_dec.float().norm(dim=1)
    own = lengths[lengths > 0]
    return float(own.min()), float(own.max())


def _notes(
    saes: Sequence[Dictionary],
    names: Sequence[str],
    live: Sequence[Live],
    samples: Samples | None,
    gap: Float[np.ndarray, "seeds seeds"],
) -> list[str]:
    notes = []
    if samples is None:
        notes.append(
            "Without activations dead atoms cannot be told (only rows of zeros are left out), and no null but ambient can be "
            "drawn, which any shared covariance exceeds; --model or --shard-dir gives them."
        )
    elif samples.x is None:
        notes.append(
            "What a transcoder reconstructs is not in the store, so no null but ambient can be drawn; "
            "--target-shard-dir gives it."
        )
    if lengths := [
        f"{name} ({low:.3g} to {high:.3g})"
        for name, (low, high) in zip(names, map(_lengths, saes), strict=True)
        if high - 1 > UNIT or 1 - low > UNIT
    ]:
        notes.append(
            f"Decoder rows are not of length 1: {', '.join(lengths)}. They were scaled to it: "
            "directions are compared, and lengths say nothing."
        )
    if without := [name for name, one in zip(names, live, strict=True) if one.encoders is None]:
        notes.append(f"shared_fraction is left out: {', '.join(without)} has no encoder matrix.")
    for what in ("model", "hook"):
        keys = [f"{what}_name_out" if what == "hook" and sae.paired else f"{what}_name" for sae in saes]
        stated = {str(sae.meta[key]) for sae, key in zip(saes, keys, strict=True) if sae.meta.get(key)}
        if len(stated) > 1:
            notes.append(f"The SAEs name different {what}s: {', '.join(sorted(stated))}.")
    if float(gap.max()) > 0:
        notes.append(f"Matched with a certificate: the best matching's pwmcc is larger by at most {gap.max():.1e}.")
    return notes
