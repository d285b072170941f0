"""An uninterrupted sweep, and folders for those that are interrupted; the report at the end of `make faults`.

HUSAI_FAULTS=all runs everything; else only the tests that are marked as one of the handful for `make test`.
"""

import json
import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # test modules have no package; their helpers are found by name

from fault_sweeps import TALLY, Arena, Driver, Whole, report

HERE = Path(__file__).parent


def pytest_configure(config) -> None:
    config.addinivalue_line("markers", "handful: a fault that `make test` tries too")
    if os.environ.get("HUSAI_FAULTS") == "all" and TALLY not in os.environ:
        os.environ[TALLY] = str(Path(tempfile.mkdtemp()) / "tally")  # workers of pytest inherit it


def pytest_collection_modifyitems(config, items) -> None:
    if os.environ.get("HUSAI_FAULTS") == "all":
        return
    left_out = [item for item in items if HERE in item.path.parents and item.get_closest_marker("handful") is None]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


def pytest_terminal_summary(terminalreporter, config) -> None:
    """The table of kills, on the terminal and in the file that FAULTS_REPORT names."""
    if hasattr(config, "workerinput") or TALLY not in os.environ:
        return
    text = report(Path(os.environ[TALLY]))
    terminalreporter.write_line(f"\n{text}")
    if path := os.environ.get("FAULTS_REPORT"):
        Path(path).write_text(text, encoding="utf-8")


@pytest.fixture(scope="session")
def driver():
    made = Driver()
    yield made
    made.close()


@pytest.fixture(scope="session")
def whole(driver, tmp_path_factory) -> Whole:
    """Serial, without a fault; crash points are counted on the way, by naming one that no sweep reaches."""
    arena = Arena(driver, tmp_path_factory.mktemp("whole"))
    reached, start = arena.place / "reached", time.monotonic()
    sweep = arena.start(FAULTS_REACHED=str(reached), HUSAI_CRASH_AT="folder-aside", FAULTS_BEAT="0.02")
    assert sweep.wait() == 0, sweep.text
    return Whole(arena, time.monotonic() - start, Counter(json.loads(reached.read_text())))


@pytest.fixture
def arena(driver, tmp_path) -> Arena:
    return Arena(driver, tmp_path)
