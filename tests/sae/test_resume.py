"""Training that is killed and resumed must not differ by a bit from training that was not."""

import json
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from husai.config import (
    ArchetypalConfig,
    BlockTopKConfig,
    FrozenConfig,
    ReLUConfig,
    SAEConfig,
    SAETrainingConfig,
    TopKConfig,
    TopKSkipTranscoderConfig,
)
from husai.errors import HusaiError
from husai.sae.checkpoint import Checkpoints, checkpoint_folder, pack, unpack
from husai.sae.known import Known
from husai.sae.train import train_saes
from husai.sae.trainer import Trainer
from husai.seeding import generator
from husai.shards import StoreWriter, open_store
from husai.workflow import train_sae_run

STEPS, EVERY = 60, 7
# Runs in a process of its own, which kills itself before update `die`, or (negative) amid writing a checkpoint.
SCRIPT = """
import json, os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from husai.config import SAEConfig
from husai.sae import checkpoint
from husai.sae.known import Known
from husai.sae.trainer import Trainer
from husai.sae.pairs import Pairs
from husai.shards import open_store
from husai.workflow import train_sae_run
from safetensors.torch import load_file

folder, config, die = Path(sys.argv[1]), SAEConfig.parse(json.loads(sys.argv[2])), int(sys.argv[3])
source = folder / "store"
x = open_store(source) if source.is_dir() else load_file(folder / "x.safetensors")["x"]
if config.sae.paired:
    x = Pairs(x, open_store(folder / "target") if source.is_dir() else x.square())
advance, write = Trainer.advance, checkpoint.write_atomic
kill = lambda: os.kill(os.getpid(), signal.SIGKILL)

def dying(self):
    if self.step == die:
        kill()
    return advance(self)

def dying_write(path, text):
    if path.name == f"step-{-die:09d}.json":
        path.with_suffix(".half").write_text(text[: len(text) // 2])
        kill()
    write(path, text)

Trainer.advance, checkpoint.write_atomic = dying, dying_write
looks = []
def stop(step, ensemble):
    looks.append([step, float(ensemble.params.W_dec.double().sum())])
    return False
def finish(trained, place):
    (place / "looks.json").write_text(json.dumps(looks))
    return {}
train_sae_run(x, config, folder / "run", {"hook_name": "h"}, stop=stop, stop_at=(0, 30, 60), finish=finish, warn=print)
"""


def recipe(kind="topk", **training) -> SAEConfig:
    kinds = {
        "topk": TopKConfig(d_sae=48, k=2, dead_steps=2),
        "blocktopk": BlockTopKConfig(d_sae=48, k=2, dead_steps=2),
        "archetypal": ArchetypalConfig(d_sae=48, k=2, dead_steps=2),
        "frozen": FrozenConfig(d_sae=48, k=2, dead_steps=2),
        "relu": ReLUConfig(d_sae=48, l1_coefficient=3, l1_warmup_steps=10, decoder_norm="weighted"),
        "topk_skip_transcoder": TopKSkipTranscoderConfig(d_sae=48, k=2, dead_steps=2),
    }
    quick = {"steps": STEPS, "batch_size": 64, "lr": 1e-2, "warmup_steps": 5, "resample_every": 10, "resample_until": 1}
    given = SAETrainingConfig(**{**quick, **training})
    return SAEConfig(sae=kinds[kind], training=given, init_seeds=(0, 3), data_seeds=(5, 6))


@pytest.fixture(scope="module")
def x():
    g = generator("test-resume")
    return torch.randn(600, 5, generator=g).relu() @ torch.randn(5, 8, generator=g) + 3


def store_of(x, folder, rows=100):
    with StoreWriter(folder, {}, rows_per_shard=rows) as writer:
        row = torch.arange(len(x))
        writer.append(x, label=row % 3, position=row % 10)
    return open_store(folder)


def process(folder, config, die):
    plain = config.model_dump(mode="json")
    plain["training"]["checkpoint_every"] = EVERY
    command = [sys.executable, "-c", SCRIPT, folder, json.dumps(plain), str(die)]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300)


def outcome(folder):
    """Weights of both seeds, history and what was measured on the way."""
    run = folder / "run"
    weights = [load_file(run / f"seed-{a}-{b}" / "sae_weights.safetensors") for a, b in ((0, 5), (3, 6))]
    return weights, (run / "history.csv").read_text(), (run / "looks.json").read_text()


def assert_equal(first, second):
    for ours, theirs in zip(first[0], second[0], strict=True):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert first[1:] == second[1:]


