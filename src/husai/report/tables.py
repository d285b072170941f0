"""`summary.md` and the CSV matrices of a suite."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from husai.analysis.stats import MANY
from husai.analysis.verdict import rung_sentence, symmetry_sentence
from husai.report.calibration import predicts
from husai.report.caveats import caveats, heading
from husai.report.intake import file_name
from husai.report.measures import measures
from husai.report.results import NULLS, RUNGS, CellView, SuiteResults, rungs_of
from husai.report.significance import significance
from husai.report.text import beside_table, has, interval, markdown, named, number, plural
from husai.report.variance import variance_section
from husai.report.verdicts import score_sentences

STAND_INS = """
Rows named surrogate or permuted: SAEs trained on samples that stand in for the source's. Fit, agreement, symmetry and codes
are of those samples, atoms and planes are held against the source's truth, and the model is asked on its own activations.
"""

SAID = """Which rungs every score exceeds, by intervals that do not overlap and are not corrected for their number. Of
rungs without an interval, drawn a few times or of the fit, the mean is named, and nothing is said to exceed them.
"""


def fit_table(cells: list[CellView]) -> str:
    header = ["hook", "SAE", "steps", "EV", "L0", "dead", "live atoms"]
    rows = [
        [
            *named(cell),
            str(cell.steps),
            interval(cell.value("explained_variance"), 4),
            interval(cell.value("l0"), 2),
            f"{cell.value('dead').mean:.1%}",
            number(cell.value("n_live").mean, 1),
        ]
        for cell in cells
    ]
    return markdown(header, rows)


def stability_table(results: SuiteResults) -> str:
    twins = {cell.run_id: results.surrogate_of(cell) for cell in results.cells}
    trained = ["surrogate_trained"] if any(twins.values()) else []
    rungs = [null for null in RUNGS if any(has(cell, "pwmcc", null) for cell in results.cells)]
    header = ["hook", "SAE", "pwmcc", *rungs, *trained, "adjusted by data_points", "max_cosine"]
    rows = [
        [
            *named(cell),
            interval(cell.value("pwmcc")),
            *(interval(cell.value("pwmcc", null)) for null in rungs),
            *(interval(twin.value("pwmcc")) if (twin := twins[cell.run_id]) else "–" for _ in trained),
            adjusted_text(cell, "data_points"),
            number(cell.value("max_cosine").mean),
        ]
        for cell in results.cells
    ]
    return markdown(header, rows)


def adjusted_text(cell: CellView, null: str) -> str:
    """The adjusted score, or the plain difference where the null is above .9 and a ratio would mean nothing."""
    score = cell.value("pwmcc_adjusted", null)
    if score.mean == score.mean:
        return interval(score)
    return f"difference {interval(cell.value('pwmcc_difference', null))}"


def symmetry_table(cells: list[CellView]) -> str:
    header = ["hook", "SAE", "pwmcc", "shifted", "self_shift", "aligned", "aligned data_points", "shift_support"]
    rows = [
        [
            *named(cell),
            *(number(cell.value(metric).mean) for metric in ("pwmcc", "shifted", "self_shift", "aligned")),
            number(cell.value("aligned", "data_points").mean),
            number(cell.value("shift_support").mean),
        ]
        for cell in cells
    ]
    return markdown(header, rows)


def recovery_table(cells: list[CellView]) -> str:
    header = ["hook", "SAE", "fourier_overlap", "unweighted", *NULLS, "decoder_overlap", "purity"]
    rows = [
        [
            *named(cell),
            interval(cell.value("fourier_overlap")) if has(cell, "fourier_overlap") else "no truth",
            number(cell.value("fourier_overlap_unweighted").mean),
            *(number(cell.value("fourier_overlap", null).mean) for null in NULLS),
            number(cell.value("decoder_overlap").mean),
            number(cell.value("purity").mean),
        ]
        for cell in cells
    ]
    return markdown(header, rows)


TRUTHS = {
    "true atoms": "true_atoms",
    "of a plane": "true_plane",
    "of an answer": "true_answer",
    "planes recovered": "subspace_recovered",
    "R² of 4 codes": "subspace_r2",
    "answer specificity": "answer_specificity",
}
CAUSES = {
    "rotation": "rotation",
    "ablation": "ablation",
    "spliced accuracy": "spliced_accuracy",
    "CE recovered": "ce_recovered",
}


def planted_table(cells: list[CellView]) -> str:
    metrics = ("gt_precision", "gt_mcc_matched", "firing_f1", "firing_precision", "firing_recall")
    header = ["hook", "SAE", "gt_mcc", *NULLS, *metrics, "l0_true"]
    rows = [
        [
            *named(cell),
            interval(cell.value("gt_mcc")),
            *(number(cell.value("gt_mcc", null).mean) for null in NULLS),
            *(number(cell.value(metric).mean) for metric in metrics),
            number(cell.value("l0_true").mean, 2),
        ]
        for cell in cells
    ]
    return markdown(header, rows)


def label_table(results: SuiteResults, cells: list[CellView]) -> str:
    """How many live atoms carry which label, over all seeds."""
    live = results.atoms[results.atoms["live"] & results.atoms["run_id"].isin([cell.run_id for cell in cells])]
    counts = Counter(zip(live["run_id"], live["label"].astype(str), strict=True))
    labels = sorted({label for _, label in counts})
    rows = [[*named(cell), *(str(counts[cell.run_id, label]) for label in labels)] for cell in cells]
    return markdown(["hook", "SAE", *labels], rows)


def sentences(cell: CellView, surrogate: CellView | None = None) -> tuple[str, str]:
    """What the numbers say of one cell: the rungs it exceeds, and its symmetry. surrogate: the cell trained on one."""
    symmetry = ""
    if has(cell, "aligned"):
        symmetry = symmetry_sentence(
            cell.value("pwmcc").mean,
            cell.value("shifted").mean,
            cell.value("self_shift").mean,
            cell.value("aligned"),
            cell.value("aligned", "data_points"),
            cell.value("shift_support").mean,
        )
    return rung_sentence(cell.value("pwmcc"), rungs_of(cell, surrogate)), symmetry


def gate_lines(name: str, gate: dict[str, Any]) -> str:
    keys = ", ".join(str(k) for k in gate["key_frequencies"])
    verdict = (
        "passed" if gate["passed"] else f"**failed** ({', '.join(gate['failed_conditions'])}); all results unverified"
    )
    conditions = "\n".join(f"- {condition}" for condition in gate["conditions"])
    plain = (
        ""
        if gate["variant"] == "plain"
        else f" Judged as variant {gate['variant']}; its plain fve is {gate['fve']:.3f}."
    )
    named = f"Model `{name}` ({gate['op']}, p = {gate['p']})"
    return f"{named}: gate {verdict}; key frequencies {keys}.{plain}\n\n{conditions}\n"


def truth_lines(results: SuiteResults) -> str:
    lines = []
    for name, hooks in results.truth.items():
        if "/" in name:  # a stand-in, whose truth is its source's
            continue
        named = f"{name} " if len(results.sources) > 1 else ""
        lines += [
            f"- {named}`{hook}` ({truth['dim']} dimensions): {_truth_text(truth)}" for hook, truth in hooks.items()
        ]
    return "\n".join(lines) + "\n"


def _truth_text(truth: dict[str, Any]) -> str:
    if "atoms" in truth:
        most, least = truth["firing_rates"]
        return (
            f"{truth['atoms']} planted atoms, largest |cosine| of two "
            f"{truth['largest_cosine']:.3f}; {truth['l0']:.2f} active a sample, each in {least:.2%} to {most:.2%}"
        )
    parts = ", ".join(f"{s['label']} {s['share']:.3f}" for s in truth["subspaces"])
    parts = f"shares of the variance: {parts}" if parts else "none above 1%"
    unexplained = truth["unexplained"]
    known = unexplained is not None and unexplained == unexplained
    return parts + (f"; in no Fourier family: {unexplained:.3f}" if known else "")


def circuits(results: SuiteResults) -> str:
    gates = "\n".join(gate_lines(name, gate) for name, gate in results.gates.items())
    return f"## The circuit\n\n{gates}\n" if gates else ""


def truths(results: SuiteResults) -> str:
    stand_ins = STAND_INS if any(cell.control for cell in results.cells) else ""
    return f"## The truth at each hook\n\n{truth_lines(results)}{stand_ins}\n"


def verdicts(results: SuiteResults) -> str:
    """Every cell's sentences, under each that is no control those of its other scores."""
    lines = []
    for cell in results.cells:
        said = " ".join(sentences(cell, results.surrogate_of(cell))).strip()
        lines.append(f"- **{cell.place}, {cell.label}**{'' if cell.converged else ' (not converged)'}: {said}")
        lines += [] if cell.control else [f"  - {one}" for one in score_sentences(results, cell)]
    return f"## What the numbers say{heading(results.cells)}\n\n{SAID}\n" + "\n".join(lines) + "\n\n"


