import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from husai.activations import Normaliser
from husai.analysis.fit import evaluate_fit
from husai.config import SAEConfig, SAETrainingConfig, TopKConfig
from husai.errors import HusaiError
from husai.sae.batches import Batches, StoreBatches
from husai.sae.estimate import estimate
from husai.sae.train import train_saes
from husai.seeding import deterministic, generator
from husai.shards import StoreWriter, fit_normaliser, open_store, sample_rows


def numbered(rows: int, d: int = 2) -> torch.Tensor:
    """Row i holds i."""
    return torch.arange(rows).float()[:, None].expand(-1, d).contiguous()


def store_of(x, folder, rows_per_shard, dtype="float32", **aligned):
    with StoreWriter(folder, {"hook_name": "h"}, rows_per_shard=rows_per_shard, dtype=dtype) as writer:
        for start in range(0, len(x), 7):
            writer.append(x[start : start + 7], **{name: v[start : start + 7] for name, v in aligned.items()})
    return open_store(folder)


@pytest.fixture(scope="module")
def samples():
    g = generator("test-stores")
    return torch.randn(6000, 5, generator=g).relu() @ torch.randn(5, 8, generator=g) + 3


def recipe(data=(0,), **training) -> SAEConfig:
    given = {"steps": 300, "batch_size": 64, "lr": 1e-2, "warmup_steps": 5, "resample_every": 50, **training}
    kind = TopKConfig(d_sae=32, k=3, dead_steps=10)
    return SAEConfig(sae=kind, training=SAETrainingConfig(**given), init_seeds=data, data_seeds=data)


# --- on disk ---


def test_what_is_written_is_read_back_in_shards_of_the_size_asked(tmp_path):
    x, label = numbered(23), torch.arange(23) % 3
    store = store_of(x, tmp_path / "s", 10, label=label)
    assert [shard.rows for shard in store.shards] == [10, 10, 3]
    assert sorted(os.listdir(tmp_path / "s")) == [*(f"shard-0000{i}.safetensors" for i in range(3)), "store.json"]
    assert (len(store), store.d, store.dtype, store.of) == (23, 2, "float32", {"hook_name": "h"})
    assert torch.equal(torch.cat([store.read(i) for i in range(3)]), x)
    assert torch.equal(torch.cat([store.aligned(i, "label") for i in range(3)]), label)
    store.verify()
    with pytest.raises(HusaiError, match="has no tensor 'token'; it holds label, x"):
        store.aligned(0, "token")


def test_half_precision_lies_on_disk_as_such_and_is_read_as_float32(tmp_path):
    store = store_of(numbered(5) / 3, tmp_path / "s", 10, dtype="bfloat16")
    assert load_file(store.shards[0].path)["x"].dtype == torch.bfloat16
    assert torch.equal(store.read(0), (numbered(5) / 3).bfloat16().float())


def test_a_writer_that_fails_leaves_nothing(tmp_path):
    def write(*parts, **aligned):
        with StoreWriter(tmp_path / "s", {}, rows_per_shard=2) as writer:
            for part in parts:
                writer.append(part, **aligned)

    for parts, aligned, message in (
        ((), {}, "no activations were given"),
        ((numbered(5), numbered(5, d=3)), {}, "do not fit"),
        ((numbered(5),), {"label": torch.arange(4)}, "must have its 5 rows"),
    ):
        with pytest.raises(HusaiError, match=message):
            write(*parts, **aligned)
    with pytest.raises(AttributeError):
        write(numbered(5), "nonsense")
    assert list(tmp_path.iterdir()) == []
    store_of(numbered(5), tmp_path / "s", 10)
    with pytest.raises(HusaiError, match="not an empty folder"):
        StoreWriter(tmp_path / "s", {})


