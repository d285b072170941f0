"""The scripts for SLURM, run with stand-ins for its commands that write down how they were called."""

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[1] / "scripts"
RAY, ARRAY = SCRIPTS / "slurm_ray.sbatch", SCRIPTS / "slurm_array.sbatch"
COMMANDS = {
    "srun": """
while [[ "$1" == --* ]]; do
    [[ "$1" == --nodelist=* ]] && export FAKE_NODE="${1#*=}"
    shift
done
exec "$@"
""",
    "scontrol": """
[[ "$1" == show ]] && tr , "\\n" <<< "$3"
exit "${FAKE_REQUEUE:-0}"
""",
    "ray": """
if [[ "$1" == status ]]; then
    echo "Active:"
    cat "$FAKE/joined" 2>/dev/null
    echo "Pending:"
    echo " 1 node_0000, not there yet"
else
    [[ "$FAKE_NODE" == "${FAKE_BAD:-}" ]] && exit 1
    echo " 1 node_0a1b" >> "$FAKE/joined"
    trap 'kill "$rest"; echo "ray stopped on $FAKE_NODE" >> "$FAKE/calls"; exit 0' TERM
    sleep 100 &
    rest=$!
    wait
fi
""",
    "husai": """
if [[ -n "${FAKE_HANG:-}" ]]; then
    trap 'kill "$rest"; echo "husai terminated" >> "$FAKE/calls"; exit 143' TERM
    sleep 100 &
    rest=$!
    wait
fi
exit "$FAKE_CODE"
""",
    "getent": "exit 2",
}


@pytest.fixture
def fake(tmp_path):
    """A folder of commands, and where their calls are written down."""
    (tmp_path / "bin").mkdir()
    for name, body in COMMANDS.items():
        path = tmp_path / "bin" / name
        path.write_text(f'#!/bin/bash\necho "{name} $*" >> "$FAKE/calls"\n{body}')
        path.chmod(0o755)
    return tmp_path


def environment(fake, **more):
    plain = {
        "PATH": f"{fake / 'bin'}:{os.environ['PATH']}",
        "FAKE": str(fake),
        "TMPDIR": str(fake),
        "FAKE_CODE": "0",
        "SLURM_JOB_ID": "1234567",
        "SLURM_CPUS_ON_NODE": "8",
        "SLURM_GPUS_ON_NODE": "2",
    }
    return plain | {name: str(value) for name, value in more.items()}


def submit(fake, script, *arguments, **more):
    command = ["bash", str(script), *arguments]
    return subprocess.run(command, env=environment(fake, **more), capture_output=True, text=True, timeout=60)


def calls(fake, name):
    return [line for line in (fake / "calls").read_text().splitlines() if line.startswith(f"{name} ")]


@pytest.mark.parametrize("script", [RAY, ARRAY], ids=lambda path: path.name)
def test_the_syntax_is_right(script):
    subprocess.run(["bash", "-n", script], check=True)
    if checker := shutil.which("shellcheck"):
        subprocess.run([checker, script], check=True)


