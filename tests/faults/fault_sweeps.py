"""Sweeps to be killed, what they left, and the count of what was survived."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import yaml

from husai.store.gc import find, remove
from husai.store.processes import Process

TRAINING = {"steps": 20, "batch_size": 64}
SUITE = {
    "name": "tiny",
    "model": {"planted": {"d_model": 12, "n_atoms": 16, "k": 2, "samples": 256, "seed": 3}},
    "init_seeds": [0, 1],
    "data_seeds": [0, 1],
    "entries": [
        {"sae": {"architecture": "relu", "d_sae": 16, "l1_coefficient": weight}, "training": TRAINING}
        for weight in (0.5, 1.0, 2.0)
    ],
    "analysis": {"curve": [10], "null_draws": 2, "curve_null_draws": 1, "aligned_null_draws": 1},
}
CELLS = len(SUITE["entries"])
LONGEST = 500.0  # seconds that a sweep of some seconds may take on a busy machine
TALLY = "FAULTS_TALLY"  # environment variable: the file to which kills are counted


def count(kind: str, **figures: int) -> None:
    """Add a line to the report: kills of a kind, cells lost, finished cells computed twice."""
    if path := os.environ.get(TALLY):
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"kind": kind, **figures}) + "\n")


class Driver:
    """The process from which sweeps are forked."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("fault_driver.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"

    def ask(self, **request: object) -> int | None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self) -> None:
        with self.process:  # closes its pipes
            pass


class Running:
    """A sweep on its way. Its process group has its own number."""

    def __init__(self, driver: Driver, place: Path, arguments: list[str], env: dict[str, str], fsize: int | None):
        self.driver, self.said = driver, []
        pipe = place / f"out-{time.monotonic_ns()}"
        os.mkfifo(pipe)
        self.reader = threading.Thread(target=self._read, args=(pipe,), daemon=True)
        self.reader.start()
        pid = driver.ask(arguments=arguments, env=env, out=str(pipe), cwd=str(place), fsize=fsize)
        assert pid
        self.pid = pid

    def _read(self, pipe: Path) -> None:
        with pipe.open(encoding="utf-8", errors="replace") as out:
            pipe.unlink()
            self.said.extend(iter(out.readline, ""))

    @property
    def text(self) -> str:
        return "".join(self.said)

    @property
    def sentences(self) -> list[str]:
        """Lines of errors."""
        return [line.strip() for line in self.said if line.startswith("husai: ")]

    def workers(self) -> list[psutil.Process]:
        """Living worker processes that are ready to be given cells."""
        try:
            found = psutil.Process(self.pid).children()
            return [child for child in found if "spawn_main" in " ".join(child.cmdline())]
        except psutil.Error:
            return []

    def group(self) -> list[int]:
        """Process ids of the sweep and all that it started, as far as they live."""
        found = []
        for process in psutil.process_iter():
            try:
                if os.getpgid(process.pid) == self.pid and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process.pid)
            except (ProcessLookupError, psutil.Error):
                continue
        return found

    def kill(self) -> None:
        """The whole group, at once."""
        os.killpg(self.pid, signal.SIGKILL)

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        return self.driver.ask(wait=self.pid)

    def wait(self, longest: float = LONGEST) -> int:
        """The exit code, once it ended and all that it said was read."""
        until(lambda: self.poll() is not None, longest, self)
        self.reader.join(10)
        code = self.poll()
        assert code is not None
        assert "Traceback" not in self.text, self.text
        return code


def until(holds, longest: float = LONGEST, sweep: Running | None = None) -> None:
    """Wait until something holds; fail if it takes too long."""
    end = time.monotonic() + longest
    while not holds():
        assert time.monotonic() < end, f"waited {longest:g} s in vain; {sweep.text if sweep else ''}"
        time.sleep(0.03)