def fit(results: SuiteResults) -> str:
    return f"## Fit{heading(results.cells)}\n\n{fit_table(results.cells)}\n"


def stability(results: SuiteResults) -> str:
    title = f"## Stability: pwmcc beside its chance levels{heading(results.cells)}"
    return f"{title}\n\n{stability_table(results)}\n"


def symmetries(results: SuiteResults) -> str:
    moved = [cell for cell in results.cells if has(cell, "shifted")]
    return f"## Symmetry\n\n{symmetry_table(moved)}\n" if moved else ""


def recoveries(results: SuiteResults) -> str:
    planted = [cell for cell in results.cells if has(cell, "gt_mcc")]
    fourier = [cell for cell in results.cells if not has(cell, "gt_mcc")]
    true = [cell for cell in fourier if has(cell, "true_atoms")]
    acted = [cell for cell in fourier if has(cell, "spliced_accuracy")]
    beside = "highest chance level in brackets"
    parts = []
    if planted:
        parts.append(f"## Recovery: gt_mcc beside its chance levels\n\n{planted_table(planted)}")
    if fourier:
        parts.append(f"## Recovery: fourier_overlap beside its chance levels\n\n{recovery_table(fourier)}")
    if true:
        parts.append(f"## Recovery: true atoms and planes, {beside}\n\n{beside_table(true, TRUTHS)}")
    if acted:
        parts.append(f"## What the model makes of them, {beside}\n\n{beside_table(acted, CAUSES)}")
    if fourier:
        parts.append(f"## Labels of live atoms\n\n{label_table(results, fourier)}")
    return "\n".join(parts)