def test_a_store_that_was_never_finished_is_not_taken_for_a_smaller_one(tmp_path):
    code = (
        "import os, signal, torch; from pathlib import Path; from husai.shards import StoreWriter\n"
        "with StoreWriter(Path('s'), {}, rows_per_shard=2) as writer:\n"
        "    writer.append(torch.ones(5, 2)); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path)
    assert (tmp_path / "s" / "shard-00001.safetensors").exists()
    with pytest.raises(HusaiError, match="was never finished"):
        open_store(tmp_path / "s")


@pytest.mark.parametrize("shape", [(12, 4), (3, 4, 4)])
def test_foreign_shards_are_read_and_flattened(tmp_path, shape):
    x = torch.arange(48).float().reshape(shape)
    save_file({"acts": x.half(), "ids": torch.arange(3)}, tmp_path / "a.safetensors")
    torch.save(x.half(), tmp_path / "b.pt")
    torch.save({"x": x.half(), "other": x.half()}, tmp_path / "c.pt", _use_new_zipfile_serialization=False)
    store = open_store(tmp_path)
    assert (len(store), store.d, store.dtype) == (36, 4, "float16")
    for index in range(3):
        assert torch.equal(store.check(index), x.reshape(12, 4))


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_pickled_code_is_never_run(tmp_path):
    torch.save({"x": Bomb(tmp_path / "boom")}, tmp_path / "a.pt")
    with pytest.raises(HusaiError, match=r"a\.pt: is damaged, or a pickle that would run code"):
        open_store(tmp_path)
    assert not (tmp_path / "boom").exists()


def cut(path):
    path.write_bytes(path.read_bytes()[:-20])


def flip(path):
    raw = bytearray(path.read_bytes())
    raw[-3] ^= 1
    path.write_bytes(raw)


@pytest.mark.parametrize("damage", [cut, flip])
def test_a_damaged_shard_is_named(tmp_path, damage):
    store = store_of(numbered(30), tmp_path, 10)
    damage(tmp_path / "shard-00001.safetensors")
    for ask in (store.verify, lambda: fit_normaliser(store), lambda: train_saes(store, recipe(batch_size=8))):
        with pytest.raises(HusaiError, match=r"shard-00001\.safetensors: is truncated or damaged; its checksum"):
            ask()


@pytest.mark.parametrize("name", ["a.safetensors", "a.pt"])
def test_a_truncated_foreign_shard_is_named(tmp_path, name):
    x = numbered(3000)
    torch.save(x, tmp_path / name) if name.endswith("pt") else save_file({"x": x}, tmp_path / name)
    cut(tmp_path / name)
    with pytest.raises(HusaiError, match=rf"{name}: is not a complete|{name}: is damaged"):
        open_store(tmp_path)


def test_a_foreign_shard_that_changes_after_it_was_opened_is_named_and_no_run_resumes_on_it(tmp_path):
    from husai.workflow import train_sae_run

    place, out = tmp_path / "s", tmp_path / "run"
    place.mkdir()
    torch.save(numbered(40), place / "a.pt")
    torch.save(numbered(40), place / "b.pt")
    store, config = open_store(place), recipe(batch_size=8, steps=12, checkpoint_every=5)
    assert all(len(shard.sha256) == 64 for shard in store.shards)

    def dying(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_sae_run(store, config, out, {}, on_log=dying, finish=lambda _t, _f: {})
    torch.save(numbered(40) + 1, place / "b.pt")
    with pytest.raises(HusaiError, match=r"b\.pt: is truncated or damaged; its checksum"):
        store.verify()
    with pytest.raises(HusaiError, match=r"cannot resume, since activations\.shards was"):
        train_sae_run(open_store(place), config, out, {}, finish=lambda _t, _f: {})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_bad_numbers_are_named_by_shard_and_row(tmp_path, value):
    x = numbered(30)
    x[14, 1] = x[17, 0] = value
    store = store_of(x, tmp_path, 10)
    with pytest.raises(HusaiError, match=r"shard-00001\.safetensors: row 4 holds NaN or infinity \(2 such rows\)"):
        train_saes(store, recipe(batch_size=8))


def test_shards_that_disagree_are_refused(tmp_path):
    for name, other in (("width", numbered(3, d=5)), ("dtype", numbered(3).double())):
        folder = tmp_path / name
        folder.mkdir()
        torch.save(numbered(3), folder / "a.pt")
        torch.save(other, folder / "b.pt")
        with pytest.raises(HusaiError, match=r"b\.pt: holds .*, but a\.pt holds float32 of width 2"):
            open_store(folder)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda folder: None, "is not a store of activations; it has neither"),
        (lambda folder: folder.rmdir(), "no such folder of activations"),
        (lambda folder: (folder / "store.json").write_text("{"), "is not the index of a store"),
        (lambda folder: torch.save(torch.ones(3), folder / "a.pt"), r"a\.pt: has shape \(3,\); activations are"),
        (lambda folder: torch.save(torch.arange(6).view(2, 3), folder / "a.pt"), "holds 0 tensors of floating"),
        (lambda folder: torch.save([torch.ones(2, 2)], folder / "a.pt"), "must hold a tensor, or tensors by name"),
        (lambda folder: torch.save(torch.ones(0, 3), folder / "a.pt"), r"has shape \(0, 3\)"),
    ],
)
def test_what_is_no_store_is_a_sentence(tmp_path, write, message):
    folder = tmp_path / "s"
    folder.mkdir()
    write(folder)
    with pytest.raises(HusaiError, match=message):
        open_store(folder)


