"""The scores on trial: controls in which they must show nothing, and others in which they must find what is there.

A score joins by its name: in `drawn_scores` if it scores atoms alone, in `code_scores` if it scores codes, in TRAINED if it
is in a suite's records. (docs/method.md §Controls)
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from scipy.stats import ks_2samp
from torch import Tensor

from husai.analysis.fit import evaluate_fit
from husai.analysis.ideal import signed_axes
from husai.analysis.matching import max_cosine, pwmcc
from husai.analysis.nulls import DRAWN_NULLS, Draw, coded_sampler, pairwise, sampler
from husai.analysis.planted import atom_recovery, firing_recovery, match_true
from husai.analysis.recovery import decoder_overlap, fourier_overlap, tuning
from husai.analysis.stats import (
    Interval,
    difference_p,
    holm,
    monte_carlo_p,
    pair_interval,
    pair_mean,
    seed_interval,
)
from husai.analysis.subspaces import subspace_recovery
from husai.cell import Job, hook_of
from husai.config import SuiteConfig
from husai.measure import Hook, Members
from husai.measure.causes import cause_of_coded, rotation_of_coded
from husai.report.results import NULLS, CellView, SuiteResults
from husai.report.tables import has, interval, markdown, number, sentences
from husai.resources import find_config
from husai.runs import write_atomic
from husai.sae.dictionary import Dictionary
from husai.sae.weights import load_sae
from husai.seeding import generator
from husai.suite import model_place, run_suite
from husai.sweep import plan
from husai.tasks import Task
from husai.truth.controls import token_dictionary

SUITES = ("controls", "controls-clock", "controls-memorised", "controls-planted", "controls-random")
SEEDS, ATOMS = 5, 64  # dictionaries of a drawn experiment, and atoms of each
EXPERIMENTS = 200  # drawn experiments put on trial, and as many that their null is made of
DRAWS = 499  # orders of the rows that a code is scored in, and null dictionaries that a model is asked of
ALPHA = 0.05

Kind = Literal["negative", "positive"]
Test = Literal["drawn", "counted", "trained"]


class Control(NamedTuple):
    """One score on trial: `value` beside `level`, the null at which it must sit (negative) or which it must exceed.

    test: how p was found, from two sets of drawn dictionaries, by counting draws, or from trained SAEs seed by seed.
    """

    kind: Kind
    test: Test
    question: str
    source: str
    score: str
    value: Interval
    null: str
    level: Interval
    p: float


# --- drawn dictionaries at the null they were drawn from ---


def drawn_scores(hook: Hook) -> dict[str, Callable[[list[Tensor]], float]]:
    """The figure of one experiment's dictionaries, by the name of its score; a score of atoms alone joins here."""
    scores: dict[str, Callable[[list[Tensor]], float]] = {
        "pwmcc": lambda drawn: pair_mean(pairwise(drawn, pwmcc)),
        "max_cosine": lambda drawn: pair_mean(pairwise(drawn, max_cosine)),
    }
    if (truth := hook.truth) is not None:
        scores["fourier_overlap_unweighted"] = lambda drawn: _mean(fourier_overlap(atoms, truth) for atoms in drawn)
        scores["decoder_overlap_unweighted"] = lambda drawn: _mean(decoder_overlap(atoms, truth) for atoms in drawn)
    if (planted := hook.planted) is not None:
        scores["gt_mcc"] = lambda drawn: _mean(atom_recovery(atoms, planted.atoms).gt_mcc for atoms in drawn)
    return scores


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))


def drawn_controls(hook: Hook, source: str, *, experiments: int = EXPERIMENTS) -> list[Control]:
    """Experiments drawn from each null, against other experiments of that null.

    p: Kolmogorov-Smirnov, of the two sets. (Their Monte-Carlo p-values share the null's draws, so a test of these for
    uniformity would take dependent numbers for independent ones. As ranks they are uniform iff the two sets are alike.)
    """
    found, scores = [], drawn_scores(hook)
    for null in DRAWN_NULLS:
        draw = sampler(null, hook.x)
        on_trial, reference = (
            [_experiment(draw, generator(f"{purpose}-{null}", 0, r)) for r in range(experiments)]
            for purpose in ("control", "null")
        )
        for score, statistic in scores.items():
            drawn, level = (np.array([statistic(atoms) for atoms in ensembles]) for ensembles in (on_trial, reference))
            false = np.mean([monte_carlo_p(value, level) <= ALPHA for value in drawn])
            question = f"drawn `{null}` dictionaries (p ≤ {ALPHA:g} in {false:.1%} of {experiments})"
            p = float(ks_2samp(drawn, level).pvalue)  # pyright: ignore[reportAttributeAccessIssue]
            found.append(Control("negative", "drawn", question, source, score, _spread(drawn), null, _spread(level), p))
    return found


