"""What a training run will take, from a few of its steps."""

import resource
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from husai.config import SAEConfig
from husai.errors import HusaiError
from husai.sae.batches import Fresh
from husai.sae.known import Known
from husai.sae.pairs import Samples, split
from husai.sae.trainer import Trainer

WARM, TIMED = 2, 8


@dataclass(frozen=True)
class Estimate:
    """setup_seconds: reading, checking and normalising the samples. step_seconds: median of the timed steps.

    parameters: numbers of all seeds together, a probe's included. training_bytes: them, their gradients and what the
    optimiser keeps. sample_bytes: samples held in memory. peak_bytes: the most that this process had in memory so far,
    Python and its libraries included; on CUDA, the most allocated there.
    """

    steps: int
    seeds: int
    setup_seconds: float
    step_seconds: float
    parameters: int
    training_bytes: int
    sample_bytes: int
    peak_bytes: int

    @property
    def seconds(self) -> float:
        """Of the whole training, without scoring."""
        return self.setup_seconds + self.steps * self.step_seconds

    @property
    def lines(self) -> list[str]:
        """For people."""
        mib = 2**20
        return [
            f"time    about {self.seconds:.1f} s: {self.setup_seconds:.2f} s to read and normalise the samples, then "
            f"{self.steps} steps of {self.step_seconds * 1e3:.2f} ms (scoring not included)",
            f"memory  about {self.peak_bytes / mib:.0f} MiB at the peak: {self.training_bytes / mib:.1f} MiB for "
            f"{self.parameters:,} parameters of {self.seeds} SAE(s) with gradients and optimiser, "
            f"{self.sample_bytes / mib:.1f} MiB of samples, the rest is Python, its libraries and the batch",
        ]


def estimate(
    x: Samples,
    config: SAEConfig,
    *,
    fresh: Fresh | None = None,
    known: Known | None = None,
    device: str = "cpu",
) -> Estimate:
    """Set training up, do two steps to warm up and eight that are timed, and throw them away.

    Raises HusaiError as `Trainer`, or for a dictionary that is solved for.
    """
    if config.sae.fitted:
        raise HusaiError(
            f"sae.architecture: {config.sae.architecture} has no steps that could be timed; leave --dry-run out"
        )
    start = time.perf_counter()
    trainer = Trainer(x, config, fresh=fresh, known=known, device=device)
    ready = time.perf_counter() - start
    times = []
    for step in range(WARM + TIMED):
        start = time.perf_counter()
        trainer.advance()
        if trainer.samples.is_cuda:
            torch.cuda.synchronize(device)
        if step >= WARM:
            times.append(time.perf_counter() - start)
    moved = [*trainer.params, *(trainer.guide.leaves if trainer.guide is not None else ())]
    numbers = sum(value.numel() for value in moved)
    held = moved + [value.grad for value in moved if value.grad is not None]
    held += [value for kept in trainer.optimiser.state.values() for value in kept.values() if isinstance(value, Tensor)]
    given = [part for part in split(x) if part is not None]
    samples = [trainer.samples, trainer.targets][: len(given)]
    widths = sum(part.shape[1] for part in samples)
    blocks = min(config.training.buffer_rows, len(x)) * widths * 4
    raw = [part for part in given if isinstance(part, Tensor)]
    return Estimate(
        steps=config.training.end,
        seeds=len(config.init_seeds),
        setup_seconds=ready,
        step_seconds=sorted(times)[TIMED // 2],
        parameters=numbers,
        training_bytes=_size(held),
        sample_bytes=_size(samples) + (_size(raw) if raw else blocks),
        peak_bytes=torch.cuda.max_memory_allocated(device) if trainer.samples.is_cuda else _peak(),
    )


def _size(tensors: list[Tensor]) -> int:
    return sum(value.numel() * value.element_size() for value in tensors)


def _peak() -> int:
    """The most resident memory of this process in bytes."""
    status = Path("/proc/self/status")
    if status.is_file():  # Linux' getrusage would count the process that started this one, too
        return int(status.read_text().split("VmHWM:")[1].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
