"""The benchmark of SAEs on tiny problems: its figures are there and right, and it refuses what it cannot do."""

import csv
import math
from pathlib import Path

import pytest
import torch

from husai.errors import HusaiError

pytestmark = pytest.mark.filterwarnings(
    "ignore:The 'utils' module has been deprecated:DeprecationWarning",  # sae_lens imports transformer_lens.utils
)
SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"


@pytest.fixture
def scripts(monkeypatch):
    """The benchmark's modules, and a problem that takes no time."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import benchmark_gpu
    import benchmark_peers
    import benchmark_sae

    problem = benchmark_peers.Problem(batch=64, d_in=8, d_sae=16, k=2, samples=128)
    return benchmark_gpu, benchmark_sae, problem


def test_memory_that_work_adds_is_measured(scripts):
    _, sae, _ = scripts
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("memory is measured on Linux only")
    torch.ones(2**26)  # a peak before, of 256 MiB, does not count
    held = [torch.ones(2**18) for _ in range(64)]  # nor is what is freed here there to be used again unseen
    del held
    assert sae.added(lambda: [torch.ones(2**18) for _ in range(32)]) == pytest.approx(32, abs=4)
    assert sae.added(lambda: torch.ones(2**24)) == pytest.approx(64, abs=4)
    assert sae.added(lambda: None) < 1


def test_everyone_learns_the_same(scripts, monkeypatch):
    _, sae, problem = scripts
    monkeypatch.setattr(sae, "peak_memory", lambda *_: 1.0)
    monkeypatch.setattr(sae, "STEPS", 12)
    for kind in ("topk", "jumprelu"):
        rows = sae.compare(kind, problem, rounds=1, each=1, late=12)
        assert {"ours", "SAELens", "floor"} <= {row["who"] for row in rows}
        assert all(row["same"] for row in rows), rows
        assert all(row["ms_early"] > 0 and row["ms_late"] > 0 for row in rows)


def test_saes_an_hour(scripts):
    gpu, _, problem = scripts
    rows = gpu.rows_of(problem, 1, (1, 2))
    assert [(row["architecture"], row["seeds"]) for row in rows] == [(k, s) for k in gpu.KINDS for s in (1, 2)]
    for row in rows:
        hours = row["ms_a_step"] / 3.6e6 * gpu.STEPS / row["seeds"]
        assert row["saes_an_hour"] == pytest.approx(1 / hours)
        assert row["ratio"] == pytest.approx(row["saes_an_hour"] / row["saelens_an_hour"])
        assert math.isfinite(row["over_floor"])


def test_a_device_that_is_not_there_is_refused(scripts, monkeypatch):
    gpu, _, _ = scripts
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    gpu.require_device("cpu")
    with pytest.raises(
        HusaiError, match=r"^--device cuda: torch finds no CUDA device on this machine; allowed is cpu$"
    ):
        gpu.require_device("cuda")
    with pytest.raises(HusaiError, match="must be cpu, cuda or cuda:N"):
        gpu.require_device("tpu")


def test_matchings_of_large_dictionaries(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import benchmark_matching as matching

    for kind, copied in matching.SHARED.items():
        A, B = matching.dictionaries(kind, 200)
        best = (A @ B.T).max(1).values
        assert torch.allclose(A.norm(dim=1), torch.ones(200))
        assert float((best > 0.8).float().mean()) == pytest.approx(copied, abs=0.02)
        assert float((best[: round(200 * copied)] - matching.COSINE).abs().max()) < 0.08 if copied else True
    monkeypatch.setattr(matching, "in_fresh_process", matching.measured)
    monkeypatch.setattr(matching, "AT", 60)
    assert not matching.benchmark(tmp_path, (30, 60)), "so few cosines take less memory than all the rest"
    rows = list(csv.DictReader((tmp_path / "matching.csv").read_text().splitlines()))
    assert [(row["atoms"], row["dictionaries"]) for row in rows] == [
        (n, k) for n in ("30", "60") for k in matching.SHARED
    ]
    for row in rows:
        assert abs(float(row["above_exact"])) <= float(row["gap"]) + 1e-6
        assert float(row["all_cosines_mib"]) == 4 * int(row["atoms"]) ** 2 / 2**20
        assert float(row["wall_s"]) > 0
    assert (tmp_path / "matching.md").read_text().count("noisy copy |") == 2
    fine = {"atoms": 60, "cpu_s": 19.0, "peak_mib": 24.0, "all_cosines_mib": 100.0}
    assert matching.on_target([fine])
    assert not matching.on_target([fine, fine | {"cpu_s": 21.0}])
    assert not matching.on_target([fine | {"peak_mib": 26.0}])