@dataclass
class Arena:
    """A folder of runs and one of results, that sweeps fill and faults strike. begun: cells whose training began, in order."""

    driver: Driver
    place: Path
    runs: str = "runs"
    results: str = "results"
    suite: dict = field(default_factory=lambda: SUITE)

    def __post_init__(self) -> None:
        self.place.mkdir(parents=True, exist_ok=True)
        (self.place / "suite.yaml").write_text(yaml.safe_dump(self.suite))
        self.log = self.place / "log"

    def start(self, *more: str, jobs: int = 1, fsize: int | None = None, **env: str) -> Running:
        arguments = ["sweep", "suite.yaml", "--out", self.results, "--runs", self.runs, "--deterministic"]
        env = {"FAULTS_LOG": str(self.log), **env}
        return Running(self.driver, self.place, [*arguments, "--jobs", str(jobs), *more], env, fsize)

    def finish(self, *more: str, jobs: int = 1, **env: str) -> Running:
        """Go on without faults to the end."""
        sweep = self.start("--retry-failed", *more, jobs=jobs, **env)
        assert sweep.wait() == 0, sweep.text
        return sweep

    @property
    def store(self) -> Path:
        return self.place / self.runs

    @property
    def tables(self) -> Path:
        return self.place / self.results

    def lines(self) -> list[tuple[str, str]]:
        """What was logged: begin or end, and the cell."""
        text = self.log.read_text() if self.log.exists() else ""
        return [(what, run_id) for what, run_id in (line.split() for line in text.splitlines())]

    def begun(self) -> list[str]:
        return [run_id for what, run_id in self.lines() if what == "begin"]

    def finished(self) -> set[str]:
        return {path.parent.name for path in self.store.glob("[!.]*/DONE")}

    def twice(self) -> int:
        """How many trainings of cells began whose training had ended before."""
        ended, found = set(), 0
        for what, run_id in self.lines():
            if what == "end":
                ended.add(run_id)
            else:
                found += run_id in ended
        return found

    def temporary(self) -> list[Path]:
        """Half-written files and folders."""
        return [path for path in self.place.rglob(".*") if Process.of_temporary(path)]

    def leases(self) -> list[Path]:
        """Leases, and all that lies about them."""
        return [*(self.store / ".leases").glob("*"), *self.tables.glob(".lease.json"), *self.tables.glob("..lease*")]

    def clean(self) -> None:
        """Collect what the dead left, as `husai runs gc` does; nothing else may remain."""
        while (found := find(self.store, [self.tables])).remove:
            assert remove(found)
        assert self.temporary() == []
        assert self.leases() == []


@dataclass(frozen=True)
class Whole:
    """An uninterrupted sweep: what every other one must come to."""

    arena: Arena
    seconds: float
    reached: Counter[str]

    def check(self, arena: Arena, kind: str, kills: int = 0) -> None:
        """Fail unless the arena's results are these, byte for byte; count kills, lost cells and cells computed twice."""
        mine = pd.read_parquet(self.arena.tables / "records.parquet")
        path = arena.tables / "records.parquet"
        lost = set(mine["run_id"]) - (set(pd.read_parquet(path)["run_id"]) if path.exists() else set())
        count(kind, kills=kills, lost=len(lost), twice=arena.twice())
        assert not lost
        assert arena.twice() == 0, arena.lines()
        for name in ("records.parquet", "atoms.parquet", "cells.json", "truth.json", "gate.json"):
            assert (arena.tables / name).read_bytes() == (self.arena.tables / name).read_bytes(), name
        costs = pd.read_parquet(arena.tables / "costs.parquet")
        assert sorted(costs["run_id"]) == sorted(set(mine["run_id"]))
        arrays = sorted(path.name for path in (self.arena.tables / "arrays").iterdir())
        assert sorted(path.name for path in (arena.tables / "arrays").glob("[!.]*")) == arrays
        for name in arrays:
            with np.load(self.arena.tables / "arrays" / name) as one, np.load(arena.tables / "arrays" / name) as other:
                assert one.files == other.files
                assert all(np.array_equal(one[key], other[key], equal_nan=True) for key in one.files)


def report(path: Path) -> str:
    """The counts as a Markdown table."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
    columns = ("kills", "lost", "twice")
    lines = ["| fault | cases | kills survived | cells lost | finished cells computed twice |", "|---|---|---|---|---|"]
    for kind in dict.fromkeys(row["kind"] for row in rows):
        own = [row for row in rows if row["kind"] == kind]
        sums = [str(sum(row[column] for row in own)) for column in columns]
        lines.append(f"| {kind} | {len(own)} | {' | '.join(sums)} |")
    totals = [str(sum(row[column] for row in rows)) for column in columns]
    lines.append(f"| **all** | {len(rows)} | {' | '.join(totals)} |")
    return "\n".join(lines) + "\n"
