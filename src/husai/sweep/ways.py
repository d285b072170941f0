"""How a suite is computed: where, by how many, for how long. Nothing of it enters results."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from husai.cell import Job
from husai.config import SuiteConfig
from husai.engines import Engine, EngineName
from husai.engines.processes import Processes
from husai.engines.serial import Serial
from husai.errors import HusaiError
from husai.sweep.plan import plan
from husai.truth.circuit import GateReport

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def duration(text: str) -> float:
    """Seconds of `90`, `90s`, `15m`, `1.5h`, `2d`, `MM:SS`, `HH:MM:SS` or, as SLURM has it, `D-HH:MM:SS`.

    Raises HusaiError for anything else, and for no time at all.
    """
    if found := re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", text):
        seconds = float(found[1]) * UNITS[found[2] or "s"]
    elif found := re.fullmatch(r"(?:(?:(\d+)-)?(\d+):)?(\d+):(\d+)", text):
        days, hours, minutes, rest = (int(part or 0) for part in found.groups())
        seconds = float(((days * 24 + hours) * 60 + minutes) * 60 + rest)
    else:
        seconds = 0.0
    if not seconds > 0:
        raise HusaiError(f"--max-time {text}: must be a time above 0 such as 3600, 90m, 4h or 1-12:00:00")
    return seconds


def part(text: str) -> tuple[int, int]:
    """i and n of `i/n`. Raises HusaiError unless 1 ≤ i ≤ n."""
    found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise HusaiError(f"--shard {text}: must be i/n with i from 1 to n, such as 2/4 for the second of four machines")
    return int(found[1]), int(found[2])


@dataclass(frozen=True)
class Ways:
    """How a suite is computed; results do not depend on it.

    jobs: cells at once. engine: None for worker processes, or none if there is one job. address: of a Ray cluster; cpus, gpus:
    what a cell takes of it. threads: of every cell; None: a fair share of the processors, or with Ray `cpus`. shard: i and n,
    to compute every n-th cell from the i-th. seconds: after which the sweep stops.
    """

    jobs: int = 1
    engine: EngineName | None = None
    address: str | None = None
    cpus: float = 1.0
    gpus: float = 0.0
    threads: int | None = None
    deterministic: bool = False
    device: str = "cpu"
    retry_failed: bool = False
    shard: tuple[int, int] = (1, 1)
    seconds: float | None = None
    allow_unverified: bool = False
    dry_run: bool = False

    def open(self) -> Engine:
        """Raises HusaiError if the engine cannot be had."""
        if self.engine == "ray":
            from husai.engines.ray import Ray

            return Ray(self.jobs, cpus_each=self.cpus, gpus_each=self.gpus, address=self.address)
        return Processes(self.jobs) if self._many else Serial()

    @property
    def at_once(self) -> int:
        """Cells that are computed at a time, as far as is known before a cluster is asked."""
        return self.jobs if self._many or self.engine == "ray" else 1

    @property
    def _many(self) -> bool:
        return self.jobs > 1 if self.engine is None else self.engine == "processes"

    def plan(
        self, suite: SuiteConfig, places: Sequence[str | None], runs: Path
    ) -> tuple[list[Job], dict[str, GateReport]]:
        """All cells of a suite, whatever the shard. Raises as `sweep.plan.plan`."""
        fair = max(1, int(self.cpus) if self.engine == "ray" else (os.cpu_count() or 1) // self.at_once)
        return plan(
            suite,
            places,
            runs,
            allow_unverified=self.allow_unverified,
            threads=1 if self.deterministic else self.threads or fair,
            deterministic=self.deterministic,
            device=self.device,
        )

    def share(self, planned: Sequence[Job]) -> Sequence[Job]:
        """The cells of this shard."""
        part, of = self.shard
        return planned[part - 1 :: of]
