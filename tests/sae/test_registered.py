"""Training classes of SAELens, its own and a user's (tests/sae/brought.py), in our training loop."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from husai.activations import Normaliser
from husai.config import RegisteredConfig, SAEConfig
from husai.errors import HusaiError
from husai.sae.architectures import architecture_of
from husai.sae.params import Params
from husai.sae.registered import folded
from husai.sae.train import train_saes
from husai.sae.trainer import Trainer
from husai.sae.weights import load_sae
from husai.seeding import generator
from husai.workflow import save_ensemble

pytestmark = pytest.mark.filterwarnings("ignore")  # SAELens' own, on import and in some classes
HERE = Path(__file__).parent
OURS = {"architecture": "topk", "d_sae": 48, "k": 3, "dead_steps": 3}
THEIRS = {
    "architecture": "saelens:topk",
    "d_sae": 48,
    "dead_steps": 3,
    "decoder_norm": "unit",
    "settings": {"k": 3, "rescale_acts_by_decoder_norm": False},
}
USERS = {"architecture": "brought:LogL1", "d_sae": 24, "settings": {"coefficient": 0.5, "warm_up_steps": 10}}


@pytest.fixture(autouse=True)
def importable(monkeypatch, sae_lens):
    monkeypatch.syspath_prepend(HERE)


@pytest.fixture(scope="module")
def x():
    g = generator("test-registered")
    return torch.randn(800, 6, generator=g).relu() @ torch.randn(6, 12, generator=g) * torch.linspace(0.2, 3, 12) + 2


def config(sae, seeds=(0, 1), **training):
    quick = {"steps": 40, "batch_size": 128, "lr": 1e-2, "warmup_steps": 4}
    return SAEConfig.parse({"sae": sae, "training": quick | training, "init_seeds": seeds, "data_seeds": seeds})


def moved_to(trainer: Trainer, params: Params) -> None:
    with torch.no_grad():
        for name, value in trainer.params.items():
            value.copy_(dict(params.items())[name])


def saved(trained, config, folder):
    return save_ensemble(trained, config, folder, {"hook_name": "h"})


# --- it is SAELens' class, in our loop ---


def test_saelens_own_topk_trains_as_ours_does_from_the_same_start(x):
    ours, theirs = (Trainer(x, config(kind, steps=60)) for kind in (OURS, THEIRS))
    moved_to(theirs, ours.params)
    aux, worst = 0.0, 0.0
    for _ in range(60):
        mine, other = ours.advance(), theirs.advance()
        aux += float(mine.terms["auxk"].sum())
        worst = max(worst, float(((mine.mse - other.mse) / mine.mse).abs().max()))
        torch.testing.assert_close(
            other.terms["auxiliary_reconstruction_loss"], mine.terms["auxk"], rtol=1e-3, atol=1e-5
        )
        assert float(other.terms["other"].abs().max()) < 1e-4
    assert aux > 1, "AuxK never acted"
    assert worst < 1e-3
    torch.testing.assert_close(theirs.params.W_dec, ours.params.W_dec, rtol=0, atol=1e-3)


def test_gradients_are_those_of_the_class_and_coefficients_warm_up_as_in_saelens(sae_lens, x):
    kind = {"architecture": "saelens:standard", "d_sae": 10, "settings": {"l1_coefficient": 2.0, "l1_warm_up_steps": 8}}
    chosen = config(kind)
    assert chosen.warmup == 8
    assert chosen.sae.sparsity == ("l1_coefficient", 2.0)
    architecture = architecture_of(chosen.sae)
    params = architecture.start(12, (0, 1)).map(lambda value: value.requires_grad_())
    batch, dead = x[:256].view(2, 128, 12), torch.zeros(2, 10, dtype=torch.bool)
    done = architecture.gradients(params, batch, step=2, dead=dead)
    from sae_lens.saes.sae import TrainStepInput

    for seed in range(2):
        module = sae_lens.StandardTrainingSAE(sae_lens.StandardTrainingSAEConfig(12, 10, l1_coefficient=2.0))
        module.load_state_dict({name: value[seed].detach() for name, value in params.items()})
        out = module.training_forward_pass(
            TrainStepInput(batch[seed], {"l1": 2.0 * 2 / 8}, dead[seed], n_training_steps=2, is_logging_step=False)
        )
        out.loss.backward()
        assert float(out.losses["l1_loss"]) > 0.02
        assert float(done.terms["l1_loss"][seed]) == pytest.approx(float(out.losses["l1_loss"]), rel=1e-5)
        for name, value in done.gradients.items():
            torch.testing.assert_close(value[seed], getattr(module, name).grad, rtol=1e-4, atol=1e-5)


def test_buffers_are_kept_for_each_seed_and_follow_the_class(x):
    kind = {"architecture": "saelens:batchtopk", "d_sae": 16, "settings": {"k": 2, "topk_threshold_lr": 0.5}}
    trainer = Trainer(x, config(kind))
    assert not trainer.params.more["topk_threshold"].any()
    batch = trainer.batches.at(0)
    expected = []
    for seed in range(2):
        scores = (batch[seed] - trainer.params.b_dec[seed]) @ trainer.params.W_enc[seed] * 0.1  # decoder norms are .1
        smallest = scores.detach().flatten().topk(2 * 128).values.min()
        expected.append(0.5 * float(smallest))
    trainer.batches = Trainer(x, config(kind)).batches
    trainer.advance()
    assert trainer.params.more["topk_threshold"].flatten().tolist() == pytest.approx(expected, rel=1e-4)
    assert expected[0] != pytest.approx(expected[1], rel=1e-4)


def test_buffers_may_be_called_as_parameters_are_and_whole_numbers_are_not_averaged(x):
    trainer = Trainer(x, config({"architecture": "brought:Buffered", "d_sae": 8}))
    start = trainer.params.W_enc.detach().clone()
    for _ in range(5):
        trainer.advance()
    assert torch.equal(trainer.params.W_enc, start)
    assert torch.equal(trainer.params.b_enc, torch.full((2, 8), 5.0))
    averaged = train_saes(x, config(USERS, ema_decay=0.9)).ensemble.params
    assert averaged.more["passes"].flatten().tolist() == [40, 40]
    assert not torch.equal(averaged.W_dec, train_saes(x, config(USERS)).ensemble.params.W_dec)


# --- a user's class ---


def test_a_users_class_trains_each_seed_alone_saves_and_opens_in_saelens(tmp_path, x, sae_lens):
    both = train_saes(x, config(USERS))
    again = train_saes(x, config(USERS))
    alone = train_saes(x, config(USERS, (1,)))
    assert int(both.ensemble.params.more["passes"][0]) == 40
    for name, value in both.ensemble.params.items():
        assert torch.equal(value, dict(again.ensemble.params.items())[name]), name
        torch.testing.assert_close(value[1:], dict(alone.ensemble.params.items())[name], rtol=1e-4, atol=1e-4)
    assert not torch.equal(both.ensemble.params.W_dec[0], both.ensemble.params.W_dec[1])
    assert both.history[-1].explained_variance > 0.7
    assert both.history[-1].terms["log_l1"] > 0.1
    for place, made in zip(saved(both, config(USERS), tmp_path / "run"), both.ensemble.dictionaries, strict=True):
        theirs, ours = sae_lens.SAE.load_from_disk(place), load_sae(place)
        assert theirs.cfg.metadata.training_architecture == "log_l1"
        codes = made.encode(x)
        with torch.no_grad():
            torch.testing.assert_close(theirs.encode(x), codes)
            torch.testing.assert_close(theirs.decode(codes), made.decode(codes))
        assert torch.equal(ours.encode(x), codes)
        assert torch.equal(ours.W_dec, made.W_dec)
        fit = 1 - float((made.decode(codes) - x).pow(2).sum() / (x - x.mean(0)).pow(2).sum())
        assert fit > 0.7, "it is an SAE of raw activations"


def test_noise_is_each_seeds_own_however_many_train_together(monkeypatch, x):
    noisy = {"architecture": "brought:Noisy", "d_sae": 8}

    def decoder(seeds):
        return train_saes(x, config(noisy, seeds, steps=6)).ensemble.params.W_dec

    together, alone = decoder((0, 1, 2)), decoder((2,))
    monkeypatch.setattr("husai.sae.architecture.AT_ONCE", 8 * 128)
    assert torch.equal(decoder((0, 1, 2)), together)
    torch.testing.assert_close(together[2:], alone, rtol=1e-5, atol=1e-5)


def test_a_run_goes_on_from_a_checkpoint_as_if_nothing_had_happened(x):
    from husai.sae.checkpoint import pack, unpack

    whole, first = Trainer(x, config(USERS, resample_every=10)), Trainer(x, config(USERS, resample_every=10))
    for _ in range(25):
        whole.advance()
    for _ in range(15):
        first.advance()
    tensors = {}
    packed = json.loads(json.dumps(pack(first.state(), tensors)))
    resumed = Trainer(x, config(USERS, resample_every=10))
    torch.manual_seed(99)  # the dropout inside must not depend on the global stream
    resumed.restore(unpack(packed, tensors))
    for _ in range(10):
        resumed.advance()
    for name, value in whole.params.items():
        assert torch.equal(value, dict(resumed.params.items())[name]), name
    assert int(whole.params.more["passes"][1]) == 25


def test_the_controller_steers_what_the_class_calls_coefficients(x):
    loose, tight = (train_saes(x, config(USERS, target_l0=target, target_l0_rate=0.1, steps=120)) for target in (12, 4))
    assert loose.history[-1].strength < 1 < tight.history[-1].strength
    assert loose.history[-1].l0 > tight.history[-1].l0 + 3
    with pytest.raises(HusaiError, match="brought:Curved has no coefficients"):
        train_saes(x, config({"architecture": "brought:Curved", "d_sae": 8}, target_l0=2))


def test_losses_without_a_name_are_logged_as_other(x):
    done = Trainer(x, config({"architecture": "brought:Curved", "d_sae": 8})).advance()
    assert set(done.terms) == {"other"}
    assert float(done.terms["other"].min()) > 0.01


def test_absolute_topk_has_signed_codes_in_memory_and_on_disk(tmp_path, x):
    chosen = config({"architecture": "saelens:abstopk", "d_sae": 8, "settings": {"k": 3}}, (0,), steps=4)
    trained = train_saes(x, chosen)
    (place,) = saved(trained, chosen, tmp_path / "run")
    assert trained.ensemble.member(0).signed_codes
    assert load_sae(place).signed_codes
    other = config({"architecture": "saelens:topk", "d_sae": 8, "settings": {"k": 3}}, (0,), steps=4)
    assert not train_saes(x, other).ensemble.member(0).signed_codes


# --- normalisation ---

EACH = {
    "brought:LogL1": {},
    "saelens:topk": {"k": 3},
    "saelens:abstopk": {"k": 3},
    "saelens:batchtopk": {"k": 3},
    "matryoshka_batchtopk": {"k": 3, "matryoshka_widths": [4, 24]},
    "standard": {},
    "saelens:jumprelu": {},
    "saelens:gated": {},
    "matching_pursuit": {},
    "brought:Curved": {},
}
UNFOLDED = ("matching_pursuit", "brought:Curved")


@pytest.mark.parametrize("how", ["scalar", "feature", "constant_norm", "none"])
@pytest.mark.parametrize("name", EACH)
def test_what_is_saved_does_on_raw_samples_what_was_trained_on_normalised_ones(tmp_path, x, sae_lens, name, how):
    chosen = config({"architecture": name, "d_sae": 24, "settings": EACH[name]}, (0,), steps=12, normalise=how)
    trainer = Trainer(x, chosen)
    for _ in range(12):
        trainer.advance()
    z, spread = trainer.normaliser(x), trainer.normaliser.scale
    codes = trainer.architecture.encode(trainer.params, z[None])[0].detach()
    inside = trainer.architecture.decode(trainer.params, codes[None])[0].detach()
    size = x.norm(dim=1, keepdim=True) / 12**0.5 if how == "constant_norm" else 1.0
    expected = inside / spread * size + trainer.normaliser.mean

    ensemble = trainer.ensemble()
    place = tmp_path / "sae"
    from husai.sae.weights import save_sae

    save_sae(ensemble, 0, place, {})
    made, opened = ensemble.member(0), load_sae(place)
    for sae in (made, opened):
        found = sae.encode(x)
        close = (found - codes).norm(dim=1) < 1e-3 * codes.norm(dim=1).clamp(min=1)
        assert float(close.float().mean()) > 0.99
        torch.testing.assert_close(sae.decode(found)[close], expected[close], rtol=1e-3, atol=1e-3)
    assert torch.equal(made.W_dec, opened.W_dec)
    noted = "husai_normaliser" in json.loads((place / "cfg.json").read_text())["metadata"]
    assert noted == (how == "constant_norm" or (how != "none" and name in UNFOLDED))
    theirs = sae_lens.SAE.load_from_disk(place)
    with torch.no_grad():
        own = theirs.encode(z if noted else x)
    assert float(((own - codes).norm(dim=1) < 1e-3 * codes.norm(dim=1).clamp(min=1)).float().mean()) > 0.99


def test_folding_that_changes_what_an_sae_does_is_found_out(x):
    """SAELens folds a curved encoder without a word; the result is another SAE."""
    trainer = Trainer(x, config({"architecture": "brought:Curved", "d_sae": 24}, (0,)))
    sae = trainer.architecture.finished(trainer.params, 0).sae
    scale = torch.as_tensor(trainer.normaliser.scale)
    wrong = trainer.architecture.finished(trainer.params, 0).sae
    wrong.fold_activation_whitening(trainer.normaliser.mean, scale * torch.eye(12), torch.eye(12) / scale)
    with torch.no_grad():
        assert float((wrong.encode(x) - sae.encode(trainer.normaliser(x))).abs().max()) > 0.1

    def opened():
        return trainer.architecture.finished(trainer.params, 0).sae

    assert folded(opened, trainer.normaliser) is None
    silent = Normaliser(torch.zeros(12), 2.0)
    mute = Trainer(x, config({"architecture": "standard", "d_sae": 8}, (0,)))
    with torch.no_grad():
        mute.params.b_enc.fill_(-1e6)
    assert folded(lambda: mute.architecture.finished(mute.params, 0).sae, silent) is None, "nothing was compared"


def test_a_damaged_note_of_the_normaliser_is_a_sentence(tmp_path, x):
    chosen = config({"architecture": "brought:Curved", "d_sae": 8}, (0,), steps=2)
    (place,) = saved(train_saes(x, chosen), chosen, tmp_path / "run")
    text = json.loads((place / "cfg.json").read_text())
    text["metadata"]["husai_normaliser"]["mean"] = [1.0]
    (place / "cfg.json").write_text(json.dumps(text))
    with pytest.raises(HusaiError, match=r"cfg.json: metadata.husai_normaliser must hold mean \(d_in numbers\)"):
        load_sae(place)


FRESH = """
import sys
from husai.errors import HusaiError
from husai.sae.registry import import_module
from husai.sae.weights import load_sae
try:
    load_sae(sys.argv[1])