def opening(results: SuiteResults) -> str:
    """Title, how to read the numbers, and what must be known before they are compared."""
    planted = any(has(cell, "gt_mcc") for cell in results.cells)
    fourier = not all(has(cell, "gt_mcc") for cell in results.cells)
    judged = [*(["gt_mcc"] if planted else []), *(["the unweighted overlap"] if fourier else [])]
    caution = "".join(f"**Caution.** {text}\n\n" for text in caveats(results))
    method = "delete-one-seed jackknife for pairs" if results.seeds < MANY else "corrected for skewness"
    extent = f"{plural(len(results.cells), 'cell')} of {plural(results.seeds, 'seed')}"
    return f"""# Results of the suite `{results.name}`

{extent}. Intervals are 95%, over seeds ({method}, not cut off at 1).
Those of nulls hold 95% of the draws (`untrained`: jackknife, like the score).
An asterisk marks cells that have not converged: EV, pwmcc, {" or ".join(judged)}, or the number of live atoms still moved
over the last doubling of steps.

{caution}"""


# A section joins by its name here: results in, markdown out, '' where it has nothing to say.
SECTIONS: tuple[Callable[[SuiteResults], str], ...] = (
    opening,
    circuits,
    truths,
    verdicts,
    fit,
    stability,
    significance,
    measures,
    symmetries,
    predicts,
    recoveries,
    variance_section,
)


def summary(results: SuiteResults) -> str:
    """The text of `summary.md`."""
    return "".join(section(results) for section in SECTIONS)


def write_tables(results: SuiteResults, out: Path) -> list[Path]:
    """`summary.md` and one CSV a cell and score with the S×S matrix."""
    (out / "matrices").mkdir(parents=True, exist_ok=True)
    written = [out / "summary.md"]
    written[0].write_text(summary(results), encoding="utf-8")
    slugs = Counter(cell.slug for cell in results.cells)
    for cell in results.cells:
        name = cell.slug if slugs[cell.slug] == 1 else file_name(f"{cell.slug}_{cell.run_id}")
        for metric in ("pwmcc", "max_cosine"):
            written.append(out / "matrices" / f"{metric}_{name}.csv")
            pd.DataFrame(cell.matrix(metric)).round(6).to_csv(written[-1], index=False)
    return written
