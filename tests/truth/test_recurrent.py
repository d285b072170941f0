"""The gate and the planes of recurrent networks, held against one whose weights are written down."""

import math
from dataclasses import replace

import pytest
import torch

from husai.activations import extract
from husai.config import RecurrentShape, WalksConfig
from husai.errors import HusaiError
from husai.measure import Hook
from husai.recurrent.model import Recurrent, init_params
from husai.recurrent.walks import Walks
from husai.seeding import generator
from husai.truth.circuit import verify
from husai.truth.planes import families, find_truth, truth_among

KEYS = (1, 8, 12)


def changed(model: Recurrent, name: str, change) -> Recurrent:
    value = model.params[name].clone()
    change(value)
    return replace(model, params={**model.params, name: value})


def test_written_down_rotations_pass_every_condition(rotating):
    model = rotating()
    report = verify(model, model.walks)
    assert report.passed, report.failures()
    assert (report.accuracy, report.key_frequencies, report.key_rule) == (1, KEYS, "logits")
    assert report.fve == pytest.approx(1, abs=1e-7)
    assert report.key_share == pytest.approx(1, abs=1e-7)
    assert report.excluded_loss == pytest.approx(math.log(29), abs=1e-5)
    assert report.neuron_purity == 1
    assert report.key_frequencies_embedding == KEYS
    assert (report.spectrum_W_L, report.gradient_symmetricity, report.distance_irrelevance) == (None, None, None)


def test_rotations_go_on_for_as_long_as_one_likes(rotating):
    model = rotating()
    assert verify(model, Walks(29, WalksConfig(length=40, seed=5))).passed


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_an_untrained_network_fails(cell):
    params = init_params(RecurrentShape(cell=cell, d_hidden=16), 13, generator=generator("test"))
    model = Recurrent(params, cell, Walks(13, WalksConfig(length=2)))
    report = verify(model, model.walks)
    assert {"accuracy", "fve", "sparse_circuit"} <= set(report.failed_conditions)
    assert report.accuracy < 0.3


def test_a_network_that_starts_wrong_fails_on_accuracy_alone(rotating):
    # After time 0 every state is shifted by one: all steps add rightly, to a wrong state.
    model = rotating()

    def wrong_start(bias) -> None:
        for i, k in enumerate(KEYS):
            turn = 2 * math.pi * k / 29
            first = bias[-len(bias) // 3 :]
            first[6 * i : 6 * i + 6 : 2] += 1e-4 * (math.cos(turn) - 1)
            first[6 * i + 1 : 6 * i + 6 : 2] += 1e-4 * math.sin(turn)

    shifted = changed(model, "bias_hh_l0", wrong_start)
    first = shifted.hidden(model.walks.inputs)[:, 0] @ shifted.params["readout"]
    assert torch.equal(first.argmax(-1), (model.walks.states[:, 0] + 1) % 29)
    assert "accuracy" in verify(shifted, model.walks).failed_conditions


def test_one_wrong_state_in_all_walks_is_noticed(rotating):
    model = rotating()
    walks = Walks(29, model.walks.config)
    walks.states[3, 0] = (walks.states[3, 0] + 1) % 29  # time 0, which is no sample: only accuracy counts it
    report = verify(model, walks)
    assert report.failed_conditions == ("accuracy",)
    assert report.accuracy == pytest.approx(1 - 1 / (841 * 5))


def test_rotations_in_all_planes_are_no_sparse_circuit(rotating):
    keys = tuple(range(1, 15))
    model = rotating(keys=keys, length=2)
    report = verify(model, model.walks)
    assert report.failed_conditions == ("sparse_circuit",)


def test_families_of_walks_are_orthonormal(rotating):
    basis = families(rotating(length=2).walks).basis
    assert float((basis.T @ basis - torch.eye(basis.shape[1], dtype=torch.float64)).abs().max()) < 1e-10


def test_the_planes_of_the_rotations_are_the_ones_written_down(rotating):
    # Energies of a key's six units: previous 2 · (1 + ½² + ½²)/2, sum and difference 2 · 2 · (.45/2)²/2 each.
    model = rotating()
    truth = find_truth(extract(model, model.walks, "hidden"))
    previous, each = 1.5, 2 * 0.225**2
    whole = 3 * (previous + 2 * each)
    assert truth.share_of("previous") == pytest.approx(3 * previous / whole, abs=1e-5)
    for variable in ("sum", "difference"):
        assert truth.share_of(variable) == pytest.approx(3 * each / whole, abs=1e-5)
    assert truth.share_of("input") == pytest.approx(0, abs=1e-9)
    assert truth.unexplained == pytest.approx(0, abs=1e-6)
    assert len(truth.subspaces) == 9
    for subspace in truth.subspaces:
        unit = 6 * KEYS.index(subspace.k)
        columns = torch.zeros(19, 2, dtype=torch.float64)
        if subspace.variables == ("previous",):
            columns[[unit, unit + 2, unit + 4], 0] = columns[[unit + 1, unit + 3, unit + 5], 1] = columns.new_tensor(
                [1, 0.5, 0.5]
            )
        else:
            sign = -1.0 if subspace.variables == ("sum",) else 1.0
            columns[[unit + 2, unit + 5], 0] = columns.new_tensor([1, sign])
            columns[[unit + 3, unit + 4], 1] = columns.new_tensor([1, -sign])
        known = torch.linalg.qr(columns).Q
        assert torch.linalg.svdvals(known.T @ subspace.basis).tolist() == pytest.approx([1, 1], abs=1e-5)


def test_shuffled_states_give_no_truth(rotating):
    model = rotating()
    x = extract(model, model.walks, "hidden").x
    shuffled = x[torch.randperm(len(x), generator=generator("test"))]
    with pytest.raises(HusaiError, match="no Fourier family holds 1%"):
        truth_among(families(model.walks), shuffled, "hidden")


def test_planes_that_previous_and_input_share_are_named_in_this_order(rotating):
    walks = rotating().walks
    family = families(walks)
    waves = {name: family.basis[:, family.owner == family.names.index((name, 3))] for name in ("input", "previous")}
    x = 2 * waves["input"] + waves["previous"]
    assert [s.label for s in truth_among(family, x, "hidden").subspaces] == ["previous/input k=3"]


def test_the_hook_of_walks_has_planes_shifts_and_families(rotating):
    model = rotating()
    hook = Hook.of(extract(model, model.walks, "hidden"))
    assert hook.task is model.walks
    assert hook.families is families(model.walks)
    assert hook.truth is not None
    assert hook.shifts is not None
    means = torch.zeros(29, 19).index_add_(0, model.walks.labels, hook.x - hook.x.mean(0)) / (29 * 4)
    inside = means @ hook.shifts.basis
    assert torch.allclose(inside @ hook.shifts.maps[1], inside.roll(-1, 0), atol=1e-3 * float(inside.abs().max()))
