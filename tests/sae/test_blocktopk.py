import math

import pytest
import torch
import torch.nn.functional as F

from husai.config import BlockTopKConfig, CirclesConfig, SAEConfig, SAETrainingConfig
from husai.errors import HusaiError
from husai.sae.blocktopk import BlockTopK, keep_groups
from husai.sae.params import Params
from husai.sae.train import train_saes
from husai.sae.weights import load_sae, save_sae
from husai.seeding import generator
from husai.truth.synthetic import draw_circles

IDENTITY = Params(torch.eye(4)[None], torch.zeros(1, 4), torch.eye(4)[None], torch.zeros(1, 4))


@pytest.mark.parametrize(
    ("k", "expected"),
    [
        (2, [0, 0, -3, 0]),  # norms √8 and 3: the second group wins, though neither latent is the largest two
        (4, [2, -2, -3, 0]),
    ],
)
def test_groups_are_active_whole_by_their_norm_and_keep_signs(k, expected):
    codes = BlockTopK(BlockTopKConfig(d_sae=4, k=k)).encode(IDENTITY, torch.tensor([[[2.0, -2.0, -3.0, 0.0]]]))
    assert codes.tolist() == [[expected]]


def test_groups_are_consecutive_latents():
    scores = torch.tensor([1.0, 0, 0, 2, 2, 2, 0, 0, 3, 0, 0, 0])
    assert keep_groups(scores, 1, 2).nonzero().flatten().tolist() == [8]
    assert keep_groups(scores, 1, 3).nonzero().flatten().tolist() == [3, 4, 5]
    assert keep_groups(scores, 1, 4).nonzero().flatten().tolist() == [8]
    assert keep_groups(scores, 2, 4).nonzero().flatten().tolist() == [4, 5, 8]


def test_dead_groups_serve_the_residual_by_norm():
    # k = 2 keeps (−3, −3) and leaves (2, 0, 0, 1, 1, 0); both other groups are dead, and the one of norm 2 is chosen
    one = torch.eye(6)[None]
    params = Params(one, torch.zeros(1, 6), one, torch.zeros(1, 6))
    architecture = BlockTopK(BlockTopKConfig(d_sae=6, k=2, k_aux=2))
    x = torch.tensor([[[2.0, 0, -3, -3, 1, 1]]])
    both = architecture.losses(params, x, step=0, dead=torch.tensor([[True, True, False, False, True, True]]))
    assert both.mse.tolist() == [6]
    assert both.penalty.tolist() == [2]
    # a group of which one latent fires is alive: only the last group is left, and it takes its own (1, 1) away
    half = architecture.losses(params, x, step=0, dead=torch.tensor([[True, False, False, False, True, True]]))
    assert half.penalty.tolist() == [4]
    none = architecture.losses(params, x, step=0, dead=torch.tensor([[True, False, False, False, False, True]]))
    assert none.penalty.tolist() == [0]


@pytest.mark.parametrize("size", [2, 3, 4])
def test_turning_a_group_changes_neither_selection_nor_reconstruction(make_params, size):
    params = make_params(1, 8, 24, unit=True)
    architecture = BlockTopK(BlockTopKConfig(d_sae=24, k=2 * size, group_size=size))
    g = generator("test-turn")
    R = torch.linalg.qr(torch.randn(24 // size, size, size, generator=g, dtype=torch.float64)).Q

    def turned(rows):
        return torch.einsum("gij,gj...->gi...", R, rows.unflatten(0, (-1, size))).flatten(0, 1)

    rotated = Params(
        turned(params.W_enc[0].T).T[None], turned(params.b_enc[0])[None], turned(params.W_dec[0])[None], params.b_dec
    )
    x = torch.randn(1, 50, 8, generator=g, dtype=torch.float64)
    before, after = architecture.encode(params, x), architecture.encode(rotated, x)
    torch.testing.assert_close(architecture.decode(rotated, after), architecture.decode(params, before))
    assert torch.equal(*((codes.unflatten(-1, (-1, size)) != 0).any(-1) for codes in (before, after)))
    assert (after - before).abs().max() > 0.1  # codes do turn
    # a rotation across groups does not leave things alone
    mixed = params.replace(W_enc=params.W_enc.roll(1, 2), b_enc=params.b_enc.roll(1, 1), W_dec=params.W_dec.roll(1, 1))
    assert (
        architecture.decode(mixed, architecture.encode(mixed, x)) - architecture.decode(params, before)
    ).abs().max() > 0.1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 3}, "k 3 is not a multiple of group_size 2"),
        ({"d_sae": 63}, "d_sae 63 is not a multiple of group_size 2"),
        ({"d_sae": 64, "group_size": 3, "k": 6}, "d_sae 64 is not a multiple of group_size 3"),
        ({"k_aux": 5}, "k_aux 5 is not a multiple of group_size 2"),
        ({"group_size": 1}, "group_size': must be greater than or equal to 2"),
        ({"group_size": 5}, "group_size': must be less than or equal to 4"),
        ({"auxk_rectified": True}, "auxk_rectified"),
    ],
)
def test_groups_that_do_not_fit_are_refused(change, message):
    with pytest.raises(HusaiError, match=message):
        BlockTopKConfig.parse({"d_sae": 64, "k": 4, **change})