@pytest.mark.parametrize(
    ("source", "kind", "deaths"),
    [
        ("tensor", "topk", (3, 29, -35, 58)),
        ("tensor", "relu", (22, 41)),
        ("store", "topk", (13, -21, 50)),
        ("guided store", "relu", (17, 45)),
        ("tensor", "topk_skip_transcoder", (33,)),
        ("store", "topk_skip_transcoder", (40,)),
        ("tensor", "archetypal", (30,)),
    ],
)
def test_killed_anywhere_and_resumed_a_run_ends_bit_for_bit_the_same(tmp_path, x, source, kind, deaths):
    guided = {"probe": 1.0, "probe_labels": "label", "temporal": 0.1} if source == "guided store" else {}
    average = 0.9 if kind == "topk_skip_transcoder" else None
    config = recipe(kind, buffer_rows=250, ema_decay=average, **guided)
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
        if source.endswith("store"):
            store_of(x, tmp_path / name / "store")
            store_of(x[:, :3].square(), tmp_path / name / "target")
        else:
            torch_save(x, tmp_path / name)
    whole = process(tmp_path / "whole", config, STEPS + 1)
    assert whole.returncode == 0, whole.stderr
    for die in deaths:
        assert process(tmp_path / "killed", config, die).returncode == -signal.SIGKILL
        assert not (tmp_path / "killed" / "run").exists()
    last = process(tmp_path / "killed", config, STEPS + 1)
    assert last.returncode == 0, last.stderr
    assert_equal(outcome(tmp_path / "killed"), outcome(tmp_path / "whole"))
    assert not checkpoint_folder(tmp_path / "killed" / "run").exists()


def torch_save(x, folder):
    from safetensors.torch import save_file

    save_file({"x": x}, folder / "x.safetensors")


def halted(folder, config, at, x):
    """Checkpoints of a run that was broken off before update `at`."""

    class Halt(Exception): ...

    def stop(step, _):
        raise Halt

    with pytest.raises(Halt):
        train_saes(x, config, stop=stop, stop_at=(at,), checkpoints=Checkpoints(folder, about(config), every=EVERY))


def about(config):
    return config.model_dump(mode="json")


def ends_as_the_whole(x, config, checkpoints):
    resumed, whole = train_saes(x, config, checkpoints=checkpoints), train_saes(x, config)
    equal = zip(resumed.ensemble.params, whole.ensemble.params, strict=True)
    return all(torch.equal(a, b) for a, b in equal) and resumed.history == whole.history


def test_the_last_two_are_kept_and_checkpoints_change_nothing(tmp_path, x):
    halted(tmp_path, recipe(), 40, x)
    steps = sorted(path.name for path in tmp_path.glob("step-*"))
    assert steps == [f"step-{n:09d}.{kind}" for n in (28, 35) for kind in ("json", "safetensors")]
    assert ends_as_the_whole(x, recipe(), Checkpoints(tmp_path / "other", {}, every=1))


@pytest.mark.parametrize("kind", ["blocktopk", "archetypal", "frozen"])
def test_every_architecture_goes_on_from_a_checkpoint(tmp_path, x, kind):
    halted(tmp_path, recipe(kind), 40, x)
    assert ends_as_the_whole(x, recipe(kind), Checkpoints(tmp_path, about(recipe(kind))))


