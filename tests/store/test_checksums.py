import shutil

import pytest
import torch

from husai.config import SAEConfig
from husai.errors import HusaiError
from husai.resources import reference_dir
from husai.runs import load_model
from husai.sae.train import train_saes
from husai.sae.weights import load_sae
from husai.store.checksums import CHECKSUMS, DONE, is_sealed, require_intact, verify
from husai.store.folders import finished, whole_folder
from husai.transformer.weights import save_weights
from husai.workflow import save_ensemble


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


DAMAGE = [flip, truncate]


@pytest.fixture
def run(tmp_path):
    with whole_folder(tmp_path / "run") as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "x").write_text("some content")
        (folder / "y").write_text("other content")
    return tmp_path / "run"


def test_a_run_is_as_it_was_written(run):
    assert is_sealed(run)
    assert verify(run) == []
    require_intact(run / "y", run / "sub" / "x", run / "absent")
    (run / "added").write_text("later")
    assert verify(run) == []
    require_intact(run / "added")


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", ["y", "sub/x"])
def test_a_damaged_file_is_named(run, name, damage):
    damage(run / name)
    wanted = f"{run / name}: does not match its checksum (damaged or changed since it was written)"
    assert verify(run) == [wanted]
    with pytest.raises(HusaiError) as caught:
        require_intact(run / name)
    assert str(caught.value) == f"{wanted}; train it again or restore it"
    require_intact(run / ("sub/x" if name == "y" else "y"))


def test_every_missing_and_damaged_file_is_named(run):
    (run / "y").unlink()
    flip(run / "sub" / "x")
    assert [problem.split(": ")[0] for problem in verify(run)] == [str(run / "sub" / "x"), str(run / "y")]
    assert verify(run)[1] == f"{run / 'y'}: is missing"


@pytest.mark.parametrize("damage", [*DAMAGE, lambda path: path.unlink(), lambda path: path.write_text("{}")])
def test_damaged_checksums_are_seen(run, damage):
    damage(run / CHECKSUMS)
    (problem,) = verify(run)
    assert problem.startswith(f"{run / CHECKSUMS}: ")
    with pytest.raises(HusaiError, match=r"checksums\.json: "):
        require_intact(run / "y")


@pytest.mark.parametrize("damage", [flip, truncate, lambda path: path.write_text("")])
def test_a_damaged_marker_is_seen(run, damage):
    damage(run / DONE)
    if damage is truncate:  # a line's end
        (run / DONE).write_text((run / DONE).read_text()[:-1])
    assert finished(run)
    (problem,) = verify(run)
    assert "checksums.json: does not match its checksum in DONE" in problem


def test_runs_of_earlier_versions_and_folders_of_others_pass(run):
    (run / CHECKSUMS).unlink()
    for text in ("", "done by hand"):
        (run / DONE).write_text(text)
        flip(run / "y")
        assert not is_sealed(run)
        assert verify(run) == []
        require_intact(run / "y")
    reference = reference_dir() / "add-p59-0"
    assert not is_sealed(reference)
    assert verify(reference) == []


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("whole", [True, False])
def test_a_damaged_model_is_not_loaded(tmp_path, fresh, whole, damage):
    with whole_folder(tmp_path / "run") as folder:
        save_weights(fresh(), folder / "model.safetensors")
    file = tmp_path / "run" / "model.safetensors"
    load_model(tmp_path / "run")
    damage(file)
    with pytest.raises(HusaiError) as caught:
        load_model(tmp_path / "run" if whole else file)
    message = (
        f"{file}: does not match its checksum (damaged or changed since it was written); train it again or restore it"
    )
    assert str(caught.value) == message
    shutil.move(file, tmp_path / "elsewhere.safetensors")
    if damage is flip:
        load_model(tmp_path / "elsewhere.safetensors")  # of which nothing is known


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("seeds", [(0,), (0, 1)])
@pytest.mark.parametrize("name", ["sae_weights.safetensors", "cfg.json"])
def test_a_damaged_sae_is_not_loaded(tmp_path, seeds, name, damage):
    config = SAEConfig.parse(
        {
            "sae": {"architecture": "topk", "d_sae": 6, "k": 2},
            "training": {"steps": 2, "batch_size": 4},
            "init_seeds": seeds,
            "data_seeds": seeds,
        }
    )
    with whole_folder(tmp_path / "run") as folder:
        save_ensemble(train_saes(torch.eye(4), config), config, folder, {})
    place = tmp_path / "run" / ("seed-0-0" if len(seeds) > 1 else "")
    load_sae(place)
    damage(place / name)
    with pytest.raises(HusaiError, match=rf"{name}: does not match its checksum \(damaged .*\); train it again"):
        load_sae(place)
