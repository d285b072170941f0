import pytest
import torch
import torch.nn.functional as F
from torch import nn

from husai.activations import extract
from husai.config import RecurrentShape, WalksConfig
from husai.errors import HusaiError
from husai.models import require_inputs, resolve_hook
from husai.recurrent.model import Recurrent, init_params, module_of
from husai.recurrent.walks import Walks
from husai.seeding import generator
from husai.tasks import Task


def untrained(cell: str = "gru", p: int = 5, d_hidden: int = 7, seed: int = 0) -> Recurrent:
    params = init_params(RecurrentShape(cell=cell, d_hidden=d_hidden), p, generator=generator("test", seed))
    return Recurrent(params, cell, Walks(p, WalksConfig(length=3)), name="untrained")


@pytest.mark.parametrize(("cell", "kind"), [("gru", nn.GRU), ("lstm", nn.LSTM)])
def test_hidden_states_are_those_of_torch(cell, kind):
    model = untrained(cell)
    theirs = kind(5, 7, batch_first=True)
    theirs.load_state_dict({name: value for name, value in model.params.items() if name != "readout"})
    inputs = model.walks.inputs
    with torch.no_grad():
        assert torch.equal(model.hidden(inputs), theirs(F.one_hot(inputs, 5).float())[0])
    assert module_of(cell, 5, 7).weight_ih_l0.is_meta  # nothing is kept in the shared module


def test_logits_read_the_state_after_every_step():
    model = untrained()
    states = model.hidden(model.walks.inputs)
    expected = states[:, 1:].reshape(-1, 7) @ model.params["readout"]
    assert torch.allclose(model.logits(model.walks), expected)
    found = extract(model, model.walks, "hidden")
    assert (found.hook, found.model, found.x.shape) == ("hidden", "untrained", (75, 7))
    assert torch.equal(found.x[3 * 4 + 1], states[4, 2])  # walk 4 at time 2


def test_a_state_knows_only_what_was_read_before():
    model = untrained()
    inputs = model.walks.inputs
    later = inputs.clone()
    later[:, 3] = (later[:, 3] + 1) % 5
    before, after = model.hidden(inputs), model.hidden(later)
    assert torch.equal(before[:, :3], after[:, :3])
    assert not torch.equal(before[:, 3], after[:, 3])


def test_initial_weights_are_bounded_and_depend_on_the_generator():
    model = untrained()
    assert max(float(value.abs().max()) for value in model.params.values()) <= 7**-0.5
    assert not torch.equal(model.params["readout"], untrained(seed=1).params["readout"])
    assert model.n_parameters == 3 * 7 * (5 + 7 + 2) + 7 * 5


def test_other_hooks_positions_and_inputs_are_refused(fresh):
    model = untrained()
    for hook, layer in (("resid_post", None), ("hidden", 0)):
        with pytest.raises(HusaiError, match="a recurrent network has one hook, 'hidden'"):
            resolve_hook(model, hook, layer)
    with pytest.raises(HusaiError, match="position: 1 does not exist; a recurrent network is read after every step"):
        extract(model, model.walks, "hidden", position=1)
    with pytest.raises(HusaiError, match="is a recurrent network and is read on walks, not on Task"):
        require_inputs(model, Task("add", 5))
    with pytest.raises(HusaiError, match="is a transformer and is read on a task's grid, not on Walks"):
        require_inputs(fresh(p=5), model.walks)
    with pytest.raises(HusaiError, match="its modulus is 5, the task's is 7"):
        extract(model, Walks(7, WalksConfig()), "hidden")