@pytest.mark.parametrize("nodes", [("a1",), ("a1", "a2", "a3")], ids=len)
@pytest.mark.parametrize(("code", "requeued"), [(0, False), (1, False), (75, True)])
def test_a_sweep_on_a_cluster_of_the_jobs_nodes(fake, nodes, code, requeued):
    ends = int(time.time()) + 3600
    given = {"SLURM_JOB_NODELIST": ",".join(nodes), "SLURM_JOB_END_TIME": ends, "FAKE_CODE": code}
    done = submit(fake, RAY, "default", "--gpus", "0.5", **given)
    assert done.returncode == (0 if requeued else code), done.stderr
    port = 10000 + 1234567 % 5000 * 4
    steps = calls(fake, "srun")
    assert len(steps) == len(nodes)
    assert len({node for node in nodes for step in steps if f"--nodelist={node} " in step}) == len(nodes)
    starts = [line for line in calls(fake, "ray") if line.startswith("ray start ")]
    assert all("--block" in start and "--num-cpus=8" in start and "--num-gpus=2" in start for start in starts)
    heads = [start for start in starts if f"--head --port={port} " in start]
    assert len(heads) == 1
    assert f"--temp-dir={fake}/husai-ray-1234567" in heads[0]
    assert sum(f"--address=a1:{port}" in start for start in starts) == len(nodes) - 1
    (sweep,) = calls(fake, "husai")
    begun, _, seconds = sweep.rpartition(" ")
    assert begun == f"husai sweep default --gpus 0.5 --engine ray --address a1:{port} --max-time"
    assert 3200 < int(seconds) <= 3300, "an hour less five minutes"
    assert ("scontrol requeue 1234567" in calls(fake, "scontrol")) == requeued
    lines = (fake / "calls").read_text().splitlines()
    assert sorted(line for line in lines if "stopped" in line) == [f"ray stopped on {node}" for node in nodes]
    assert lines.index(sweep) > max(lines.index(start) for start in starts), "all nodes are there first"


def test_a_job_that_cannot_be_requeued_says_that_time_is_over(fake):
    given = {"SLURM_JOB_NODELIST": "a1", "FAKE_CODE": 75, "FAKE_REQUEUE": 1}
    assert submit(fake, RAY, "default", **given).returncode == 75
    assert "--max-time" not in calls(fake, "husai")[0], "a job without an end has no limit"


def test_a_node_that_does_not_come_up_ends_the_job(fake):
    done = submit(fake, RAY, "default", SLURM_JOB_NODELIST="a1,a2", FAKE_BAD="a2")
    assert done.returncode == 1
    assert "Ray ended on a node" in done.stderr
    assert not calls(fake, "husai")
    assert "ray stopped on a1" in (fake / "calls").read_text()


def test_without_a_suite_or_time_nothing_starts(fake):
    assert submit(fake, RAY, SLURM_JOB_NODELIST="a1").returncode == 2
    done = submit(fake, RAY, "default", SLURM_JOB_NODELIST="a1", SLURM_JOB_END_TIME=int(time.time()) + 100)
    assert done.returncode == 2
    assert "--time" in done.stderr
    assert not calls(fake, "husai")


@pytest.mark.parametrize(("script", "given"), [(RAY, {}), (ARRAY, {"SLURM_ARRAY_TASK_ID": 2})], ids=["ray", "array"])
def test_a_cancelled_job_ends_its_sweep(fake, script, given):
    more = environment(fake, SLURM_JOB_NODELIST="a1", FAKE_HANG=1, SLURM_ARRAY_TASK_COUNT=4, **given)
    running = subprocess.Popen(["bash", str(script), "default"], env=more)
    end = time.monotonic() + 30
    while not ((fake / "calls").is_file() and calls(fake, "husai")) and time.monotonic() < end:
        time.sleep(0.1)
    time.sleep(0.5)
    running.terminate()
    assert running.wait(30) == 143
    assert "husai terminated" in (fake / "calls").read_text()
    assert not calls(fake, "scontrol") or "requeue" not in " ".join(calls(fake, "scontrol"))


@pytest.mark.parametrize(("code", "requeued"), [(0, False), (1, False), (75, True)])
def test_an_array_computes_a_shard_a_task(fake, code, requeued):
    given = {"SLURM_ARRAY_TASK_ID": 3, "SLURM_ARRAY_TASK_COUNT": 4, "SLURM_CPUS_PER_TASK": 6, "FAKE_CODE": code}
    done = submit(fake, ARRAY, "default", SLURM_JOB_END_TIME=int(time.time()) + 3600, **given)
    assert done.returncode == (0 if requeued else code), done.stderr
    (sweep,) = calls(fake, "husai")
    assert sweep.startswith("husai sweep default --shard 3/4 --jobs 6 --max-time 34")
    assert (fake / "calls").read_text().count("scontrol requeue 1234567") == requeued
    assert submit(fake, ARRAY, "default").returncode == 2, "it is no task of an array"