def test_a_missing_shard_and_a_changed_one_are_named(tmp_path):
    store = store_of(numbered(30), tmp_path, 10)
    save_file({"x": numbered(9)}, tmp_path / "shard-00000.safetensors")
    with pytest.raises(HusaiError, match=r"x has shape \(9, 2\); the store says \(10, 2\)"):
        store.read(0)
    (tmp_path / "shard-00002.safetensors").unlink()
    with pytest.raises(HusaiError, match=r"shard-00002\.safetensors is missing \(1 of 3 shards\)"):
        open_store(tmp_path)


def test_fewer_rows_than_a_batch_and_rows_that_do_not_vary_are_refused(tmp_path):
    with pytest.raises(HusaiError, match="batch_size: 64 exceeds the 30 samples"):
        train_saes(store_of(numbered(30), tmp_path / "few", 10), recipe())
    with pytest.raises(HusaiError, match="do not vary"):
        train_saes(store_of(torch.full((100, 2), 1e4), tmp_path / "same", 10), recipe())


# --- streaming ---


def test_the_normaliser_is_that_of_all_rows_in_float64(tmp_path):
    x = numbered(30) + 1e5  # in float32 sums, the spread would drown
    found, exact = fit_normaliser(store_of(x, tmp_path, 7)), x.double()
    assert torch.equal(found.mean, exact.mean(0).float())
    size = (exact - exact.mean(0)).pow(2).sum(1).mean().sqrt()
    assert found.scale == pytest.approx(float(2**0.5 / size), rel=1e-12)


def passes(store, count, batch_size, buffer_rows, seeds=(0, 1)):
    """(passes, seeds, rows visited in one pass)."""
    batches = StoreBatches(store, batch_size, seeds, Normaliser(torch.zeros(2), 1.0), buffer_rows, "cpu")
    rows = torch.cat([batches.at(step)[..., 0] for step in range(count * batches.per_epoch)], dim=1)
    return torch.stack(rows.chunk(count, dim=1))


def test_a_pass_visits_every_row_once_in_an_order_of_its_own(tmp_path):
    store = store_of(numbered(100), tmp_path, 16)  # the last shard has 4 rows, and batches of 9 straddle blocks
    visited = passes(store, 6, 9, buffer_rows=32)
    assert visited.shape == (6, 2, 99)
    orders = list(visited.flatten(0, 1))
    assert all(len(order.unique()) == 99 for order in orders)
    assert not any(torch.equal(a, b) for i, a in enumerate(orders) for b in orders[:i])
    assert torch.equal(visited[:, 1], passes(store, 6, 9, buffer_rows=32, seeds=(1,))[:, 0])
    assert len(passes(store, 30, 9, buffer_rows=32).flatten().unique()) == 100