def _experiment(draw: Draw, stream: torch.Generator) -> list[Tensor]:
    return [draw(ATOMS, stream) for _ in range(SEEDS)]


def _spread(draws: Float[np.ndarray, "draws"]) -> Interval:
    """Mean and the range of 95% of the draws."""
    return Interval(float(draws.mean()), *(float(q) for q in np.quantile(draws, [0.025, 0.975])))


# --- codes against the grid in another order ---


def code_scores(hook: Hook, atoms: Float[Tensor, "n_live d"]) -> dict[str, Callable[[Tensor], float]]:
    """The figure of the live atoms' codes, by the name of its score; a score of codes joins here."""
    scores: dict[str, Callable[[Tensor], float]] = {}
    if (family := hook.families) is not None:
        scores["purity"] = lambda codes: float(np.nanmean(tuning(codes, family).purity))
    if (planted := hook.planted) is not None:
        active, matching = planted.codes > 0, match_true(atoms, planted.atoms)
        scores["firing_f1"] = lambda codes: firing_recovery(codes != 0, active, matching).firing_f1
    return scores


def row_controls(kind: Kind, question: str, source: str, dictionary: Dictionary, hook: Hook) -> list[Control]:
    """Do codes know which row they are on? One-sided Monte-Carlo p over random orders of the rows.

    A stand-in's rows could stand in any order, so this null is exact there.
    """
    codes = dictionary.encode(hook.x)
    live = evaluate_fit(dictionary, hook.x, codes).live
    codes, found = codes[:, live], []
    for score, statistic in code_scores(hook, dictionary.atoms[live]).items():
        stream = generator("control-rows", 0)
        draws = np.array([statistic(codes[torch.randperm(len(codes), generator=stream)]) for _ in range(DRAWS)])
        value = Interval(statistic(codes), float("nan"), float("nan"))
        p = monte_carlo_p(value.mean, draws)
        found.append(
            Control(kind, "counted", question, source, score, value, "rows in another order", _spread(draws), p)
        )
    return found


# --- a model and dictionaries that were trained on something else ---

FOLLOWED = {"subspace_recovered": "data_top_k", "rotation": "data_top_k", "ablation": "data_pursued"}


def model_controls(kind: Kind, question: str, source: str, dictionaries: list[Dictionary], hook: Hook) -> list[Control]:
    """Does a model follow these dictionaries, on its own activations? One-sided Monte-Carlo p over null dictionaries.

    They have as many atoms and the same L0, and know the covariance, which is what a stand-in keeps. What is compared
    with each is the mean over the dictionaries, which varies less, so that the test errs on the side of finding nothing.
    """
    assert hook.site is not None
    hook = hook.with_samples(hook.site.x)
    members = Members.of(dictionaries, hook)
    size, l0 = max(members.n_live), _mean(fit.l0 for fit in members.fits)
    figures = [reading.figures | causes for reading, causes in zip(members.readings, members.causes, strict=True)]
    levels = {null: _followed(null, size, l0, hook) for null in dict.fromkeys(FOLLOWED.values())}
    found = []
    for score, null in FOLLOWED.items():
        values, draws = np.array([one[score] for one in figures]), np.array([one[score] for one in levels[null]])
        value, p = seed_interval(values), monte_carlo_p(float(values.mean()), draws)
        found.append(Control(kind, "counted", question, source, score, value, null, _spread(draws), p))
    return found


def _followed(null: str, size: int, l0: float, hook: Hook) -> list[dict[str, float]]:
    """The scores that are read against this null, of its draws."""
    draw, stream = coded_sampler(null, hook.x, l0), generator(f"control-{null}", 0)
    drawn = (draw(size, stream) for _ in range(DRAWS))
    if null.endswith("_pursued"):
        return [cause_of_coded(coded, hook) for coded in drawn]
    assert hook.truth is not None
    assert hook.families is not None
    found = []
    for coded in drawn:
        planes = subspace_recovery(coded.codes, coded.atoms, hook.truth, hook.families).aggregate
        found.append({"subspace_recovered": planes.recovered, "rotation": rotation_of_coded(coded, hook)})
    return found