@pytest.mark.parametrize("suffix", ["json", "safetensors"])
@pytest.mark.parametrize("damage", ["cut", "flip"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tmp_path, x, suffix, damage):
    halted(tmp_path, recipe(), 40, x)
    hurt(tmp_path / f"step-000000035.{suffix}", damage)
    told = []
    checkpoints = Checkpoints(tmp_path, about(recipe()), warn=told.append)
    assert checkpoints.load().state["step"] == 28
    assert ends_as_the_whole(x, recipe(), checkpoints)
    assert "step-000000035.json: is truncated or damaged" in told[0]
    hurt(tmp_path / f"step-000000028.{suffix}", damage)
    with pytest.raises(HusaiError, match="every checkpoint in it is truncated or damaged"):
        checkpoints.load()


def hurt(path, damage):
    raw = bytearray(path.read_bytes())
    raw[-9] ^= 1
    path.write_bytes(raw if damage == "flip" else raw[: len(raw) // 2])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr": 2e-2}, r"since training\.lr was 0\.01 and is now 0\.02"),
        ({"steps": 61}, r"since training\.steps was 60 and is now 61"),
        ({"buffer_rows": 128}, r"since training\.buffer_rows was absent and is now 128"),
    ],
)
def test_a_changed_config_is_refused_with_its_key(tmp_path, x, change, message):
    halted(tmp_path, recipe(), 40, x)
    with pytest.raises(HusaiError, match=message):
        Checkpoints(tmp_path, about(recipe(**change))).load()


def test_other_activations_are_refused(tmp_path, x):
    class Halt(Exception): ...

    def stop(step, _):
        if step == 20:
            raise Halt
        return False

    def go(samples, **more):
        config = recipe(checkpoint_every=EVERY)
        return train_sae_run(samples, config, tmp_path / "run", {}, stop=stop, finish=lambda *_: {}, **more)

    with pytest.raises(Halt):
        go(x, stop_at=(20,))
    with pytest.raises(HusaiError, match=r"since activations\.first_rows was"):
        go(x + 1)
    with pytest.raises(HusaiError, match=r"activations\.rows was 600 and is now 500"):
        go(x[:500])
    with pytest.raises(HusaiError, match="nowhere: holds no checkpoint"):
        go(x, resume_from=tmp_path / "nowhere")
    assert go(x).steps == STEPS


def test_resuming_from_another_folder_leaves_that_alone(tmp_path, x):
    halted(tmp_path / "old", recipe(), 40, x)
    before = sorted(path.name for path in (tmp_path / "old").iterdir())
    assert ends_as_the_whole(
        x, recipe(), Checkpoints(tmp_path / "new", about(recipe()), every=EVERY, source=tmp_path / "old")
    )
    assert sorted(path.name for path in (tmp_path / "old").iterdir()) == before
    with pytest.raises(HusaiError, match="holds no checkpoint"):
        Checkpoints(tmp_path / "new", {}, source=tmp_path / "empty").load()


def test_fresh_samples_go_on_where_they_were(tmp_path, x):
    def fresh(count, stream):
        return x[torch.randint(600, (count,), generator=stream)]

    class Halt(Exception): ...

    def stop(*_):
        raise Halt

    for_resuming = Checkpoints(tmp_path, {}, every=EVERY)
    with pytest.raises(Halt):
        train_saes(x, recipe(), fresh=fresh, stop=stop, stop_at=(40,), checkpoints=for_resuming)
    resumed = train_saes(x, recipe(), fresh=fresh, checkpoints=for_resuming)
    whole = train_saes(x, recipe(), fresh=fresh)
    assert torch.equal(resumed.ensemble.params.W_dec, whole.ensemble.params.W_dec)


def test_the_probe_goes_on_where_it_was(tmp_path, x):
    row = torch.arange(len(x))
    known = Known(row % 3, torch.where(row % 10 > 0, row - 1, -1))
    config = recipe(probe=1.0, temporal=0.1)

    class Halt(Exception): ...

    def stop(*_):
        raise Halt

    for_resuming = Checkpoints(tmp_path, {}, every=EVERY)
    with pytest.raises(Halt):
        train_saes(x, config, known=known, stop=stop, stop_at=(40,), checkpoints=for_resuming)
    resumed = train_saes(x, config, known=known, checkpoints=for_resuming)
    whole = train_saes(x, config, known=known)
    assert torch.equal(resumed.ensemble.params.W_enc, whole.ensemble.params.W_enc)
    assert resumed.history == whole.history


def test_everything_that_changes_in_training_is_kept(x):
    """A new attribute of the trainer either follows from its arguments or must be named in `kept`."""
    follows = {
        "config",
        "recipe",
        "count",
        "normaliser",
        "architecture",
        "samples",
        "variance",
        "dead_steps",
        "grad_norm",
        "unit",
        "aim",
        "targets",
        "computation",
        "clock",
    }
    assert set(vars(Trainer(x, recipe()))) == follows | set(Trainer.kept)


def test_trees_of_values_and_tensors_survive_json():
    tree = {"a": [1, 0.1, None, True, "s"], 3: {"t": torch.arange(3)}, "pair": (0.9, float("inf"))}
    tensors = {}
    again = unpack(json.loads(json.dumps(pack(tree, tensors))), tensors)
    assert torch.equal(again.pop(3)["t"], torch.arange(3))
    assert again == {key: tree[key] for key in ("a", "pair")}
    assert list(tensors) == [".3.t"]
    with pytest.raises(TypeError, match="cannot hold set"):
        pack({"x": set()}, {})


def test_what_was_seen_before_is_seen_again_as_it_was(x, tmp_path):
    """A scale of its own for every coordinate is folded into weights that are then read as if decoder rows had norm 1."""
    config = recipe(normalise="feature", checkpoint_every=EVERY)
    config = config.model_copy(update={"sae": config.sae.model_copy(update={"decoder_norm": "weighted"})})

    def errors(die_at):
        seen = {}

        def stop(step, ensemble):
            if step == die_at:
                raise KeyboardInterrupt
            member = ensemble.member(0)
            seen[step] = float((member.decode(member.encode(x)) - x).square().sum())
            return False

        kept = Checkpoints(tmp_path / "kept", {}, every=EVERY)
        train_saes(x, config, stop=stop, stop_at=(0, STEPS // 2, STEPS), checkpoints=kept)
        return seen

    with pytest.raises(KeyboardInterrupt):
        errors(STEPS)
    resumed = errors(-1)
    shutil.rmtree(tmp_path / "kept")
    assert resumed == errors(-1)
