"""SAEs per GPU-hour: what `python scripts/benchmark.py sae --device cuda` measures.

A stack of S seeds takes its steps together, by products batched over the seed axis; SAELens trains its SAEs one by one.
Both run on the same data and start from the same weights, in turn. The floor is the dense products of a step of the whole
stack, nothing else: a stack near its floor is limited by arithmetic, one far above it by memory traffic and launches.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from benchmark_peers import KINDS, PRODUCTS, Problem, sae_lens, trainer_of
from benchmark_sae import hardware, markdown

from husai.config import SAETrainingConfig
from husai.console import say
from husai.errors import HusaiError

STACKS = (1, 8, 32, 128)
TARGET, AT = 10.0, 32  # SAEs per GPU-hour relative to SAELens that stacks of AT are to reach
STEPS = SAETrainingConfig().steps  # of one SAE


def require_device(device: str) -> None:
    """Raises HusaiError if this is no device that torch can compute on here."""
    kind = device.split(":")[0]
    if kind not in ("cpu", "cuda"):
        raise HusaiError(f"--device {device}: must be cpu, cuda or cuda:N")
    if kind == "cuda" and not torch.cuda.is_available():
        raise HusaiError(f"--device {device}: torch finds no CUDA device on this machine; allowed is cpu")


def timed(step: Callable[[], object], device: str) -> float:
    """Seconds of a call, with what it has started on the device."""
    wait = torch.cuda.synchronize if device.startswith("cuda") else lambda: None
    wait()
    start = time.perf_counter()
    step()
    wait()
    return time.perf_counter() - start


def products(kind: str, problem: Problem, seeds: int) -> Callable[[], None]:
    """The dense products of a stack's step."""
    make: Callable[..., torch.Tensor] = lambda *shape: torch.randn(seeds, *shape, device=problem.device)  # noqa: E731
    x, W, hidden = (
        make(problem.batch, problem.d_in),
        make(problem.d_in, problem.d_sae),
        make(problem.batch, problem.d_sae),
    )

    def run() -> None:
        torch.bmm(x, W)
        if PRODUCTS[kind] == 5:
            torch.bmm(hidden, W.mT)
            torch.bmm(x, W)
            torch.bmm(hidden.mT, x)
            torch.bmm(x.mT, hidden)

    return run


def compare(kind: str, problem: Problem, seeds: int, rounds: int) -> dict[str, Any]:
    """One row: a stack of ours, SAELens one by one, the floor."""
    device, cuda = problem.device, problem.device.startswith("cuda")
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    steps = {
        "ours": trainer_of(kind, problem, seeds).advance,
        "SAELens": sae_lens(kind, problem).step,
        "floor": products(kind, problem, seeds),
    }
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(rounds + 3):
        for name, step in steps.items():
            spent = timed(step, device)
            if turn >= 3:
                seconds[name].append(spent)
    middle = {name: median(times) for name, times in seconds.items()}
    per_hour = {"ours": 3600 * seeds / (middle["ours"] * STEPS), "SAELens": 3600 / (middle["SAELens"] * STEPS)}
    return {
        "architecture": kind,
        "seeds": seeds,
        "ms_a_step": 1e3 * middle["ours"],
        "saes_an_hour": per_hour["ours"],
        "saelens_an_hour": per_hour["SAELens"],
        "ratio": per_hour["ours"] / per_hour["SAELens"],
        "over_floor": middle["ours"] / middle["floor"],
        "peak_mib": torch.cuda.max_memory_allocated() / 2**20 if cuda else float("nan"),
    }


def rows_of(problem: Problem, rounds: int, stacks: tuple[int, ...] = STACKS) -> list[dict[str, Any]]:
    """Every architecture at every number of seeds, until one does not fit into the device's memory."""
    rows = []
    for kind in KINDS:
        for seeds in stacks:
            try:
                rows.append(compare(kind, problem, seeds, rounds))
            except torch.cuda.OutOfMemoryError:
                say(f"{kind}: {seeds} seeds do not fit into the memory of {problem.device}")
                break
            finally:
                if problem.device.startswith("cuda"):
                    torch.cuda.empty_cache()
    return rows


def benchmark(device: str, rounds: int, out: Path) -> bool:
    """Print the table and write sae-gpu.md; False if a stack of AT seeds misses the target."""
    problem = replace(Problem(), device=device)
    rows = rows_of(problem, rounds)
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else "no GPU"
    text = [
        "# SAEs per GPU-hour",
        "",
        f"{name}; {hardware()}.",
        "",
        f"Batch {problem.batch}, d_in {problem.d_in}, d_sae {problem.d_sae}, k {problem.k}, float32; {STEPS} steps an SAE; "
        f"median of {rounds} steps, everyone in turn. SAELens trains one SAE after another. over_floor: a step of the "
        "stack relative to its dense products alone; peak_mib: of everyone in the row.",
        "",
        *markdown(rows),
    ]
    say("\n".join(text))
    out.mkdir(parents=True, exist_ok=True)
    (out / "sae-gpu.md").write_text("\n".join(text) + "\n")
    return all(row["ratio"] >= TARGET for row in rows if row["seeds"] == AT)