# --- SAEs against SAEs ---

TRAINED = (
    "pwmcc",
    "max_cosine",
    "fourier_overlap",
    "decoder_overlap",
    "gt_mcc",
    "subspace_recovered",
    "rotation",
    "ablation",
)


def trained_controls(
    kind: Kind, question: str, cell: CellView, other: CellView, null: str, scores: tuple[str, ...] = TRAINED
) -> list[Control]:
    """The SAEs of one cell against those of another with the same seeds; p is that of their difference, seed by seed."""
    found = []
    for score in scores:
        if not (has(cell, score) and has(other, score)):
            continue
        if len(cell.per_seed(score)):
            difference = seed_interval(cell.per_seed(score) - other.per_seed(score))
        else:
            difference = pair_interval(cell.matrix(score) - other.matrix(score))
        p = difference_p(difference, cell.seeds)
        found.append(
            Control(kind, "trained", question, cell.title, score, cell.value(score), null, other.value(score), p)
        )
    return found


# --- all of it ---


@dataclass(frozen=True)
class Trial:
    """A finished suite of controls: its cells, and for each the hook it was measured at and its SAEs."""

    results: SuiteResults
    jobs: dict[str, Job]

    @classmethod
    def of(cls, name: str, runs: Path, *, jobs: int) -> "Trial":
        """Computes what is missing under `runs`."""
        suite = SuiteConfig.load(find_config(name, "suites"))
        place = runs / "results" / name
        run_suite(suite, place, runs, jobs=jobs)
        places = [model_place(subject, suite.name, runs) for subject in suite.subjects]
        planned, _ = plan(suite, places, runs)
        return cls(SuiteResults.load(place), {job.cell.run_id: job for job in planned})

    def cell(self, *, control: str = "", sparsity: float | None = None) -> CellView:
        """The cell with this stand-in, and with this sparsity where a suite has several."""
        cells = (cell for cell in self.results.cells if cell.control == control)
        return next(cell for cell in cells if sparsity in (None, cell.sparsity))

    def surrogates(self, sparsity: float) -> list[Control]:
        """SAEs on a surrogate against SAEs on an independent one."""
        first, second = (self.cell(control=f"surrogate-{seed}", sparsity=sparsity) for seed in (0, 1))
        question = "SAEs on a surrogate, against SAEs on an independent one"
        return trained_controls("negative", question, first, second, "surrogate_trained")

    def hook(self, cell: CellView) -> Hook:
        return hook_of(self.jobs[cell.run_id])

    def dictionaries(self, cell: CellView) -> list[Dictionary]:
        """The SAEs, seed by seed."""
        job = self.jobs[cell.run_id]
        seeds = zip(job.cell.config.init_seeds, job.cell.config.data_seeds, strict=True)
        return [load_sae(Path(job.folder) / f"seed-{init}-{data}") for init, data in seeds]

    def rows(self, kind: Kind, question: str, cell: CellView) -> list[Control]:
        """Of the first seed."""
        return row_controls(kind, question, cell.title, self.dictionaries(cell)[0], self.hook(cell))


# --- stability without a circuit ---


class TokenRecovery(NamedTuple):
    """Are atoms tokens? gt_mcc and firing_f1 over seeds, with one atom a token as the truth; nulls of gt_mcc by name.

    explained: share of the variance that the sum of one vector a token explains.
    """

    explained: float
    gt_mcc: Interval
    firing_f1: Interval
    nulls: dict[str, Interval]


def token_recovery(dictionaries: list[Dictionary], hook: Hook) -> TokenRecovery:
    """How far SAEs have found the tokens of a hook whose samples are a task's grid."""
    assert isinstance(hook.task, Task), "only a grid has tokens"
    tokens = token_dictionary(hook.x, hook.task)
    residual = tokens.x - tokens.codes @ tokens.atoms
    members = Members.of(dictionaries, Hook(hook.x, planted=tokens))
    found = [atom_recovery(atoms, tokens.atoms).gt_mcc for atoms in members.atoms]
    size, nulls = max(members.n_live), {}
    for null in DRAWN_NULLS:
        draw = sampler(null, hook.x)
        drawn = [draw(size, generator(f"tokens-{null}", r)) for r in range(SEEDS)]
        nulls[null] = seed_interval(np.array([atom_recovery(atoms, tokens.atoms).gt_mcc for atoms in drawn]))
    return TokenRecovery(
        explained=float(1 - residual.square().sum() / tokens.x.square().sum()),
        gt_mcc=seed_interval(np.array(found)),
        firing_f1=seed_interval(np.array([firing.firing_f1 for firing in members.firings])),
        nulls=nulls,
    )