def test_rows_are_shuffled_within_blocks_and_shards_among_them(tmp_path):
    store = store_of(numbered(100), tmp_path, 10)
    visited = passes(store, 20, 10, buffer_rows=20)[:, 0].view(20, 5, 20)  # five blocks of two shards each
    shards = (visited // 10).long()
    assert all(len(block.unique()) == 2 for one in shards for block in one)
    assert {len(set(one[:, 0].tolist())) for one in shards} == {5}
    assert (shards[:, 0, 0].unique().numel()) > 5  # the first shard differs from pass to pass
    inside = (visited.diff(dim=2) > 0).float().mean()  # a shuffled block rises as often as it falls
    assert 0.4 < inside < 0.6


def test_with_a_buffer_for_everything_batches_are_those_of_the_tensor(tmp_path, samples):
    store, normaliser = store_of(samples, tmp_path, 1000), Normaliser.fit(samples)
    held = Batches(normaliser(samples), 64, (0, 1), normaliser)
    streamed = StoreBatches(store, 64, (0, 1), normaliser, 6000, "cpu")
    assert all(torch.equal(held.at(step), streamed.at(step)) for step in range(3 * held.per_epoch))


@pytest.mark.parametrize(("rows_per_shard", "buffer_rows"), [(6000, 6000), (500, 1000)])
def test_training_on_a_store_fits_as_well_as_on_the_tensor(tmp_path, samples, rows_per_shard, buffer_rows):
    config = recipe((0, 1), buffer_rows=buffer_rows)
    held = train_saes(samples, config)
    streamed = train_saes(store_of(samples, tmp_path, rows_per_shard), config)
    for one, other in zip(held.ensemble.dictionaries, streamed.ensemble.dictionaries, strict=True):
        fits = [evaluate_fit(each, samples).explained_variance for each in (one, other)]
        assert min(fits) > 0.9
        assert abs(fits[0] - fits[1]) < 0.005
    assert [row.step for row in held.history] == [row.step for row in streamed.history]
    assert streamed.history[-1].epoch == held.history[-1].epoch == pytest.approx(300 * 64 / 6000)


def test_the_sample_of_a_store_has_one_row_from_each_stretch(tmp_path):
    store = store_of(numbered(100), tmp_path, 16)
    assert torch.equal(sample_rows(store, 100), numbered(100))
    drawn = sample_rows(store, 20)[:, 0]
    assert (drawn // 5).tolist() == list(range(20))
    assert not torch.equal(drawn % 5, torch.zeros(20))
    assert torch.equal(drawn, sample_rows(store, 20)[:, 0])


LIMITED = """
from pathlib import Path
import torch
torch.set_num_threads(1)
from husai.config import SAEConfig, SAETrainingConfig, TopKConfig
from husai.sae.train import train_saes
from husai.shards import StoreWriter, open_store

def store(name, shards):
    part = torch.randn(4096, 4) @ torch.randn(4, 128)
    with StoreWriter(Path(name), {}, rows_per_shard=4096) as writer:
        for _ in range(shards):
            writer.append(part)
    return open_store(Path(name))

def peak():
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024

def train(x, steps):
    training = SAETrainingConfig(steps=steps, batch_size=1024, buffer_rows=8192, resample_every=40)
    return train_saes(x, SAEConfig(sae=TopKConfig(d_sae=16, k=2), training=training)).history[-1]

small, large = store("small", 1), store("large", 64)
train(small, 50)  # libraries load as they are used
before = peak()
explained = train(large, 300).explained_variance
streamed = peak() - before
held = torch.cat([large.read(index) for index in range(64)])
print(held.numel() * 4, streamed, peak() - before, explained)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere, peaks are counted otherwise")
def test_a_store_several_times_larger_than_the_memory_it_takes_trains(tmp_path):
    done = subprocess.run([sys.executable, "-c", LIMITED], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    size, streamed, control, explained = map(float, done.stdout.split())
    assert streamed < size / 4
    assert control > size, "the peak that is measured would show it"
    assert explained > 0.5


# --- determinism and estimates ---


def test_deterministic_mode_is_on_within_and_off_after():
    before = torch.get_num_threads()
    with deterministic(False):
        assert not torch.are_deterministic_algorithms_enabled()
    with deterministic():
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.get_num_threads() == 1
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.get_num_threads() == before


def test_an_estimate_counts_what_training_holds(tmp_path, samples):
    found = estimate(samples, recipe((0, 1)))
    numbers = 2 * (8 * 32 + 32 + 32 * 8 + 8)
    assert (found.seeds, found.steps, found.parameters) == (2, 300, numbers)
    assert 16 * numbers <= found.training_bytes <= 16 * numbers + 64  # float32: value, gradient, two moments, counters
    assert found.sample_bytes == 2 * samples.numel() * 4
    assert found.seconds == found.setup_seconds + 300 * found.step_seconds
    assert 0 < found.step_seconds < 1
    assert found.peak_bytes > 50 * 2**20
    streamed = estimate(store_of(samples, tmp_path, 1000), recipe((0, 1), buffer_rows=2000))
    assert streamed.sample_bytes == 2 * 2000 * 8 * 4  # one block for all seeds, and the sample
    assert "300 steps of" in streamed.lines[0]


# --- capture ---

SIZES = {"n_layers": 2, "d_model": 16, "n_ctx": 8, "d_head": 4, "n_heads": 4, "d_mlp": 32, "d_vocab": 20}
TINY = SIZES | {"act_fn": "relu", "normalization_type": "LN", "seed": 1}


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
    """A folder with a randomly initialised TransformerLens model, and the model."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformer_lens import HookedTransformer, HookedTransformerConfig

        model = HookedTransformer(HookedTransformerConfig(**TINY, device="cpu"))
    folder = tmp_path_factory.mktemp("foreign") / "tiny"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(TINY))
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, folder / "model.safetensors")
    return folder, model