except HusaiError as error:
    print(error)
import_module("brought", "--import")
print(load_sae(sys.argv[1]).W_dec.shape)
"""


def test_a_folder_whose_class_nobody_registered_says_how_to(tmp_path, x):
    chosen = config({"architecture": "brought:Curved", "d_sae": 8}, (0,), steps=2)
    (place,) = saved(train_saes(x, chosen), chosen, tmp_path / "run")
    done = subprocess.run([sys.executable, "-c", FRESH, place], cwd=HERE, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (
        "architecture 'curved' is not registered with SAELens; import the module that registers it first" in done.stdout
    )
    assert "torch.Size([8, 12])" in done.stdout


def test_what_fails_on_other_samples_than_it_was_tried_on_says_so_too(x):
    made = train_saes(x, config(USERS, (0,), steps=2)).ensemble.member(0)
    with pytest.raises(HusaiError, match=r"'standard': StandardSAE.encode fails on shape \(5, 11\) \(RuntimeError"):
        made.encode(torch.zeros(5, 11))
    with pytest.raises(HusaiError, match=r"'standard': StandardSAE.decode fails on shape \(5, 23\)"):
        made.decode(torch.zeros(5, 23))


# --- bad input ---


@pytest.mark.parametrize(
    ("sae", "message"),
    [
        ({"architecture": "brought:Nothing"}, "brought has no class 'Nothing' and registers none of that name"),
        ({"architecture": "missing_module:Class"}, "module missing_module cannot be imported (ModuleNotFoundError"),
        ({"architecture": "saelens:magic"}, "must be one of the names registered with SAELens (abstopk, batchtopk"),
        (
            {"architecture": "saelens:transcoder"},
            "'saelens:transcoder': SAELens runs such SAEs but does not train them; of SAELens' classes allowed are abstopk,",
        ),
        ({"architecture": "brought:Unregistered"}, "is not registered with SAELens; brought must call"),
        ({"architecture": "brought:Unfinished"}, "Unfinished lacks calculate_aux_loss, get_coefficients; a training"),
        ({"architecture": "brought:NoModule"}, "NoModule lacks training_forward_pass, get_coefficients, process_state"),
        ({"architecture": "brought:Unsavable"}, "SAELens has no class to save it as (KeyError: 'unsavable')"),
        ({"architecture": "brought:Failing"}, "training_forward_pass failed at step 0 (ValueError: out of cheese)"),
        (
            {"architecture": "brought:Wide"},
            "gives feature_acts of shape (128, 16); it must be (batch, d_sae), here (128, 8)",
        ),
        ({"architecture": "brought:Tied"}, "W_dec of shape (d_sae, d_in), here (8, 12); it has none"),
        (
            {"architecture": "brought:LogL1", "settings": {"coeficient": 1}},
            "unknown key 'sae.settings.coeficient': LogL1Config has apply_b_dec_to_input, normalize_activations, "
            "decoder_init_norm, coefficient, warm_up_steps",
        ),
        (
            {"architecture": "brought:LogL1", "settings": {"d_in": 3}},
            "'sae.settings.d_in': is no setting; it is the acti",
        ),
        (
            {"architecture": "standard", "settings": {"normalize_activations": "expected_average_only_in"}},
            "'expected_average_only_in' is done by SAELens' trainer; use training.normalise",
        ),
        (
            {"architecture": "standard", "settings": {"normalize_activations": "?"}},
            "does not take sae.settings (ValueError",
        ),
        (
            {"architecture": "saelens:topk", "settings": {"k": "many"}},
            "TopKSAE.encode fails on shape (4, 12) (TypeError",
        ),
        (
            {"architecture": "saelens:topk", "settings": {"k": 40}},
            "'saelens:topk' (d_sae 8, settings {'k': 40}): TopKSAE.encode fails on shape (4, 12) (RuntimeError: selected",
        ),
        ({"architecture": "brought:Odd"}, "OddSAE.encode gives shape (4, 7) for (4, 12); it must be (4, 8)"),
        ({"architecture": "saelens:topk", "settings": {"k": 0}}, "'sae.settings.k': is 0; it must be above 0"),
        (
            {"architecture": "standard", "settings": {"l1_coefficient": float("nan")}},
            "'sae.settings.l1_coefficient': is nan; it must be a finite number",
        ),
        ({"architecture": "standard", "dial": "l2"}, "'sae.dial': 'l2' is not among sae.settings ()"),
        ({"architecture": "matching_pursuit"}, "training.resample_every: matching_pursuit has no W_enc of shape"),
    ],
)
def test_what_cannot_be_trained_is_one_sentence(x, sae, message):
    with pytest.raises(HusaiError) as caught:
        train_saes(x, config({"d_sae": 8, **sae}, (0,), steps=3, resample_every=1))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_names_that_are_ours_mean_ours_and_registered_ones_saelens(sae_lens):
    from sae_lens.registry import SAE_TRAINING_CLASS_REGISTRY as KNOWN

    from husai.config import SAE_CONFIGS
    from husai.config.registered import SAE_LENS

    own = {name for name, (kind, _) in KNOWN.items() if kind.__module__.startswith("sae_lens.")}
    assert own - set(SAE_CONFIGS) == set(SAE_LENS)
    assert not isinstance(config({"architecture": "topk", "d_sae": 8, "k": 2}).sae, RegisteredConfig)
    assert isinstance(config({"architecture": "standard", "d_sae": 8}).sae, RegisteredConfig)
    assert (
        architecture_of(config({"architecture": "brought:log_l1", "d_sae": 8}).sae).found.training.__name__ == "LogL1"
    )
    assert architecture_of(config({"architecture": "log_l1", "d_sae": 8}).sae).found.training.__name__ == "LogL1"
    with pytest.raises(HusaiError, match=r"unknown key 'sae\.k'"):
        config({"architecture": "standard", "d_sae": 8, "k": 2})


@pytest.mark.parametrize(
    ("settings", "dial", "expected"),
    [
        ({"k": 4, "l1_coefficient": 2.0}, None, ("k", 4.0)),
        ({"k": 4, "width": 7}, "width", ("width", 7.0)),
        ({"name": "x"}, None, ("d_sae", 8.0)),
    ],
)
def test_the_dial_is_the_setting_that_is_named(settings, dial, expected):
    chosen = RegisteredConfig(architecture="a:B", d_sae=8, settings=settings, dial=dial)
    assert chosen.sparsity == expected
    assert chosen.fixed_l0 == (4.0 if expected[0] == "k" else None)


def test_a_width_that_is_the_dial_too_is_said_once():
    from husai.cell import Cell
    from husai.config import AnalysisConfig

    plain = SAEConfig.parse({"sae": {"architecture": "a:B", "d_sae": 8}})
    dialled = SAEConfig.parse({"sae": {"architecture": "a:B", "d_sae": 8, "settings": {"k": 2}}})
    titles = [Cell(one, "blocks.0.hook_mlp_out", "m", AnalysisConfig()).title for one in (plain, dialled)]
    assert titles == ["0.hook_mlp_out a:B d_sae=8", "0.hook_mlp_out a:B d_sae=8 k=2"]


def test_a_reports_label_and_file_names_say_it_once_too():
    import pandas as pd

    from husai.report.results import CellView

    view = CellView("r", "trained", "model", "blocks.0.hook_mlp_out", "a:B", 8, "d_sae", 8, True, False, pd.DataFrame())
    assert view.setting == "a:B 8"
    assert view.slug.endswith("a:B_8")
