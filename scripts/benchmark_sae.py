"""SAE training steps against peers: what `python scripts/benchmark.py sae` measures.

Everyone takes the same initial weights, batches, learning rate, threads and number of steps, through their public training
step with logging off, and is run in turn. After the last round all must have the same error on one batch. Peers that are
not installed are skipped.
"""

import contextlib
import csv
import importlib.metadata
import io
import logging
import multiprocessing
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from husai.config import SAE_CONFIGS, SAEConfig
from husai.console import say
from husai.sae.params import Params, init_params, squared_error
from husai.sae.train import Trainer
from husai.seeding import generator

SAMPLES, BATCH, D_IN, D_SAE, K = 32768, 4096, 128, 1024, 32
LR, L1, L0 = 1e-3, 1.0, 1.0
KINDS = ("topk", "batchtopk", "relu", "jumprelu")
SEEDS = (1, 2, 4, 8)
STEPS = 100  # that everyone has done when errors are compared
AGREEMENT = 0.05  # relative difference of the errors up to which two have learnt the same
PRODUCTS = {"topk": 1, "batchtopk": 1, "relu": 5, "jumprelu": 5}  # the floor: encoder product alone, or all five


class Contestant(NamedTuple):
    """step: one training step, the drawing of its batch included. error: squared error of a batch as training sees it."""

    step: Callable[[], object]
    error: Callable[[Tensor], float]