def token_table(trials: list[Trial]) -> str:
    """Every cell of these trials read against the tokens."""
    header = ["source", "pwmcc", "variance in tokens", "atoms against tokens", *DRAWN_NULLS, "firing_f1 against tokens"]
    lines = []
    for trial in trials:
        for cell in trial.results.cells:
            found = token_recovery(trial.dictionaries(cell), trial.hook(cell))
            levels = [number(found.nulls[null].mean) for null in DRAWN_NULLS]
            figures = [interval(cell.value("pwmcc")), number(found.explained, 4), interval(found.gt_mcc)]
            lines.append([cell.title, *figures, *levels, interval(found.firing_f1)])
    return markdown(header, lines)


def all_controls(trials: dict[str, Trial]) -> list[Control]:
    """Every control, the negative ones first."""
    main, planted, clock = trials["controls"], trials["controls-planted"], trials["controls-clock"]
    own = {k: main.cell(sparsity=k) for k in (1, 2)}
    stand_ins = {name: main.cell(control=name, sparsity=2) for name in ("surrogate-0", "permuted-0")}
    known = planted.cell()
    lost = {name: planted.cell(control=name) for name in ("surrogate-0", "permuted-0")}
    found = drawn_controls(main.hook(own[2]), f"add-p113-0, {own[2].short_hook}, {ATOMS} atoms")
    found += drawn_controls(planted.hook(known), f"{known.model}, {ATOMS} atoms")
    for trial, cells in ((main, stand_ins), (planted, lost)):
        for name, cell in cells.items():
            found += trial.rows("negative", f"codes on `{name}` against the rows", cell)
    for trial, sparsity in ((main, 1), (main, 2), (clock, 1), (clock, 5)):
        found += trial.surrogates(sparsity)
    found += main.rows("positive", "the activations themselves, passed off as a control", own[2])
    found += planted.rows("positive", "codes of planted samples against the rows", known)
    question = "SAEs on permuted samples, against SAEs on their surrogate"
    found += trained_controls(
        "negative", question, lost["permuted-0"], lost["surrogate-0"], "surrogate_trained", ("gt_mcc",)
    )
    pairs = ((known, lost["surrogate-0"], "gt_mcc"), (own[1], main.cell(control="surrogate-0", sparsity=1), "pwmcc"))
    pairs += ((clock.cell(sparsity=1), clock.cell(control="surrogate-0", sparsity=1), "pwmcc"),)
    for name in ("surrogate-0", "permuted-0"):
        cell = clock.cell(control=name, sparsity=1)
        question = f"SAEs on `{name}`, asked of the model"
        found += model_controls("negative", question, cell.title, clock.dictionaries(cell), clock.hook(cell))
    exact = clock.hook(clock.cell(sparsity=1))
    assert exact.truth is not None
    bases, mean = [subspace.basis for subspace in exact.truth.subspaces], exact.x.mean(0)
    axes = [signed_axes(bases, mean, [turn / SEEDS] * len(bases)) for turn in range(SEEDS)]
    found += model_controls("positive", "signed axes of the true planes", "compiled clock, mlp_out", axes, exact)
    for cell, twin, score in pairs:
        question = "SAEs on the samples, against SAEs on their surrogate"
        found += trained_controls("positive", question, cell, twin, "surrogate_trained", (score,))
    return found


class Verdict(NamedTuple):
    """A control with its corrected p. holds: it came out as it must."""

    control: Control
    p_holm: float
    holds: bool

    @property
    def words(self) -> str:
        if self.control.kind == "negative":
            return "at its null" if self.holds else "**NOT at its null**"
        return "found" if self.holds else "**MISSED**"

    def line(self) -> dict[str, object]:
        """One line of `controls.csv`."""
        plain = self.control._asdict()
        value, level = plain.pop("value"), plain.pop("level")
        figures = dict(zip(("value", "ci_low", "ci_high"), value, strict=True))
        figures |= dict(zip(("null_value", "null_low", "null_high"), level, strict=True))
        return plain | figures | {"p_holm": self.p_holm, "holds": self.holds}


