"""What the tests of engines have computed. It imports nothing heavy, since every new worker imports it."""

import os
import signal
import time
from pathlib import Path


def double(x):
    return 2 * x


def sleep_then(x):
    time.sleep(x)
    return x


def odd_only(x):
    if x % 2 == 0:
        raise ValueError(f"{x} is even")
    return x


def pid(_):
    return os.getpid()


def dies(how):
    """A worker that leaves without a word, or is killed."""
    os._exit(7) if how == "exit" else os.kill(os.getpid(), signal.SIGKILL)


def dies_until(told):
    """(folder, item, deaths): notes every try, and dies at the first so many."""
    folder, item, deaths = told
    tries = sum(path.name.startswith(f"{item}-") for path in Path(folder).iterdir())
    (Path(folder) / f"{item}-{tries}").touch()
    if tries < deaths:
        os.kill(os.getpid(), signal.SIGKILL)
    return item


def note_and_wait(told):
    """(folder, item): notes who computes it, and takes for ever."""
    folder, item = told
    (Path(folder) / f"{item}-{os.getpid()}").touch()
    time.sleep(600)


def unpicklable(_):
    return lambda: None


def where(_):
    return os.getcwd()
