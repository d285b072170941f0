from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from husai.config import RecurrentShape, WalksConfig
from husai.errors import HusaiError
from husai.models import load_weights, save_weights, weights_hash
from husai.recurrent.model import Recurrent, init_params
from husai.recurrent.walks import Walks
from husai.seeding import generator


def untrained(cell: str = "gru", length: int = 3) -> Recurrent:
    params = init_params(RecurrentShape(cell=cell, d_hidden=4), 5, generator=generator("test"))
    return Recurrent(params, cell, Walks(5, WalksConfig(length=length)))


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_a_file_gives_back_the_network_and_its_walks(tmp_path, cell):
    model, path = untrained(cell), tmp_path / "model.safetensors"
    save_weights(model, path)
    again, ignored = load_weights(path)
    assert isinstance(again, Recurrent)
    assert ignored == ()
    assert (again.cell, again.walks) == (cell, model.walks)
    assert all(torch.equal(again.params[name], value) for name, value in model.params.items())
    assert weights_hash(again) == weights_hash(replace(model, name="other"))


def test_the_hash_knows_weights_and_walks():
    model = untrained()
    touched = {**model.params, "readout": model.params["readout"] + 1e-6}
    others = (replace(model, params=touched), untrained(length=4), untrained("lstm"))
    assert len({weights_hash(model), *map(weights_hash, others)}) == 4


WALKS = '{"length": 3}'


@pytest.mark.parametrize(
    ("change", "header", "words"),
    [
        ({"readout": None}, {}, "has no matrix 'readout'"),
        ({"bias_hh_l0": None}, {}, "has no 'bias_hh_l0'; expected are weight_ih_l0"),
        ({"weight_ih_l0": torch.zeros(12, 6)}, {}, r"'weight_ih_l0' has shape \(12, 6\); expected \(12, 5\)"),
        ({"bias_ih_l0": torch.full((12,), float("nan"))}, {}, "'bias_ih_l0' holds NaN or infinity"),
        ({}, {"cell": "rnn"}, "names cell 'rnn'; allowed are gru, lstm"),
        ({}, {"cell": "lstm"}, r"expected \(16, 5\)"),
        ({}, {"walks": "{"}, "walks in its header: "),
        ({}, {"walks": '{"length": 0}'}, "walks in its header: 'length': "),
        ({"readout": torch.zeros(4, 6), "weight_ih_l0": torch.zeros(12, 6)}, {}, "p: 6 is not allowed"),
    ],
)
def test_damaged_files_are_refused_in_one_sentence(tmp_path, change, header, words):
    tensors = {name: value for name, value in (untrained().params | change).items() if value is not None}
    path = tmp_path / "model.safetensors"
    save_file(tensors, path, metadata={"cell": "gru", "walks": WALKS} | header)
    with pytest.raises(HusaiError, match=words) as caught:
        load_weights(path)
    assert "\n" not in str(caught.value)


def test_a_truncated_file_is_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    save_weights(untrained(), path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(HusaiError, match="is not a complete safetensors file"):
        load_weights(path)
