"""Sweeps in processes of their own, forked from one that has everything imported: seconds less for each.

Reads requests and writes answers, a line of JSON each. Worker processes of a sweep load this file too, as their main module,
so that what environment variables ask for happens in them as well:

FAULTS_LOG: file that gets a line when a cell's training begins and when it ends. FAULTS_PACE: seconds that every cell takes
longer. FAULTS_STALE: seconds after which a holder without a beat is dead. FAULTS_BEAT: seconds between two beats.
FAULTS_CLOCK: the wall clock jumps by years whenever it is read. FAULTS_REACHED: file for how often crash points were reached.
"""

import atexit
import importlib
import itertools
import json
import os
import resource
import signal
import sys
import time
from pathlib import Path

import husai.suite
import husai.sweep.compute
from husai.report.results import SuiteResults
from husai.report.tables import write_tables
from husai.store import files, lease

YEAR = 365.25 * 86400
LAZY = (
    "sae_lens",
    "pyarrow.parquet",
    "scipy.stats",
    "scipy.optimize",
    "pandas.io.parquet",
    "husai.cli",
    "husai.sae.kernels.threshold",
)


def prepare() -> None:
    """What the environment asks for, in this process."""
    if log := os.environ.get("FAULTS_LOG"):
        _log_cells(Path(log), float(os.environ.get("FAULTS_PACE", 0)))
    if stale := os.environ.get("FAULTS_STALE"):
        lease.Watch.__init__.__defaults__ = (float(stale),)
        lease.hold.__wrapped__.__kwdefaults__["stale_after"] = float(stale)
    if beat := os.environ.get("FAULTS_BEAT"):
        lease.Lease.take.__func__.__kwdefaults__["beat_every"] = float(beat)
    if os.environ.get("FAULTS_CLOCK"):
        _jump()
    if reached := os.environ.get("FAULTS_REACHED"):
        atexit.register(lambda: Path(reached).write_text(json.dumps(files._reached)))


def _log_cells(log: Path, pace: float) -> None:
    run_cell = husai.sweep.compute.run_cell

    def write(what: str, run_id: str) -> None:
        handle = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        os.write(handle, f"{what} {run_id}\n".encode())
        os.close(handle)

    def logged(job, say):
        write("begin", job.cell.run_id)
        time.sleep(pace)
        run_cell(job, say=say)
        write("end", job.cell.run_id)

    husai.sweep.compute.run_cell = logged


def _jump() -> None:
    """The clock, at each look, some years ahead or behind."""
    real, gmtime, years = time.time, time.gmtime, itertools.cycle((3, -20, 0, 10, -1))
    time.time = lambda: real() + next(years) * YEAR
    time.time_ns = lambda: int(time.time() * 1e9)
    time.gmtime = lambda seconds=None: gmtime(time.time() if seconds is None else seconds)


def _tables_alone() -> None:
    """Drawing figures takes longer than all these cells."""
    husai.suite.write_report = lambda results, out: write_tables(SuiteResults.load(results), out)


def _begin(request: dict) -> None:
    """In the child: a session of its own, its output to `out`, and the limits asked for."""
    os.setsid()
    os.environ.update(request["env"])
    signal.signal(signal.SIGINT, signal.default_int_handler)
    out = os.open(request["out"], os.O_WRONLY)
    for handle in (1, 2):
        os.dup2(out, handle)
    os.close(out)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.chdir(request["cwd"])
    if request["fsize"] is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["fsize"], resource.RLIM_INFINITY))
    prepare()


def serve() -> list[str]:
    """Answer requests until there are no more; in a child, return the arguments of its command."""
    _tables_alone()
    for name in LAZY:
        importlib.import_module(name)
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    answers.write("ready\n")
    codes: dict[int, int] = {}
    while line := sys.stdin.readline():
        request = json.loads(line)
        if "wait" in request:
            pid = request["wait"]
            ended, status = (pid, 0) if pid in codes else os.waitpid(pid, os.WNOHANG)
            if ended and pid not in codes:
                codes[pid] = os.waitstatus_to_exitcode(status)
            answers.write(json.dumps(codes.get(pid)) + "\n")
        elif pid := os.fork():
            answers.write(json.dumps(pid) + "\n")
        else:
            answers.close()
            _begin(request)
            return request["arguments"]
    return []


if __name__ == "__main__":
    arguments = serve()
    if arguments:
        from husai.cli import main

        main(arguments)
else:
    prepare()
