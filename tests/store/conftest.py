"""What tests of the store share: runs as a sweep leaves them, and processes that are killed on the way."""

import json
import os
import signal
import subprocess
import sys

import pandas as pd
import pytest
import yaml

from husai.store.folders import whole_folder
from husai.store.processes import Process


@pytest.fixture
def listing():
    """Names in a folder, in order."""
    return lambda folder: sorted(path.name for path in folder.iterdir())


@pytest.fixture
def make_run():
    """A finished run: of a sweep by its name, or with other provenance; without a model name, a trained model."""

    def make(place, model=None, *, run_id="", gate=None, **about):
        config = {"sae": {"architecture": "topk", "d_sae": 8}, "init_seeds": [0, 1]} if model else {"task": {"p": 11}}
        if model:
            about |= {"model_name": model, "hook_name": "resid_post", "run_id": run_id or place.name}
        with whole_folder(place) as folder:
            (folder / "config.yaml").write_text(yaml.safe_dump(config))
            (folder / "metrics.json").write_text('{"explained_variance": 0.5}')
            (folder / "provenance.json").write_text(
                json.dumps({"finished": "2026-11-22T00:00:00Z", "wall_seconds": 1.5, **about})
            )
            (folder / "seed-0-0").mkdir()
            (folder / "seed-0-0" / "weights").write_bytes(bytes(1000))
            if gate:
                (folder / "gate.json").write_text(json.dumps(gate))
        return place

    return make


@pytest.fixture
def make_suite():
    """A results folder whose tables refer to runs and models."""

    def make(folder, cells=(), records=(), models=(), gates=None):
        folder.mkdir(parents=True)
        (folder / "cells.json").write_text(json.dumps(list(cells)))
        (folder / "gate.json").write_text(json.dumps({name: {} for name in models} | (gates or {})))
        if records:
            frame = pd.DataFrame({"run_id": list(records), "model": "m", "value": 1.0})
            frame.to_parquet(folder / "records.parquet")
        return folder

    return make


@pytest.fixture
def killed():
    """Runs Python code in a process that dies at a crash point; returns whether it did."""

    def run(code, *arguments, at):
        done = subprocess.run(
            [sys.executable, "-c", code, *map(str, arguments)],
            env={**os.environ, "HUSAI_CRASH_AT": at},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode in (0, -signal.SIGKILL), done.stderr
        return done.returncode == -signal.SIGKILL

    return run


@pytest.fixture
def dead():
    """A process of this machine that is gone."""
    me = Process.here()
    return me._replace(start=me.start + 1)
