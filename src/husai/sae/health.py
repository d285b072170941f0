"""Is a training healthy? Bands and red flags over its history, and when it is hopeless (docs/method.md §Health).

Rows T5, P8 and H8 of requirements.md. Every check is made for each seed, and the worst seed stands for all.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from husai.config import SAEConfig
from husai.sae.history import StepLog

Band = Literal["ok", "acceptable", "poor", "red"]
BANDS: tuple[Band, ...] = ("ok", "acceptable", "poor", "red")

ADVICE = {
    "accuracy": "Check the gate (`husai model verify`) and train the transformer longer.",
    "overlap": "Check the gate of the transformer (`husai model verify`) and train the SAE longer.",
    "overlap, gate passed": "The gate passed, so train the SAE longer, or with fewer latents or a smaller k.",
    "not converged": "Train longer: fit, overlap, agreement or live atoms still moved over the last doubling of steps.",
    "l0 high": "Raise λ (sae.l1_coefficient or sae.l0_coefficient) two- to fivefold, or set training.target_l0.",
    "l0 low": "Lower λ (sae.l1_coefficient or sae.l0_coefficient) two- to fivefold, or set training.target_l0.",
    "l0 not k": "L0 differs from k: fewer than k latents have positive pre-activations, or TopK is not applied.",
    "dead": "Halve training.lr, or resample dead latents (training.resample_every) more often.",
    "dead, AuxK off": "Switch AuxK on (sae.auxk_coefficient 1), or halve training.lr.",
    "dead, no resampling": "Resample dead latents (training.resample_every), or halve training.lr.",
    "ev": "Train longer, raise sae.k (or lower λ), or widen sae.d_sae.",
    "gradients": "Set training.clip_norm to 1.0, halve training.lr, and normalise inputs (training.normalise `scalar`).",
    "precision": "Compute in fp32 and compare: so small an error is below what low precision can tell.",
}

TARGET_SHARE = 0.05  # of the latents active, where neither k nor target_l0 says more
POINTS = 0.02  # of all latents, by which L0 may end off its target
RATIO = "penalty / reconstruction"
START = 0.1  # share of the steps that is the initial phase, if warm-up does not last longer
STRIDE = 50  # times a training that a live judgement is made
PATIENCE = 0.1  # share of the steps over which a collapse must last to be hopeless
EMPTY = 0.1  # an L0 below which most samples have no code at all
RISE = 1.1  # L0 above its early value by this factor, after half of the steps, is hopeless


@dataclass(frozen=True)
class HealthCheck:
    """One figure of one seed against its band. rule: what is asked of it. advice: what to do, where it is not ok."""

    name: str
    seed: int
    value: float
    band: Band
    rule: str
    advice: str = ""

    @property
    def shown(self) -> str:
        """The value as people read it."""
        return f"{self.value:.1%}" if self.name.startswith(("dead", "L0 share")) else f"{self.value:.4g}"


@dataclass(frozen=True)
class Health:
    """checks: the worst seed's of each kind. broken: the rules that keep a run from FIXED; none if it is."""

    checks: tuple[HealthCheck, ...]
    broken: tuple[str, ...]

    @property
    def fixed(self) -> bool:
        return not self.broken

    @property
    def verdict(self) -> str:
        """FIXED, or NOT FIXED and the rules that do not hold."""
        return "FIXED" if self.fixed else f"NOT FIXED: {'; '.join(self.broken)}"

    @property
    def flags(self) -> tuple[HealthCheck, ...]:
        """What is red."""
        return tuple(check for check in self.checks if check.band == "red")

    @property
    def line(self) -> str:
        """For a progress line; without the ratio of losses, which is red wherever the fit is good."""
        red = ", ".join(f"{check.name} {check.shown}" for check in self.flags if check.name != RATIO)
        return f"RED: {red}" if red else "healthy"

    def to_json(self) -> dict[str, Any]:
        rows = [{**vars(check), "shown": check.shown} for check in self.checks]
        return {"verdict": self.verdict, "fixed": self.fixed, "checks": rows}


def assess(history: Sequence[StepLog], config: SAEConfig, *, low_precision: bool = False) -> Health:
    """Every check over a training's rows so far, of all seeds.

    low_precision: the training computed in less than fp32, so that an FVU below .01 is a flag. Raises ValueError without
    rows.
    """
    judged = [_Course(rows, config, low_precision) for rows in _by_seed(history)]
    every = [check for course in judged for check in course.checks()]
    if not every:
        raise ValueError("health: a training without logged rows cannot be judged")
    names = dict.fromkeys(check.name for check in every)
    worst = [max((c for c in every if c.name == name), key=lambda c: BANDS.index(c.band)) for name in names]
    broken = dict.fromkeys(rule for course in judged for rule in course.broken())
    return Health(tuple(worst), tuple(broken))