@cache
def planted() -> Tensor:
    """Samples with K of D_SAE random directions active, and a little noise."""
    g = generator("benchmark-sae", 0)
    atoms = init_params(D_IN, D_SAE, (7,)).W_dec[0]
    parts = []
    for _ in range(SAMPLES // BATCH):
        active = torch.rand(BATCH, D_SAE, generator=g).topk(K, dim=-1).indices
        strength = torch.rand(BATCH, K, generator=g) + 0.5
        parts.append(torch.zeros(BATCH, D_SAE).scatter(1, active, strength) @ atoms)
    x = torch.cat(parts)
    return x + 0.05 * torch.randn(x.shape, generator=g)


def trainer_of(kind: str, seeds: int = 1) -> Trainer:
    """Ours. ReLU has free decoder norms, as SAELens' has."""
    fields = SAE_CONFIGS[kind].model_fields
    wanted = {"k": K, "l1_coefficient": L1, "l1_warmup_steps": 0, "l0_coefficient": L0, "l0_warmup_steps": 0}
    sae = {"architecture": kind, "d_sae": D_SAE} | {name: value for name, value in wanted.items() if name in fields}
    if kind in ("relu", "jumprelu"):
        sae["decoder_norm"] = "weighted"
    training = {"steps": 10**6, "batch_size": BATCH, "lr": LR, "warmup_steps": 0, "decay_fraction": 0.0}
    numbers = tuple(range(seeds))
    config = SAEConfig.parse({"sae": sae, "training": training, "init_seeds": numbers, "data_seeds": numbers})
    return Trainer(planted(), config)


def ours(kind: str) -> Contestant:
    trainer = trainer_of(kind)

    def error(x: Tensor) -> float:
        with torch.no_grad():
            dead = torch.zeros(1, D_SAE, dtype=torch.bool)
            return float(trainer.architecture.losses(trainer.params, x[None], step=trainer.step, dead=dead).mse)

    return Contestant(trainer.advance, error)


def drawing(kind: str) -> tuple[Callable[[], Tensor], Params]:
    """The batches our trainer draws, and the parameters it starts from, for a peer."""
    trainer, step = trainer_of(kind), iter(range(10**9))
    return lambda: trainer.batches.at(next(step))[0], trainer.params.map(lambda value: value.detach()[0].clone())


def sae_lens(kind: str) -> Contestant:
    """The statements of SAETrainer._train_step around the public training_forward_pass."""
    import sae_lens as library
    from sae_lens.saes.sae import TrainStepInput

    draw, start = drawing(kind)
    name = {"topk": "TopK", "batchtopk": "BatchTopK", "relu": "Standard", "jumprelu": "JumpReLU"}[kind]
    settings: dict[str, Any] = {"k": K} if "topk" in kind else {}
    coefficients = {"relu": {"l1": L1}, "jumprelu": {"l0": L0}}.get(kind, {})
    make = getattr(library, f"{name}TrainingSAEConfig")
    sae = getattr(library, f"{name}TrainingSAE")(make(d_in=D_IN, d_sae=D_SAE, **settings))
    sae.load_state_dict(dict(start.items()), strict=False)
    optimiser = torch.optim.Adam(sae.parameters(), lr=LR, betas=(0.9, 0.999))
    silent, frequency = torch.zeros(D_SAE), torch.zeros(D_SAE)

    def forward(x: Tensor) -> Any:
        dead = (silent > 1000).bool()
        return sae.training_forward_pass(
            TrainStepInput(
                sae_in=x, coefficients=coefficients, dead_neuron_mask=dead, n_training_steps=0, is_logging_step=False
            )
        )

    def step() -> None:
        out = forward(draw())
        with torch.no_grad():
            firing = out.feature_acts.bool().float()
            fired = firing.sum(-2).bool()
            fired = fired.to_dense() if fired.is_sparse else fired
            silent.add_(1)
            silent[fired] = 0
            frequency.add_(firing.sum(0))
        out.loss.backward()
        torch.nn.utils.clip_grad_norm_(sae.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()

    return Contestant(step, lambda x: float(forward(x).losses["mse_loss"].detach()))


def dictionary_learning(kind: str) -> Contestant:
    """Its trainers' update()."""
    from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer  # pyright: ignore[reportMissingImports]
    from dictionary_learning.trainers.standard import StandardTrainer  # pyright: ignore[reportMissingImports]
    from dictionary_learning.trainers.top_k import TopKTrainer  # pyright: ignore[reportMissingImports]

    draw, start = drawing(kind)
    common = {"steps": 10**6, "activation_dim": D_IN, "dict_size": D_SAE, "layer": 0, "lm_name": "none", "lr": LR}
    common |= {"warmup_steps": 0, "device": "cpu"}
    if kind == "relu":
        trainer: Any = StandardTrainer(**common, l1_penalty=L1, sparsity_warmup_steps=None)
    else:
        trainer = {"topk": TopKTrainer, "batchtopk": BatchTopKTrainer}[kind](**common, k=K)
    with torch.no_grad():
        trainer.ae.encoder.weight.copy_(start.W_enc.T)
        trainer.ae.decoder.weight.copy_(start.W_dec.T)
    number = iter(range(1, 10**9))  # at step 0 it would set b_dec to a median

    def error(x: Tensor) -> float:
        with torch.no_grad():
            codes = trainer.ae.encode(x) if kind == "relu" else trainer.ae.encode(x, use_threshold=False)
            return float(squared_error(trainer.ae.decode(codes)[None], x[None]))

    return Contestant(lambda: trainer.update(next(number), draw()), error)


def sparsify(kind: str) -> Contestant:
    """Its SparseCoder, and its trainer's statements around an optimiser step, with Adam."""
    with contextlib.redirect_stdout(io.StringIO()):
        from sparsify import SparseCoder, SparseCoderConfig  # pyright: ignore[reportMissingImports]

    draw, start = drawing(kind)
    coder: Any = SparseCoder(D_IN, SparseCoderConfig(num_latents=D_SAE, k=K))
    with torch.no_grad():
        coder.encoder.weight.copy_(start.W_enc.T)
        coder.W_dec.copy_(start.W_dec)
    optimiser = torch.optim.Adam(coder.parameters(), lr=LR)
    silent = torch.zeros(D_SAE, dtype=torch.long)

    def step() -> None:
        x = draw()
        coder.set_decoder_norm_to_unit_norm()
        out = coder(x, dead_mask=silent > 10_000_000)
        (out.fvu + out.auxk_loss).backward()
        silent.add_(len(x))
        silent[out.latent_indices.flatten()] = 0
        coder.remove_gradient_parallel_to_decoder_directions()
        optimiser.step()
        optimiser.zero_grad()

    def error(x: Tensor) -> float:
        with torch.no_grad():
            return float(squared_error(coder(x).sae_out[None], x[None]))

    return Contestant(step, error)


def floor(kind: str) -> Contestant:
    """The dense products of a step, nothing else."""
    x, W = torch.randn(BATCH, D_IN), torch.randn(D_IN, D_SAE)
    hidden, back = torch.randn(BATCH, D_SAE), W.T.contiguous()

    def products() -> None:
        torch.mm(x, W)
        if PRODUCTS[kind] == 5:
            torch.mm(hidden, back)
            torch.mm(x, back.T)
            torch.mm(hidden.T, x)
            torch.mm(x.T, hidden)

    return Contestant(products, lambda _: float("nan"))


MAKERS: dict[str, Callable[[str], Contestant]] = {
    "ours": ours,
    "SAELens": sae_lens,
    "dictionary_learning": dictionary_learning,
    "sparsify": sparsify,
    "floor": floor,
}
PACKAGES = {"SAELens": "sae-lens", "dictionary_learning": "dictionary-learning", "sparsify": "eai-sparsify"}
MODULES = {"SAELens": "sae_lens", "dictionary_learning": "dictionary_learning", "sparsify": "sparsify"}
HAS = {"dictionary_learning": ("topk", "batchtopk", "relu"), "sparsify": ("topk",)}


def names_for(kind: str) -> list[str]:
    """Who can take part: installed, and with this architecture."""
    names = []
    for name in MAKERS:
        if kind not in HAS.get(name, KINDS):
            continue
        if name in MODULES and find_spec(MODULES[name]) is None:
            say(f"{kind}: {name} is not installed; skipped")
        else:
            names.append(name)
    return names


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


def _peak(name: str, kind: str, threads: int, queue: Any) -> None:
    torch.set_num_threads(threads)
    contestant = MAKERS[name](kind)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(3):
        contestant.step()
    queue.put((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)


def peak_memory(name: str, kind: str) -> float:
    """MiB that three steps add to the peak of a fresh process that holds the data and the weights."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    child = context.Process(target=_peak, args=(name, kind, torch.get_num_threads(), queue))
    child.start()
    child.join()
    if child.exitcode != 0:
        raise RuntimeError(f"{name}, {kind}: the process that measures memory ended with {child.exitcode}")
    return queue.get()


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


def compare(kind: str, rounds: int, each: int) -> list[dict[str, Any]]:
    """One row for everyone who has this architecture."""
    contestants = {name: MAKERS[name](kind) for name in names_for(kind)}
    for contestant in contestants.values():
        for _ in range(2):
            contestant.step()
    steps: dict[str, Callable[[], Any]] = {name: contestant.step for name, contestant in contestants.items()}
    medians, _ = interleaved(steps, rounds, each=each)
    for step in steps.values():
        for _ in range(3 + rounds * each, STEPS):
            step()
    batch = trainer_of("topk").samples[:BATCH]
    errors = {name: contestant.error(batch) for name, contestant in contestants.items()}
    return [
        {
            "architecture": kind,
            "who": name,
            "ms": 1e3 * medians[name],
            "over_ours": medians[name] / medians["ours"],
            "steps": max(STEPS, 3 + rounds * each),
            "error": errors[name],
            "same": name == "floor" or abs(errors[name] / errors["ours"] - 1) < AGREEMENT,
            "peak_mib": peak_memory(name, kind),
        }
        for name in contestants
    ]


def stacked(kind: str, rounds: int) -> list[dict[str, Any]]:
    """Time a seed of ours with several seeds in one stack."""
    trainers = {str(seeds): trainer_of(kind, seeds).advance for seeds in SEEDS}
    medians, _ = interleaved(dict(trainers), rounds)
    return [{"architecture": kind, "seeds": s, "ms_a_seed": 1e3 * medians[str(s)] / s} for s in SEEDS]


def markdown(rows: list[dict[str, Any]]) -> list[str]:
    """Lines of a table, numbers with three figures."""
    show: Callable[[Any], str] = lambda value: f"{value:.3g}" if isinstance(value, float) else str(value)  # noqa: E731
    lines = ["| " + " | ".join(rows[0]) + " |", "|" + " --- |" * len(rows[0])]
    return lines + ["| " + " | ".join(map(show, row.values())) + " |" for row in rows]


def benchmark(rounds: int, out: Path) -> bool:
    """Run everything, print the tables and write sae.md and sae.csv; False if someone learnt something else."""
    logging.disable(logging.WARNING)
    machine, rows, many = hardware(), [], []
    for kind in KINDS:
        if kind not in SAE_CONFIGS:
            say(f"{kind}: not an architecture here")
            continue
        rows += compare(kind, rounds, each=2)
        many += stacked(kind, rounds)
    text = [
        "# SAE training steps, side by side",
        "",
        f"{machine}.",
        "",
        f"Batch {BATCH}, d_in {D_IN}, d_sae {D_SAE}, k {K}, float32, Adam at {LR}; median of {2 * rounds} steps in "
        f"{rounds} rounds, everyone in turn. error: squared error of one batch after all steps, the same for all but the "
        f"floor within {AGREEMENT:.0%} where `same`. floor: the dense products alone (one for TopK kinds, five for the "
        "others). peak_mib: what steps add to the memory of a process.",
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