def request(model, out, hook="resid_post", **more):
    from husai.capture import Request

    return Request(str(model), hook, more.pop("layer", None), more.pop("batches", 3), 4, out, **more)


@pytest.mark.parametrize(
    ("hook", "full", "d"),
    [
        ("resid_post", "blocks.1.hook_resid_post", 16),
        ("z", "blocks.1.attn.hook_z", 16),
        ("post", "blocks.1.mlp.hook_post", 32),
        ("blocks.0.hook_resid_mid", "blocks.0.hook_resid_mid", 16),
        ("embed", "hook_embed", 16),
        ("ln_final.hook_normalized", "ln_final.hook_normalized", 16),
    ],
)
def test_capture_writes_what_the_model_has_there(tmp_path, foreign, hook, full, d):
    from husai.capture import capture

    folder, model = foreign
    store = capture(request(folder, tmp_path / "s", hook, rows_per_shard=40, seed=3))
    assert (len(store), store.d, len(store.shards)) == (3 * 4 * 8, d, 3)
    assert store.of["hook_name"] == full
    tokens = torch.cat([store.aligned(i, "token") for i in range(3)]).view(12, 8)
    positions = torch.cat([store.aligned(i, "position") for i in range(3)])
    assert torch.equal(positions, torch.arange(8).repeat(12))
    with torch.no_grad():
        _, cache = model.run_with_cache(tokens, names_filter=full)
    expected = cache[full].flatten(2).flatten(0, 1)
    torch.testing.assert_close(torch.cat([store.read(i) for i in range(3)]), expected)
    other = capture(request(folder, tmp_path / "t", hook, seed=4))
    assert not torch.equal(other.aligned(0, "token"), tokens.flatten())


