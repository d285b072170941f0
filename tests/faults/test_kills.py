"""kill -9 between any two file operations and at random times: what is finished stays, and the end is the same."""

import os
import random
import signal
import time

import pytest
from fault_sweeps import until

from husai.store.files import CRASH_POINTS

ELSEWHERE = {"folder-aside", "run-aside"}  # where a folder is replaced, and where a damaged one is removed
POINTS = [point for point in CRASH_POINTS if point not in ELSEWHERE]
SEEDS = range(8)
CHAIN = 3  # kills of one store before it may finish


def finished_stay(arena, before):
    """No cell that was finished at a kill was trained after it; before: finished cells and lines of the log then."""
    done, lines = before
    assert not done & {run_id for what, run_id in arena.lines()[lines:] if what == "begin"}


def state(arena):
    return arena.finished(), len(arena.lines())


def kill_at(arena, point, which, **ways):
    """A sweep that the crash point kills, and its exit code."""
    sweep = arena.start(HUSAI_CRASH_AT=f"{point}:{which}", FAULTS_BEAT="0.02", **ways)
    return sweep, sweep.wait()


@pytest.mark.parametrize("point", POINTS)
def test_a_sweep_killed_at_a_crash_point_goes_on(whole, arena, point):
    """The first time, the second, and one in the middle of what was left, one after the other in one store, to the end."""
    often = whole.reached[point]
    assert often, f"{point} is reached by no sweep"
    kills = 0
    for which in dict.fromkeys((1, 2, max(1, often // 2))):
        _, code = kill_at(arena, point, which)
        if code != -signal.SIGKILL:  # less was left to do than that
            assert code == 0
            continue
        kills += 1
    assert kills
    before = state(arena)
    arena.finish()
    finished_stay(arena, before)
    arena.clean()
    whole.check(arena, "killed at a crash point, serial", kills)


@pytest.mark.handful
@pytest.mark.parametrize("point", ["folder-marked", "lease-taken"])
def test_a_sweep_killed_once_goes_on(whole, arena, point):
    _, code = kill_at(arena, point, 2 if whole.reached[point] > 1 else 1)
    assert code == -signal.SIGKILL
    before = state(arena)
    arena.finish()
    finished_stay(arena, before)
    arena.clean()
    whole.check(arena, "killed once at a crash point, serial", 1)


@pytest.mark.parametrize("point", ["file-renamed", "folder-made", "folder-marked", "folder-renamed", "lease-taken"])
def test_workers_killed_at_a_crash_point(whole, arena, point):
    """Every worker dies at its second time, and is replaced by one that will; the rest is done by a sweep without faults."""
    sweep, code = kill_at(arena, point, 2, jobs=2)
    assert code in (0, 1, -signal.SIGKILL), sweep.text
    kills = max(1, len(arena.begun()) - len(arena.finished()))
    before = state(arena)
    arena.finish()
    finished_stay(arena, before)
    arena.clean()
    whole.check(arena, "worker or parent killed at a crash point, two processes", kills)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_sweep_killed_at_random_times(whole, arena, seed):
    """The whole process group, again and again, then to the end."""
    stream, kills = random.Random(seed), 0
    for _ in range(CHAIN):
        sweep = arena.start()
        time.sleep(stream.uniform(0.05, whole.seconds))
        if sweep.poll() is not None:
            break
        sweep.kill()
        assert sweep.wait() in (0, -signal.SIGKILL)
        kills += 1
        before = state(arena)
        finished_stay(arena, before)
    before = state(arena)
    arena.finish()
    finished_stay(arena, before)
    arena.clean()
    whole.check(arena, "process group killed at random times, serial", kills)


def begun(arena, cells=1):
    return lambda: len(arena.begun()) >= cells


@pytest.mark.parametrize("seed", range(3))
def test_a_group_of_processes_killed_at_random_times(whole, arena, seed):
    sweep = arena.start(jobs=2, FAULTS_PACE="0.3")
    until(begun(arena), sweep=sweep)
    time.sleep(random.Random(seed).uniform(0, 1.5))
    sweep.kill()
    sweep.wait()
    until(lambda: not sweep.group())
    before = state(arena)
    arena.finish()
    finished_stay(arena, before)
    arena.clean()
    whole.check(arena, "process group killed at random times, two processes", 1)


@pytest.mark.parametrize("seed", range(3))
def test_workers_without_their_parent_end_by_themselves(whole, arena, seed):
    """A sweep that goes on at once waits for the cells that they still compute."""
    sweep = arena.start(jobs=2, FAULTS_PACE="0.5")
    until(begun(arena), sweep=sweep)
    time.sleep(random.Random(seed).uniform(0, 1.0))
    os.kill(sweep.pid, signal.SIGKILL)
    arena.finish()
    until(lambda: not sweep.group())
    arena.clean()
    assert len(arena.begun()) == len(set(arena.begun())), "a cell was computed beside an orphan that had it"
    whole.check(arena, "parent killed, its workers left", 1)


@pytest.mark.parametrize("seed", range(4))
def test_a_worker_killed_alone_is_replaced(whole, arena, seed):
    """The sweep ends as if nothing had been."""
    stream = random.Random(seed)
    sweep = arena.start(jobs=2, FAULTS_PACE="0.5")
    until(begun(arena), sweep=sweep)
    time.sleep(stream.uniform(0, 1.0))
    workers = sweep.workers()
    if workers:
        stream.choice(workers).kill()
    assert sweep.wait() == 0, sweep.text
    arena.clean()
    whole.check(arena, "one worker killed", bool(workers))