def hopeless(history: Sequence[StepLog], config: SAEConfig) -> str:
    """Why going on is no use, with advice, once that holds for every seed; else nothing.

    A seed is hopeless if, after the initial phase, in every row of the last tenth of the steps (in at least three), more
    than 90% of its latents were dead, or L0 was below .1 (or all codes at most 1e-6); or if L0, which a penalty should bring
    down, is after half of the steps higher by 10% than early on and rising. A loss that is not finite ends training anyway.
    """
    reasons = [_Course(rows, config, False).hopeless() for rows in _by_seed(history)]
    return reasons[0] if reasons and all(reasons) else ""


def dead_advice(config: SAEConfig) -> str:
    """What is left to try against dead latents with this config."""
    if getattr(config.sae, "auxk_coefficient", None) == 0:
        return "dead, AuxK off"
    return "dead" if config.training.resample_every else "dead, no resampling"


def _by_seed(history: Iterable[StepLog]) -> list[list[StepLog]]:
    """Rows of each SAE, in order of steps; SAEs may share an initial seed."""
    found: dict[tuple[int, int], list[StepLog]] = {}
    place: dict[tuple[int, int], int] = {}
    for row in history:
        at = (row.step, row.seed)
        place[at] = place.get(at, -1) + 1
        found.setdefault((row.seed, place[at]), []).append(row)
    return list(found.values())


