"""Do trainings in low precision end where fp32 does?

    python scripts/precision.py [--steps 300] [--architectures topk,relu] [--out results/benchmarks]

The reference task: SAEs on resid_post of a reference model, two seeds, every pair of dtypes with the same initial weights
and the same batches. Printed and written as precision.md and precision.csv: explained variance, L0 and dead latents on the
whole grid (mean of the seeds), their distance from fp32, agreement of live atoms with fp32's of the same seed beside that
between seeds, and the time of a step. A second fp32 row, whose gradients differ by rounding alone, says what chance does.
"""

import csv
import os
import platform
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from husai.activations import extract
from husai.analysis.fit import Fit, evaluate_fit
from husai.analysis.matching import pwmcc
from husai.config import SAE_CONFIGS, SAEConfig
from husai.config.precision import PAIRS
from husai.console import exits, say
from husai.runs import load_model
from husai.sae.train import TrainedSAEs, train_saes
from husai.sae.trainer import Trainer

EV, L0 = 0.005, 0.02  # how far from fp32 a pair may end
SEEDS = (0, 1)
SETTINGS = {"jumprelu": {"l0_coefficient": 0.5}, "relu": {"l1_coefficient": 1.0}}
AGAIN = "fp32/fp32 again"


@dataclass(frozen=True)
class Outcome:
    """One training of all seeds, its fit on the whole grid, and its live atoms, by seed."""

    fits: list[Fit]
    live: list[Tensor]
    finite: bool

    @classmethod
    def of(cls, trained: TrainedSAEs, x: Tensor) -> "Outcome":
        members = trained.ensemble.dictionaries
        fits = [evaluate_fit(member, x) for member in members]
        live = [member.atoms[fit.energy > 0] for member, fit in zip(members, fits, strict=True)]
        rows = torch.tensor([list(row.line.values()) for row in trained.history])
        return cls(fits, live, bool(rows.isfinite().all()))

    def mean(self, name: str) -> float:
        return statistics.fmean(getattr(fit, name) for fit in self.fits)


def config_of(architecture: str, label: str, steps: int, batch_size: int) -> SAEConfig:
    """The recipe of one row; `again` takes gradients another way, whose last digits differ."""
    master, compute = label.split()[0].split("/")
    training: dict[str, Any] = {"steps": steps, "batch_size": batch_size, "dtype": master, "lower_dtype": compute}
    training |= {"adam_trick": compute == "fp16"} | ({"gradient_scale": 3.0} if label == AGAIN else {})
    sae = {"architecture": architecture, "d_sae": 1024, **SETTINGS.get(architecture, {})}
    return SAEConfig.parse({"sae": sae, "training": training, "init_seeds": SEEDS, "data_seeds": SEEDS})


def step_times(configs: dict[str, SAEConfig], x: Tensor, rounds: int) -> dict[str, float]:
    """Median milliseconds a step and seed, everyone in turn."""
    trainers = {label: Trainer(x, config) for label, config in configs.items()}
    times: dict[str, list[float]] = {label: [] for label in configs}
    for place in range(rounds + 2):
        for label, trainer in trainers.items():
            start = time.perf_counter()
            trainer.advance()
            if place >= 2:
                times[label].append(1e3 * (time.perf_counter() - start) / len(SEEDS))
    return {label: statistics.median(taken) for label, taken in times.items()}


def compare(architecture: str, x: Tensor, steps: int, batch_size: int, rounds: int) -> list[dict[str, Any]]:
    """One row a pair of dtypes."""
    labels = ["/".join(PAIRS[0]), AGAIN, *("/".join(pair) for pair in PAIRS[1:])]
    configs = {label: config_of(architecture, label, steps, batch_size) for label in labels}
    times = step_times(configs, x, rounds)
    rows: list[dict[str, Any]] = []
    exact: Outcome | None = None
    for label, config in configs.items():
        found = Outcome.of(train_saes(x, config), x)
        exact = exact or found
        off_ev = found.mean("explained_variance") - exact.mean("explained_variance")
        off_l0 = found.mean("l0") / exact.mean("l0") - 1
        agree = [pwmcc(a, b) for a, b in zip(found.live, exact.live, strict=True)]
        rows.append(
            {
                "architecture": architecture,
                "parameters/products": label,
                "EV": round(found.mean("explained_variance"), 5),
                "EV - fp32": round(off_ev, 5),
                "L0": round(found.mean("l0"), 3),
                "L0 / fp32 - 1": round(off_l0, 5),
                "dead": round(found.mean("dead"), 4),
                "pwmcc to fp32": round(statistics.fmean(agree), 4),
                "pwmcc between seeds": round(pwmcc(*found.live), 4),
                "finite": found.finite,
                "within": found.finite and abs(off_ev) <= EV and abs(off_l0) <= L0,
                "ms": round(times[label], 1),
            }
        )
        say(f"{architecture} {label}: {rows[-1]}")
    return rows


def text_of(rows: list[dict[str, Any]], model: str, steps: int, batch_size: int) -> str:
    """The table with what is needed to read it."""
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    lines = [
        "# SAE training in low precision",
        "",
        f"{platform.machine()}, {os.cpu_count()} CPUs, {torch.get_num_threads()} thread(s), load {load}, torch "
        f"{torch.__version__}. SAEs with 1024 latents on resid_post of {model}, {steps} steps of {batch_size}, seeds "
        f"{', '.join(map(str, SEEDS))}; fp16 with the Adam trick. The mean of the seeds on the whole grid.",
        "",
        f"within: all figures are finite, EV is within {EV} of fp32's and L0 within {L0:.0%}. pwmcc to fp32: live atoms "
        "against those of the fp32 SAE of the same seeds; `again` is fp32 with gradients that differ by rounding alone. ms: a "
        "step of one seed, median, everyone in turn.",
        "",
        "| " + " | ".join(rows[0]) + " |",
        "|" + " --- |" * len(rows[0]),
        *("| " + " | ".join(map(str, row.values())) + " |" for row in rows),
    ]
    return "\n".join(lines) + "\n"


@exits
def main(
    steps: Annotated[int, typer.Option(min=1, help="optimiser steps")] = 300,
    batch_size: Annotated[int, typer.Option(min=1, help="samples a step")] = 1024,
    rounds: Annotated[int, typer.Option(min=5, help="timed steps of each")] = 15,
    architectures: Annotated[str, typer.Option(help="which, separated by commas")] = "topk,relu",
    model: Annotated[str, typer.Option(help="a reference name")] = "add-p113-0",
    out: Annotated[Path, typer.Option(help="folder for precision.md and precision.csv")] = Path("results/benchmarks"),
) -> int:
    """Train every pair, compare, and write the table. Exit 1 if one ends further from fp32 than it may."""
    from husai.errors import HusaiError

    names = architectures.split(",")
    if unknown := [name for name in names if name not in SAE_CONFIGS]:
        raise HusaiError(f"--architectures {unknown[0]}: must be among {', '.join(SAE_CONFIGS)}")
    loaded = load_model(model)
    x = extract(loaded.model, loaded.task, "resid_post").x
    rows = [row for name in names for row in compare(name, x, steps, batch_size, rounds)]
    text = text_of(rows, model, steps, batch_size)
    say(text)
    out.mkdir(parents=True, exist_ok=True)
    (out / "precision.md").write_text(text, encoding="utf-8")
    with (out / "precision.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
    return 0 if all(row["within"] for row in rows) else 1


if __name__ == "__main__":
    typer.run(main)
