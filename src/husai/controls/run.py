"""All controls, from suites that are trained for them."""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from husai.analysis.ideal import signed_axes
from husai.analysis.nulls import DRAWN_NULLS
from husai.cell import Job, hook_of
from husai.config import SuiteConfig
from husai.controls.judgement import Verdict, control_table, judged
from husai.controls.kinds import (
    ALPHA,
    ATOMS,
    SEEDS,
    Control,
    Kind,
    drawn_controls,
    model_controls,
    row_controls,
    trained_controls,
)
from husai.controls.tokens import token_recovery
from husai.measure import Hook
from husai.report.results import NULLS, CellView, SuiteResults
from husai.report.tables import sentences
from husai.report.text import interval, markdown, number
from husai.resources import find_config
from husai.sae.dictionary import Dictionary
from husai.sae.weights import load_sae
from husai.store.files import write_atomic
from husai.suite import model_place, run_suite
from husai.sweep.plan import plan
from husai.sweep.ways import Ways

SUITES = ("controls", "controls-clock", "controls-memorised", "controls-planted", "controls-random")


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
        run_suite(suite, place, runs, Ways(jobs=jobs))
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
