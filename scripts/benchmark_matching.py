"""Matching of large dictionaries: what `python scripts/benchmark.py matching` measures.

Two dictionaries are matched one-to-one, each time in a fresh process whose memory is read from the operating system. Their
atoms are unrelated random directions, a noisy copy in another order, or half of either.
"""

import csv
import multiprocessing
import os
import resource
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from benchmark_sae import hardware, markdown
from torch import Tensor

from husai.analysis.assignment import certified_match
from husai.analysis.matching import cosines, match
from husai.console import say
from husai.seeding import generator

SIZES = (4096, 16384, 65536)
EXACT = 4096  # atoms up to which the exact matching is computed beside
WIDTH, COSINE = 128, 0.9  # dimensions; cosine of an atom and its noisy copy
SHARED = {"unrelated": 0.0, "half shared": 0.5, "noisy copy": 1.0}  # share of atoms that have a copy
TARGET, AT = 10.0, 16384  # seconds that a matching of AT atoms may take
MEMORY = 1 / 4  # of the n² cosines in float32 that the largest matching may hold at most


def dictionaries(kind: str, n: int) -> tuple[Tensor, Tensor]:
    """Two of n unit atoms; those that are shared lie at a cosine of about COSINE, in another order."""
    g = generator("benchmark-matching", n)
    A, other = (F.normalize(torch.randn(n, WIDTH, generator=g), dim=1) for _ in range(2))
    copied = (torch.arange(n) < SHARED[kind] * n)[:, None]
    B = torch.where(copied, COSINE * A + (1 - COSINE**2) ** 0.5 * other, other)
    return A, F.normalize(B[torch.randperm(n, generator=g)], dim=1)


def peak_mib() -> float:
    """The most this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measured(kind: str, n: int, threads: int) -> dict[str, Any]:
    """One row, of this process."""
    torch.set_num_threads(threads)
    A, B = dictionaries(kind, n)
    certified_match(A[:64], B[:64])  # loads what a matching needs
    before, load, wall, cpu = peak_mib(), os.getloadavg()[0], time.perf_counter(), time.process_time()
    found = certified_match(A, B)
    wall, cpu, peak = time.perf_counter() - wall, time.process_time() - cpu, peak_mib()
    exact = float(match(cosines(A, B)).cosines.mean()) if n <= EXACT else float("nan")
    return {
        "atoms": n,
        "dictionaries": kind,
        "mean": found.mean,
        "gap": found.gap,
        "above_exact": found.mean - exact,
        "passes": found.passes,
        "pairs_an_atom": found.pairs / n,
        "wall_s": wall,
        "cpu_s": cpu,
        "load": load,
        "peak_mib": peak,
        "added_mib": peak - before,
        "all_cosines_mib": 4 * n * n / 2**20,
    }


def _measured(queue: Any, *which: Any) -> None:
    queue.put(measured(*which))


def in_fresh_process(kind: str, n: int, threads: int) -> dict[str, Any]:
    """`measured`, where nothing was held before. Raises RuntimeError if that process fails."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    child = context.Process(target=_measured, args=(queue, kind, n, threads))
    child.start()
    child.join()
    if child.exitcode != 0:
        raise RuntimeError(f"{kind}, {n} atoms: the process that measures it ended with {child.exitcode}")
    return queue.get()


def write_tables(rows: list[dict[str, Any]], machine: str, out: Path) -> str:
    """matching.md and matching.csv; returns the former."""
    lines = [
        "# Matching of large dictionaries",
        "",
        f"{machine}.",
        "",
        f"`certified_match` of two dictionaries in {WIDTH} dimensions, each in a fresh process. noisy copy: every atom has a "
        f"partner at a cosine of about {COSINE}, in another order; half shared: half of them have; unrelated: none. mean: of "
        "the matched cosines; gap: what the best matching's mean may exceed it by; above_exact: mean − the exact matching's, "
        f"up to {EXACT} atoms. passes: over all cosines. wall_s, cpu_s: of the matching; load: of the machine when "
        "it began, so that wall_s says little where other work ran. peak_mib: the most that the process held; added_mib: of it "
        "by the matching; all_cosines_mib: what one float32 matrix of them would take.",
        "",
        *markdown(rows),
    ]
    out.mkdir(parents=True, exist_ok=True)
    (out / "matching.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    with (out / "matching.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, rows[0], lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
    return "\n".join(lines)


def on_target(rows: list[dict[str, Any]]) -> bool:
    """Whether matchings of AT atoms take TARGET seconds on two processors at most, and the largest MEMORY of all cosines."""
    size = max(row["atoms"] for row in rows)
    quick = [row["cpu_s"] <= 2 * TARGET for row in rows if row["atoms"] == AT]
    return all(quick) and all(
        row["peak_mib"] <= MEMORY * row["all_cosines_mib"] for row in rows if row["atoms"] == size
    )


def benchmark(out: Path, sizes: tuple[int, ...] = SIZES) -> bool:
    """Write the tables after every row, and print them; False if a target is missed."""
    machine, rows, text = hardware(), [], ""
    for n in sizes:
        for kind in SHARED:
            rows.append(in_fresh_process(kind, n, torch.get_num_threads()))
            say(f"{kind}, {n} atoms: {rows[-1]['wall_s']:.1f} s ({rows[-1]['cpu_s']:.1f} s of processors)")
            text = write_tables(rows, machine, out)
    say(text)
    return on_target(rows)