@pytest.mark.filterwarnings("ignore")
def test_capture_of_a_hugging_face_folder(tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    from husai.capture import capture

    sizes = {"n_layer": 2, "n_head": 2, "n_embd": 16, "vocab_size": 20, "n_positions": 8, "n_ctx": 8}
    model = GPT2LMHeadModel(GPT2Config(**sizes)).eval()
    model.save_pretrained(tmp_path / "hf")
    store = capture(request(tmp_path / "hf", tmp_path / "s", layer=0))
    with torch.no_grad():
        hidden = model.transformer(store.aligned(0, "token").view(12, 8), output_hidden_states=True).hidden_states[1]
    torch.testing.assert_close(store.read(0), hidden.flatten(0, 1))
    (tmp_path / "hf" / "model.safetensors").unlink()
    with pytest.raises(HusaiError, match="cannot load it as a Hugging Face model"):
        capture(request(tmp_path / "hf", tmp_path / "t"))


@pytest.mark.filterwarnings("ignore")
def test_capture_of_text_reads_what_the_models_own_tokenizer_makes_of_it(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    from husai.capture import capture

    vocabulary = {"<|endoftext|>": 0, "<unk>": 1, "the": 2, "cat": 3, "sat": 4, "on": 5, "mat": 6}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="<unk>", bos_token="<|endoftext|>", eos_token="<|endoftext|>"
    )
    ids = {"bos_token_id": 0, "eos_token_id": 0}
    sizes = {"n_layer": 1, "n_head": 2, "n_embd": 16, "vocab_size": 7, "n_positions": 4, "n_ctx": 4}
    model = GPT2LMHeadModel(GPT2Config(**sizes, **ids)).eval()
    model.save_pretrained(tmp_path / "hf")
    tokenizer.save_pretrained(tmp_path / "hf")
    (tmp_path / "text.txt").write_text("the cat sat on the dog\nthe mat")
    more = {"tokens": tmp_path / "text.txt", "batches": 2}
    with pytest.raises(HusaiError, match=r"holds 2 sequences of 4 tokens; 2 batches of 4 take 8"):
        capture(request(tmp_path / "hf", tmp_path / "few", **more))
    (tmp_path / "text.txt").write_text("the cat sat on the dog\nthe mat " * 4)
    store = capture(request(tmp_path / "hf", tmp_path / "s", **more))
    tokens = store.aligned(0, "token").view(8, 4)
    expected = [0, *[2, 3, 4, 5, 2, 1, 2, 6] * 4][:32]  # the tokenizer begins the text with its own mark
    assert tokens.flatten().tolist() in (expected, [*expected[1:], 6])
    with torch.no_grad():
        hidden = model.transformer(tokens, output_hidden_states=True).hidden_states
    last = model.transformer.ln_f(
        store.read(0).view(8, 4, 16)
    )  # Hugging Face's last state is behind the final LayerNorm
    torch.testing.assert_close(last, hidden[-1], rtol=1e-4, atol=1e-4)
    assert store.of["tokens"] == str(tmp_path / "text.txt")


def test_capture_takes_token_files_and_one_position(tmp_path, foreign):
    from husai.capture import capture

    ids = torch.arange(70) % 20
    torch.save(ids, tmp_path / "stream.pt")
    save_file({"ids": ids[:64].view(16, 4).int()}, tmp_path / "rows.safetensors")
    more = {"tokens": tmp_path / "stream.pt", "seq_len": 5}
    store = capture(request(foreign[0], tmp_path / "a", **more))
    assert torch.equal(store.aligned(0, "token"), ids[:60])
    store = capture(request(foreign[0], tmp_path / "b", tokens=tmp_path / "rows.safetensors", position=-1))
    assert torch.equal(store.aligned(0, "token"), ids[3:48:4])
    assert len(store) == 12


def test_capture_of_a_reference_model_reads_its_grid(tmp_path, reference):
    from husai.activations import extract
    from husai.capture import capture

    store = capture(request("add-p59-0", tmp_path / "s", position=-1, batches=10))
    model, task = reference("add-p59-0")
    grid = extract(model, task, "resid_post").x
    nearest = torch.stack([(row - grid).abs().amax(1).min() for row in store.read(0)])
    assert nearest.max() < 1e-3
    assert len(store) == 40
    assert store.of["model_name"] == "add-p59-0"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"hook": "resid_pots"}, "hook: 'resid_pots' does not exist; short names are"),
        ({"layer": 2}, "layer: 2 does not exist; the model has layers 0 to 1"),
        ({"hook": "pattern"}, "which is not one vector a position"),
        ({"seq_len": 9}, "--seq-len 9: exceeds the model's context of 8"),
        ({"position": 8}, "position: 8 does not exist; the input has positions 0 to 7"),
        ({"dtype": "int8"}, "dtype int8: must be float32"),
        ({"tokens": "few.pt"}, "holds 2 sequences of 8 tokens; 3 batches of 4 take 12"),
        ({"tokens": "few.pt", "seq_len": 21}, "holds 20 tokens, less than one sequence of 21"),
        ({"tokens": "large.pt"}, "has token ids from 0 to 95; the model knows 0 to 19"),
        ({"tokens": "float.pt"}, "must hold one tensor of whole numbers"),
        ({"tokens": "words.txt"}, "has no tokenizer for text"),
        ({"tokens": "nowhere.pt"}, "no such file"),
    ],
)
def test_what_cannot_be_captured_is_a_sentence_and_leaves_nothing(tmp_path, foreign, more, message):
    from husai.capture import capture

    torch.save(torch.arange(20), tmp_path / "few.pt")
    torch.save(torch.arange(100), tmp_path / "large.pt")
    torch.save(torch.ones(100), tmp_path / "float.pt")
    (tmp_path / "words.txt").write_text("many words")
    if "tokens" in more:
        more = {**more, "tokens": tmp_path / more["tokens"]}
    with pytest.raises(HusaiError, match=message):
        capture(request(foreign[0], tmp_path / "out", **more))
    assert not (tmp_path / "out").exists()


def test_model_folders_that_do_not_hold_one_are_sentences(tmp_path, foreign):
    from husai.capture import capture

    folder = tmp_path / "model"
    folder.mkdir()

    def refuses(message):
        with pytest.raises(HusaiError, match=message):
            capture(request(folder, tmp_path / "out"))

    (folder / "config.json").write_text("[")
    refuses("is not a mapping in JSON")
    (folder / "config.json").write_text(json.dumps(TINY))
    refuses("holds no weights")
    save_file({"embed.W_E": torch.ones(2, 2)}, folder / "model.safetensors")
    refuses(r"model\.safetensors: does not fit config\.json")
    (folder / "config.json").write_text(json.dumps({**TINY, "act_fn": None, "nonsense": 1}))
    refuses("is no HookedTransformerConfig")
    with pytest.raises(HusaiError, match="is a recurrent network"):
        capture(request("gru-p101-0", tmp_path / "out"))
