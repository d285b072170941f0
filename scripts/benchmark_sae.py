"""SAE training steps against peers: what `python scripts/benchmark.py sae` measures.

Everyone takes the same initial weights, batches, learning rate, threads and number of steps, through their public training
step with logging off, and is run in turn. After STEPS steps all must have the same error on one batch. Codes of ReLU and
JumpReLU are dense at the start and sparse later, so steps are timed early and again after LATE steps. Peers that are not
installed are skipped; `pip install husai[bench]` brings them.
"""

import csv
import ctypes
import importlib.metadata
import logging
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from benchmark_peers import KINDS, LR, MAKERS, PACKAGES, Problem, names_for, trainer_of

from husai.config import SAE_CONFIGS
from husai.console import say

STANDARD = Problem()
SEEDS = (1, 2, 4, 8)
STEPS, LATE = 100, 500  # steps that everyone has done when errors are compared, and when late steps are timed
AGREEMENT = 0.05  # relative difference of the errors up to which two have learnt the same


def interleaved(
    contestants: dict[str, Callable[[], Any]], rounds: int, *, each: int = 1
) -> tuple[dict[str, float], dict[str, Any]]:
    """Median seconds a call and first result of each contestant; `each` calls in turn, `rounds` times after a warm-up."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    results = {name: step() for name, step in contestants.items()}
    for _ in range(rounds):
        for name, step in contestants.items():
            for _ in range(each):
                start = time.perf_counter()
                step()
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in seconds.items()}, results


def resident(field: str) -> float:
    """MiB of this process: what it holds now (VmRSS) or has held at most (VmHWM), of Linux."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{field}:"))


def added(work: Callable[[], object]) -> float:
    """MiB by which the memory of this process rises at most during `work`; what earlier work has freed is given back first."""
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before = resident("VmRSS")
    work()
    return resident("VmHWM") - before


def _peak(name: str, kind: str, problem: Problem, threads: int, queue: Any) -> None:
    torch.set_num_threads(threads)
    MAKERS[name](kind, replace(problem, batch=64, samples=64)).step()  # loads and compiles what steps need
    contestant = MAKERS[name](kind, problem)

    def work() -> None:
        for _ in range(3):
            contestant.step()

    queue.put(added(work))


def peak_memory(name: str, kind: str, problem: Problem) -> float:
    """MiB that three steps add to a fresh process that holds the data, the weights and the compiled code; NaN if not Linux."""
    if not Path("/proc/self/clear_refs").exists():
        return float("nan")
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    child = context.Process(target=_peak, args=(name, kind, problem, torch.get_num_threads(), queue))
    child.start()
    child.join()
    if child.exitcode != 0:
        raise RuntimeError(f"{name}, {kind}: the process that measures memory ended with {child.exitcode}")
    peak = queue.get()
    if peak <= 0:
        raise RuntimeError(f"{name}, {kind}: three steps cannot have taken {peak} MiB")
    return peak


def hardware() -> str:
    """Processor, cores, threads, load and versions, on one line."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        cpu = next((line.split(":")[1].strip() for line in info.read_text().splitlines() if "model name" in line), cpu)
    packages = [p for p in ("torch", "numpy", "numba", *PACKAGES.values()) if _version(p)]
    versions = ", ".join(f"{package} {_version(package)}" for package in packages)
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    return f"{cpu}, {os.cpu_count()} cores, {torch.get_num_threads()} threads; load {load}; {versions}"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def compare(kind: str, problem: Problem, rounds: int, each: int, late: int) -> list[dict[str, Any]]:
    """One row for everyone who has this architecture."""
    contestants = {name: MAKERS[name](kind, problem) for name in names_for(kind)}
    for contestant in contestants.values():
        for _ in range(2):
            contestant.step()
    steps: dict[str, Callable[[], Any]] = {name: contestant.step for name, contestant in contestants.items()}
    early, _ = interleaved(steps, rounds, each=each)
    done = 3 + rounds * each
    batch = trainer_of("topk", problem).samples[: problem.batch]
    _advance(steps, STEPS - done)
    errors = {name: contestant.error(batch) for name, contestant in contestants.items()}
    _advance(steps, late - max(STEPS, done))
    medians, _ = interleaved(steps, rounds, each=each)
    return [
        {
            "architecture": kind,
            "who": name,
            "ms_early": 1e3 * early[name],
            "over_ours_early": early[name] / early["ours"],
            "ms_late": 1e3 * medians[name],
            "over_ours_late": medians[name] / medians["ours"],
            "error": errors[name],
            "same": name == "floor" or abs(errors[name] / errors["ours"] - 1) < AGREEMENT,
            "error_end": contestant.error(batch),
            "peak_mib": peak_memory(name, kind, problem),
        }
        for name, contestant in contestants.items()
    ]


def _advance(steps: dict[str, Callable[[], Any]], count: int) -> None:
    for name, step in steps.items():
        for _ in range(0 if name == "floor" else count):
            step()


def stacked(kind: str, problem: Problem, rounds: int) -> list[dict[str, Any]]:
    """Time a seed of ours with several seeds in one stack."""
    trainers = {str(seeds): trainer_of(kind, problem, seeds).advance for seeds in SEEDS}
    medians, _ = interleaved(dict(trainers), rounds)
    return [{"architecture": kind, "seeds": s, "ms_a_seed": 1e3 * medians[str(s)] / s} for s in SEEDS]


def markdown(rows: list[dict[str, Any]]) -> list[str]:
    """Lines of a table, numbers with three figures."""
    show: Callable[[Any], str] = lambda value: f"{value:.3g}" if isinstance(value, float) else str(value)  # noqa: E731
    lines = ["| " + " | ".join(rows[0]) + " |", "|" + " --- |" * len(rows[0])]
    return lines + ["| " + " | ".join(map(show, row.values())) + " |" for row in rows]


def benchmark(rounds: int, out: Path, problem: Problem = STANDARD, late: int = LATE) -> bool:
    """Run everything, print the tables and write sae.md and sae.csv; False if someone learnt something else."""
    logging.disable(logging.WARNING)
    machine, rows, many = hardware(), [], []
    for kind in KINDS:
        if kind not in SAE_CONFIGS:
            say(f"{kind}: not an architecture here")
            continue
        rows += compare(kind, problem, rounds, each=2, late=late)
        many += stacked(kind, problem, rounds)
    text = [
        "# SAE training steps, side by side",
        "",
        f"{machine}.",
        "",
        f"Batch {problem.batch}, d_in {problem.d_in}, d_sae {problem.d_sae}, k {problem.k}, float32, Adam at {LR}; median of "
        f"{2 * rounds} steps in {rounds} rounds, everyone in turn: early, after 3 steps, and late, after {late}, when codes of "
        f"ReLU and JumpReLU have become sparse. error: squared error of one batch after {max(STEPS, 3 + 2 * rounds)} steps, "
        f"the same for all but the floor within {AGREEMENT:.0%} where `same`; error_end: after all steps. floor: the dense "
        "products alone (one for TopK kinds, five for the others). peak_mib: what three steps add to the memory of a process "
        "that holds data, weights and code.",
        "",
        *markdown(rows),
        "",
        "Ours with several seeds in one stack:",
        "",
        *markdown(many),
    ]
    say("\n".join(text))
    out.mkdir(parents=True, exist_ok=True)
    (out / "sae.md").write_text("\n".join(text) + "\n")
    with (out / "sae.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, [*rows[0], "seeds", "ms_a_seed"], restval="", lineterminator="\n")
        table.writeheader()
        table.writerows(rows + many)
    return all(row["same"] for row in rows)