class _Course:
    """One seed's rows, and what its config makes of them."""

    def __init__(self, rows: list[StepLog], config: SAEConfig, low_precision: bool) -> None:
        self.rows, self.config, self.low_precision = rows, config, low_precision
        self.last, self.recipe = rows[-1], config.training
        self.fixed, self.d_sae = config.sae.fixed_l0, config.sae.d_sae
        self.target = self.fixed or self.recipe.target_l0 or TARGET_SHARE * self.d_sae
        self.free = config.sae.fitted and self.fixed is None
        self.warm = config.warmup
        self.begun = max(self.warm, START * self.recipe.steps)
        self.after = [row for row in rows if row.step > self.warm]

    def check(self, name: str, value: float, band: Band, rule: str, advice: str = "") -> HealthCheck:
        return HealthCheck(name, self.last.seed, value, band, rule, ADVICE[advice] if advice and band != "ok" else "")

    def checks(self) -> list[HealthCheck]:
        finite = all(math.isfinite(value) for row in self.rows for value in row.line.values())
        band: Band = "ok" if finite else "red"
        found = [self.check("finite", float(finite), band, "no NaN, no infinity", "gradients")]
        found += [*self._share(), *self._penalised(), *self._dead(), *self._fvu(), *self._gradients()]
        peak = min(row.max_activation for row in self.rows)
        found.append(self.check("max activation", peak, "ok" if peak > 1e-6 else "red", "> 1e-6", self._low()))
        codes = min(row.l0 for row in self.rows)
        found.append(self.check("codes", codes, "ok" if codes > 0 else "red", "never all 0", self._low()))
        return found

    def _low(self) -> str:
        return "l0 not k" if self.fixed else "l0 low"

    def _share(self) -> list[HealthCheck]:
        """Final L0 against its target, where there is one."""
        if self.free:
            return []
        ratio, share = self.last.l0 / self.target, self.last.l0 / self.d_sae
        if self.fixed:
            near: Band = "ok" if abs(ratio - 1) <= 1 / 8 else "red"
            return [self.check("L0", self.last.l0, near, f"{self.fixed:g} ± {self.fixed / 8:g}", "l0 not k")]
        band = _band(ratio, ok=(0.6, 1.6), red=(0.2, 2))
        t = self.target / self.d_sae
        rule = f"{0.6 * t:.1%} to {1.6 * t:.1%}, red outside {0.2 * t:.1%} to {2 * t:.1%}"
        return [self.check("L0 share", share, band, rule, "l0 high" if ratio > 1 else "l0 low")]

    def _penalised(self) -> list[HealthCheck]:
        """What is asked only where a penalty decides L0."""
        if self.fixed or self.free:
            return []
        ratio = self.last.penalty - self.last.terms.get("decorrelation", 0.0)
        ratio = ratio / self.last.mse if self.last.mse else math.inf
        band = _band(ratio, ok=(0.01, 0.2), red=(0.001, 0.5))
        found = [self.check(RATIO, ratio, band, ".01 to .2, red outside .001 to .5")]
        if self.recipe.target_l0 is not None:
            return found
        first = self.rows[0]
        if first.step <= self.warm:
            start = first.l0 / self.d_sae
            found.append(self.check("L0 share at start", start, _band(start, (0.25, 0.75), (0.25, 0.75)), "near half"))
        advice = "l0 high" if self.last.l0 > self.target else ""
        if (trend := self.trend()) is not None:
            band = "ok" if trend < 1 else "acceptable" if trend <= 1.02 else "red"
            found.append(self.check("L0 trend", trend, band, "below 1: late over early L0 after warm-up", advice))
            low, rebound = math.inf, 1.0
            for row in self.after[max(range(len(self.after)), key=lambda i: self.after[i].l0) :]:
                low = min(low, row.l0)
                rebound = max(rebound, row.l0 / low if low else math.inf)
            steady: Band = "ok" if rebound <= 1.1 else "acceptable" if rebound <= 1.5 else "red"
            rule = "up to 1.1, red above 1.5: largest rise after its peak"
            found.append(self.check("L0 rebound", rebound, steady, rule, advice))
        return found

    def trend(self) -> float | None:
        """Mean L0 of the last fifth of the rows after warm-up over that of the first; None with fewer than five rows."""
        count = len(self.after) // 5
        if not count:
            return None
        early = sum(row.l0 for row in self.after[:count])
        return sum(row.l0 for row in self.after[-count:]) / early if early else math.inf

    def _dead(self) -> list[HealthCheck]:
        def judge(value: float) -> Band:
            return "ok" if value < 0.05 else "acceptable" if value < 0.1 else "poor" if value <= 0.2 else "red"

        most, advice = max(row.dead for row in self.rows), dead_advice(self.config)
        rule = "< 5%, < 10% acceptable, red above 20%"
        ever: Band = "ok" if most < 0.1 else "poor" if most <= 0.9 else "red"
        return [
            self.check("dead", self.last.dead, judge(self.last.dead), rule, advice),
            self.check("dead at worst", most, ever, "< 10% throughout, red above 90%", advice),
        ]

    def _fvu(self) -> list[HealthCheck]:
        fvu = 1 - self.last.explained_variance
        band: Band = "ok" if fvu < 0.05 else "acceptable" if fvu < 0.1 else "poor" if fvu <= 0.15 else "red"
        found = [self.check("FVU", fvu, band, "< .05, < .10 acceptable, red above .15", "ev")]
        late = [1 - row.explained_variance for row in self.rows if row.step > self.begun]
        if late:
            high, low = max(late), min(late)
            flag: Band = "red" if high > 0.27 else "ok"
            found.append(self.check("FVU at worst", high, flag, "up to .27 after the initial phase", "ev"))
            if self.low_precision:
                flag = "red" if low < 0.01 else "ok"
                found.append(self.check("FVU at best", low, flag, "at least .01 in low precision", "precision"))
        return found

    def _gradients(self) -> list[HealthCheck]:
        """The norm that is furthest from 1, by factors."""
        norms = [row.grad_norm for row in self.rows if row.step > self.begun]
        if not norms or self.config.sae.fitted:
            return []
        value = max(norms, key=lambda norm: abs(math.log(norm)) if norm > 0 and math.isfinite(norm) else math.inf)
        band: Band = "ok" if all(1e-8 <= norm <= 1e2 for norm in norms) else "red"
        return [self.check("gradient norm", value, band, "1e-8 to 1e2 after the initial phase", "gradients")]

    def broken(self) -> list[str]:
        """The rules of FIXED that do not hold."""
        trend = self.trend()
        off = abs(self.last.l0 - self.target) / self.d_sae
        names = f"{self.target / self.d_sae:.1%} of latents ± 2 points"
        rules = {
            "a figure is not finite": any(not math.isfinite(value) for row in self.rows for value in row.line.values()),
            "L0 is not k": self.fixed is not None and abs(self.last.l0 / self.fixed - 1) > 1 / 8,
            "L0 does not fall after warm-up": self.steered and (trend is None or trend >= 1),
            f"L0 does not end at {names}": off > POINTS and not self.free,
            "10% of latents or more were dead": max(row.dead for row in self.rows) >= 0.1,
            "more than 90% of latents were dead": max(row.dead for row in self.rows) > 0.9,
            "the largest activation was at most 1e-6": min(row.max_activation for row in self.rows) <= 1e-6,
            "all codes were 0": min(row.l0 for row in self.rows) <= 0,
        }
        return [rule for rule, holds in rules.items() if holds]

    @property
    def steered(self) -> bool:
        """Whether a penalty alone should bring L0 down."""
        return self.fixed is None and self.recipe.target_l0 is None and not self.free

    def hopeless(self) -> str:
        steps, now = self.recipe.steps, self.last.step
        begun = [row for row in self.rows if row.step > self.begun]
        recent = [row for row in begun if row.step >= now - PATIENCE * steps]
        window = begun[-max(3, len(recent)) :]
        if now - PATIENCE * steps >= self.begun and len(window) >= 3:
            if all(row.dead > 0.9 for row in window):
                return f"{self.last.dead:.0%} of the latents are dead. {ADVICE[dead_advice(self.config)]}"
            if all(row.l0 < EMPTY or row.max_activation <= 1e-6 for row in window):
                return f"hardly any code is not 0 (L0 {self.last.l0:.2g}). {ADVICE[self._low()]}"
        trend = self.trend()
        if self.steered and now >= 0.5 * steps and trend is not None and trend > RISE:
            count = len(self.after) // 5
            half = self.after[-2 * count : -count]
            if sum(row.l0 for row in self.after[-count:]) > sum(row.l0 for row in half):
                return f"L0 rises: it is {trend:.2f} times what it was after warm-up. {ADVICE['l0 high']}"
        return ""


def _band(value: float, ok: tuple[float, float], red: tuple[float, float]) -> Band:
    """ok inside the first pair, red outside the second, acceptable between."""
    if ok[0] <= value <= ok[1]:
        return "ok"
    return "acceptable" if red[0] <= value <= red[1] else "red"