def judged(controls: list[Control]) -> list[Verdict]:
    """p corrected by Holm's method, among the negative controls of one kind of test and among the positive ones.

    A negative control holds if it is not rejected; a positive one if it is, and lies above its null. Raises ValueError if
    there are so many that counting cannot reject any.
    """
    found = []
    for family in dict.fromkeys(_family(control) for control in controls):
        own = [control for control in controls if _family(control) == family]
        if any(c.test == "counted" for c in own) and len(own) > ALPHA * (DRAWS + 1):
            raise ValueError(f"{len(own)} controls need more than {DRAWS} draws for one of them to be able to fail")
        for control, p in zip(own, holm(np.array([c.p for c in own])).tolist(), strict=True):
            above = control.value.mean > control.level.mean
            found.append(Verdict(control, p, (p <= ALPHA and above) if control.kind == "positive" else p > ALPHA))
    return found


def _family(control: Control) -> tuple[Kind, Test | None]:
    return control.kind, control.test if control.kind == "negative" else None


def control_table(verdicts: list[Verdict]) -> str:
    header = ["question", "source", "score", "value", "null", "value of the null", "p", "p (Holm)", "verdict"]
    lines = [
        [
            *(c.question, c.source, c.score, interval(c.value), c.null, interval(c.level), f"{c.p:.2g}"),
            f"{verdict.p_holm:.2g}",
            verdict.words,
        ]
        for verdict in verdicts
        for c in [verdict.control]
    ]
    return markdown(header, lines)


def cell_table(cells: list[CellView]) -> str:
    """Every trained cell beside its chance levels."""
    header = ["source", "verified", "EV", "live atoms", "pwmcc", *NULLS, "fourier_overlap", "purity", "gt_mcc"]
    lines = [
        [
            cell.title + ("" if cell.converged else " *"),
            "yes" if cell.verified else "no",
            number(cell.value("explained_variance").mean, 4),
            number(cell.value("n_live").mean, 1),
            interval(cell.value("pwmcc")),
            *(interval(cell.value("pwmcc", null)) for null in NULLS),
            *(number(cell.value(metric).mean) for metric in ("fourier_overlap", "purity", "gt_mcc")),
        ]
        for cell in cells
    ]
    return markdown(header, lines)


def summary(verdicts: list[Verdict], trials: dict[str, Trial]) -> str:
    """The text of `summary.md`."""
    results = [trial.results for trial in trials.values()]
    said = "\n".join(
        f"- **{cell.title}**: {sentences(cell, own.surrogate_of(cell))[0]}" for own in results for cell in own.cells
    )
    truthless = [trials[name] for name in ("controls-random", "controls-memorised")]
    failed = sum(not verdict.holds for verdict in verdicts)
    outcome = f"{failed} of {len(verdicts)} controls do not" if failed else f"All {len(verdicts)} controls"
    tables = {kind: control_table([v for v in verdicts if v.control.kind == kind]) for kind in ("negative", "positive")}
    return f"""# Controls

{outcome} come out as they must. p-values are corrected by Holm's method, at {ALPHA:g},
among the negative ones of a kind of test and among the positive ones. An interval is 95%: of the
draws for drawn dictionaries and rows in another order, over seeds else. Every definition: docs/method.md §Controls.

## Negative controls: nothing is there

{tables["negative"]}
## Positive controls: something is there

{tables["positive"]}
## The cells behind them

An asterisk: not converged. A dash: nothing to score, as the overlap of a model without truth.

{cell_table([cell for own in results for cell in own.cells])}
{said}

## Stability without a circuit

SAEs on models that compute nothing, read against one atom a token (gt_mcc and firing_f1, with tokens for planted atoms).

{token_table(truthless)}"""


def run_controls(out: Path, runs: Path, *, jobs: int) -> bool:
    """Compute what is missing under `runs`, write `controls.csv` and `summary.md`; whether every control holds."""
    trials = {name: Trial.of(name, runs, jobs=jobs) for name in SUITES}
    verdicts = judged(all_controls(trials))
    table = pd.DataFrame([verdict.line() for verdict in verdicts]).round(6)
    write_atomic(out / "controls.csv", table.to_csv(index=False))
    write_atomic(out / "summary.md", summary(verdicts, trials))
    return all(verdict.holds for verdict in verdicts)