# --- planted circles ---

SPREAD = 3  # frequencies, planes and groups that are needed


def several_circles():
    """Samples on one of three circles at a time, in orthonormal planes of R¹², and the planes' bases."""
    g = generator("test-circles")
    planes = torch.linalg.qr(torch.randn(12, 2 * SPREAD, generator=g)).Q.T.unflatten(0, (SPREAD, 2))
    angles, which = 2 * math.pi * torch.rand(4096, generator=g), torch.randint(SPREAD, (4096,), generator=g)
    points = torch.stack([angles.cos(), angles.sin()], dim=1) * (0.5 + torch.rand(4096, 1, generator=g))
    return torch.einsum("nj,njd->nd", points, planes[which]), planes


def plane_recovery(rows, planes, size=2):
    """For every plane, the least squared cosine of principal angles with the group that is nearest."""
    spans = torch.linalg.qr(rows.unflatten(0, (-1, size)).mT).Q
    return [max(float(torch.linalg.svdvals(plane @ span).min().square()) for span in spans) for plane in planes]


def quick(kind):
    training = SAETrainingConfig(steps=400, batch_size=512, lr=1e-2, warmup_steps=20)
    return SAEConfig(sae=kind, training=training, init_seeds=(0, 1), data_seeds=(0, 1))


def test_groups_find_the_planes_of_circles_and_shuffled_or_random_ones_do_not():
    x, planes = several_circles()
    kind = BlockTopKConfig(d_sae=16, k=2, dead_steps=20, k_aux=4)
    for member in train_saes(x, quick(kind)).ensemble.dictionaries:
        assert min(plane_recovery(member.atoms, planes)) > 0.99
        shuffled = member.atoms.roll(1, 0)
        assert min(plane_recovery(shuffled, planes)) < 0.5
        assert float((member.decode(member.encode(x)) - x).pow(2).sum() / x.pow(2).sum()) < 0.02
    random = F.normalize(torch.randn(16, 12, generator=generator("test-circles", 1)), dim=-1)
    assert min(plane_recovery(random, planes)) < 0.5


def test_circles_that_are_summed_share_one_span():
    """Both circles of every sample are active: the groups together span the truth, however they divide it."""
    circles = draw_circles(CirclesConfig(p=31, frequencies=(3, 7), radii=(1.0, 1.0), d_model=12, repeats=40, noise=0.0))
    member = train_saes(circles.x, quick(BlockTopKConfig(d_sae=4, k=4))).ensemble.member(0)
    span = torch.linalg.qr(member.atoms.T.double()).Q
    for subspace in circles.truth.subspaces:
        assert float(torch.linalg.svdvals(subspace.basis.T.double() @ span).min().square()) > 0.99


def test_a_folder_says_how_latents_are_grouped(tmp_path):
    x, _ = several_circles()
    kind = BlockTopKConfig(d_sae=12, k=3, group_size=3)
    ensemble = train_saes(x, quick(kind)).ensemble
    save_sae(ensemble, 1, tmp_path, {})
    back = load_sae(tmp_path)
    assert torch.equal(back.encode(x) != 0, ensemble.member(1).encode(x) != 0)
    assert back.signed_codes
