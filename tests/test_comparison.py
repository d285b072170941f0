import csv
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from husai.activations import extract
from husai.analysis.matching import max_cosine, pwmcc
from husai.api import compute_pwmcc
from husai.cli import main
from husai.comparison import compare
from husai.errors import HusaiError
from husai.runs import LoadedModel
from husai.sae.dictionary import Dictionary
from husai.sae.weights import load_sae
from husai.samples import Samples, samples_of_model, samples_of_store
from husai.seeding import generator
from husai.shards import StoreWriter, open_store

N, D = 12, 16


def directions(n: int, d: int, seed: int) -> torch.Tensor:
    return F.normalize(torch.randn(n, d, generator=generator("test-comparison", seed)), dim=1)


def sparsify(folder: Path, W_dec: torch.Tensor, W_enc: torch.Tensor | None = None, **config: object) -> Path:
    folder.mkdir(parents=True)
    n, d = W_dec.shape
    tensors = {"encoder.weight": W_dec if W_enc is None else W_enc, "encoder.bias": torch.zeros(n), "W_dec": W_dec}
    save_file(
        {**{name: value.clone() for name, value in tensors.items()}, "b_dec": torch.zeros(d)},
        folder / "sae.safetensors",
    )
    (folder / "cfg.json").write_text(json.dumps({"activation": "topk", "k": 2, "num_latents": n, "d_in": d} | config))
    return folder


def dictionary_learning(folder: Path, W_dec: torch.Tensor) -> Path:
    folder.mkdir(parents=True)
    n, d = W_dec.shape
    state = {"encoder.weight": W_dec, "encoder.bias": torch.zeros(n), "decoder.weight": W_dec.T, "bias": torch.zeros(d)}
    torch.save(state, folder / "ae.pt")
    (folder / "config.json").write_text(json.dumps({"trainer": {"dict_class": "AutoEncoder"}}))
    return folder


def sae_lens(folder: Path, W_dec: torch.Tensor, **metadata: object) -> Path:
    folder.mkdir(parents=True)
    n, d = W_dec.shape
    tensors = {"W_enc": W_dec.T.contiguous(), "b_enc": torch.zeros(n), "W_dec": W_dec.clone(), "b_dec": torch.zeros(d)}
    save_file(tensors, folder / "sae_weights.safetensors")
    config = {"architecture": "standard", "d_in": d, "d_sae": n, "metadata": metadata}
    (folder / "cfg.json").write_text(json.dumps(config))
    return folder


def store(folder: Path, x: torch.Tensor, **of: str) -> Path:
    with StoreWriter(folder, dict(of)) as writer:
        writer.append(x)
    return folder


def run(capsys, *arguments: object) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of a command."""
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    return int(ended.value.code or 0), printed.out, printed.err


def of(atoms: torch.Tensor, codes=None) -> Dictionary:
    """A dictionary of those decoder rows, tied unless `codes` is a function of x."""
    encode = codes or (lambda x: (x @ atoms.T).relu())
    return Dictionary(atoms, encode, lambda f: f @ atoms, {}, W_enc=atoms)


# --- the command ---


def test_one_dictionary_in_three_formats_agrees_wholly_in_any_order_and_at_any_length(tmp_path, capsys):
    atoms = directions(N, D, 0)
    longer, order = torch.linspace(0.5, 3, N)[:, None], torch.randperm(N, generator=generator("test-order"))
    folders = [
        sae_lens(tmp_path / "a", atoms),
        sparsify(tmp_path / "b", atoms[order]),
        dictionary_learning(tmp_path / "c", longer * atoms),
    ]
    code, out, err = run(capsys, "compare", *folders, "--json", "--draws", 20, "--out", tmp_path / "out")
    assert (code, err) == (0, "")
    data = json.loads(out)
    assert {"saes", "n_live", "pwmcc", "max_cosine", "shared_fraction", "reappearance", "mean_pwmcc", "nulls"} <= set(
        data
    )
    assert data["saes"] == [str(folder) for folder in folders]
    assert data["n_live"] == [N, N, N]
    for name in ("pwmcc", "max_cosine", "shared_fraction", "reappearance"):
        np.testing.assert_allclose(data[name], np.ones((3, 3)), atol=1e-5)
    assert data["reappearance_counts"] == [[0, 0, N]] * 3
    assert list(data["nulls"]) == ["ambient"]
    assert data["nulls"]["ambient"] < 0.6 < data["adjusted"]["ambient"]
    assert data["measures"]["pwmcc"]["nulls"]["ambient"]["p"] == pytest.approx(1 / 21)
    assert "exceeds every rung that needs no activations: ambient" in data["sentence"]
    assert json.loads((tmp_path / "out" / "compare.json").read_text()) == data
    rows = list(csv.reader((tmp_path / "out" / "matrix.csv").read_text().splitlines()))
    assert rows[0] == ["sae", *data["saes"]]
    assert [[float(value) for value in row[1:]] for row in rows[1:]] == data["pwmcc"]
    assert len((tmp_path / "out" / "atoms.csv").read_text().splitlines()) == 1 + 3 * N
    assert (tmp_path / "out" / "matrix.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "out" / "matrix.pdf").read_bytes().startswith(b"%PDF")


def test_a_run_folder_stands_for_its_seeds_and_the_table_says_what_it_means(tmp_path, capsys):
    for seed in range(3):
        sparsify(tmp_path / "run" / f"seed-{seed}-{seed}", directions(N + seed, D, seed))
    code, out, _ = run(capsys, "compare", tmp_path / "run", "--draws", 20)
    assert code == 0
    assert [line.split()[:5] for line in out.splitlines() if "seed-" in line] == [
        [str(seed), f"seed-{seed}-{seed}", "topk", str(N + seed), str(N + seed)] for seed in range(3)
    ]
    assert "is not told apart from ambient" in " ".join(out.split())
    assert "dead atoms cannot be told" in out


def test_rows_of_zeros_are_left_out_and_two_saes_have_no_interval(tmp_path, capsys):
    atoms = directions(N, D, 0)
    one = sparsify(tmp_path / "a", torch.cat([atoms, torch.zeros(3, D)]))
    two = sparsify(tmp_path / "b", atoms[:8])
    code, out, _ = run(capsys, "compare", one, two, "--json", "--draws", 2)
    data = json.loads(out)
    assert code == 0
    assert (data["d_sae"], data["n_live"]) == ([15, 8], [12, 8])
    assert data["mean_pwmcc"] == pytest.approx(1, abs=1e-5)
    assert data["reappearance"] == [[1, pytest.approx(8 / 12)], [1, 1]]
    assert data["measures"]["pwmcc"]["low"] is None
    assert "fewer than 3 seeds" in data["sentence"]
    assert data["sentences"]["pwmcc"] == data["sentence"]
    assert data["sentences"]["max_cosine"].startswith("max_cosine 0.903: fewer than 3 seeds")


def test_activations_tell_dead_atoms_and_draw_all_nulls(tmp_path, capsys):
    """Half of the atoms point away from all samples, so they never fire; the other half is the same in both."""
    basis = torch.eye(D)
    x = torch.rand(300, 8, generator=generator("test-x")) @ basis[:8]
    one = sparsify(tmp_path / "a", torch.cat([basis[:8], -basis[:4]]))
    two = sparsify(tmp_path / "b", torch.cat([-basis[4:8], basis[:8].flip(0)]))
    samples = store(tmp_path / "x", x, model_name="toy")
    code, out, _ = run(capsys, "compare", one, two, "--shard-dir", samples, "--json", "--draws", 5)
    data = json.loads(out)
    assert code == 0
    assert data["n_live"] == [8, 8]
    assert data["mean_pwmcc"] == pytest.approx(1)
    assert data["activation_matching"][0][1] == pytest.approx(1, abs=1e-5)
    assert list(data["nulls"]) == ["ambient", "data", "data_points"]
    assert set(data["measures"]["activation_matching"]["nulls"]) >= {"ambient_relu", "data_points_top_k"}
    assert data["nulls"]["ambient"] < data["nulls"]["data"]  # samples fill 8 of 16 dimensions
    assert data["notes"] == []
    without = json.loads(run(capsys, "compare", one, two, "--json", "--draws", 2)[1])
    assert without["n_live"] == [12, 12]
    assert "activation_matching" not in without
    assert len(without["notes"]) == 1


def test_a_models_grid_gives_activations_at_the_hook_that_the_saes_name(tmp_path, capsys, reference):
    model, task = reference("add-p59-0")
    x = extract(model, task, "mlp_out").x
    found = []
    for seed in (0, 1):
        rows = x[torch.randperm(len(x), generator=generator("test-rows", seed))[:10]] - x.mean(0)
        found.append(sae_lens(tmp_path / str(seed), rows, hook_name="blocks.0.hook_mlp_out", model_name="add-p59-0"))
    code, out, err = run(capsys, "compare", *found, "--model", "add-p59-0", "--json", "--draws", 3)
    data = json.loads(out)
    assert (code, err) == (0, "")
    expected = pwmcc(*(load_sae(folder).atoms for folder in found))
    assert data["mean_pwmcc"] == pytest.approx(expected, abs=1e-5)
    assert list(data["nulls"]) == ["ambient", "data", "data_points", "plane_rotated"]
    code, _, err = run(capsys, "compare", *found, "--model", "add-p113-0")
    assert code == 2
    assert "was trained on model add-p59-0, but the activations are of model add-p113-0" in err
    code, _, err = run(capsys, "compare", *found, "--model", "add-p59-0", "--hook", "resid_post")
    assert code == 2
    assert "the SAEs were trained on blocks.0.hook_mlp_out" in err


def failing(capsys, *arguments: object) -> str:
    """The one line that bad input prints."""
    code, out, err = run(capsys, "compare", *arguments)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    return err


def test_bad_input_ends_in_one_sentence(tmp_path, capsys):
    good, other = sparsify(tmp_path / "good", directions(N, D, 0)), sparsify(tmp_path / "other", directions(N, D, 1))
    narrow = sparsify(tmp_path / "narrow", directions(N, 8, 0))
    assert "needs at least 2 SAEs, and 3 for an interval; got 1" in failing(capsys, good)
    said = failing(capsys, good, narrow)
    assert "narrow: its atoms have 8 dimensions" in said
    assert "good have 16" in said
    dead = sparsify(tmp_path / "dead", torch.zeros(N, D))
    assert "dead: all its atoms are dead; every decoder row is 0" in failing(capsys, good, dead)
    broken = sparsify(tmp_path / "broken", torch.full((N, D), torch.nan), directions(N, D, 0))
    assert "W_dec holds NaN or infinity" in failing(capsys, good, broken)
    assert "is named twice" in failing(capsys, good, good)
    assert "is not a SAELens folder" in failing(capsys, good, tmp_path / "nowhere")
    assert "not from both" in failing(capsys, good, other, "--model", "add-p59-0", "--shard-dir", tmp_path)
    assert "there is none" in failing(capsys, good, other, "--hook", "resid_post")
    wide = store(tmp_path / "wide", torch.randn(9, 20, generator=generator("test-x")))
    assert "good: encodes 16 dimensions, but" in failing(capsys, good, other, "--shard-dir", wide)
    zeros = store(tmp_path / "zeros", torch.zeros(9, D))
    assert "none fires on any of the 9 activations" in failing(capsys, good, other, "--shard-dir", zeros)
    x = torch.randn(9, D, generator=generator("test-x"))
    foreign = store(tmp_path / "foreign", x, model_name="gpt2")
    named = [sae_lens(tmp_path / str(i), directions(N, D, i), model_name="EleutherAI/pythia-70m") for i in (0, 1)]
    said = failing(capsys, *named, "--shard-dir", foreign, "--draws", 2)
    assert "was trained on model EleutherAI/pythia-70m, but the activations are of model gpt2\n" in said
    x[3, 3] = torch.nan
    damaged = store(tmp_path / "damaged", x)
    assert "row 3 holds NaN" in failing(capsys, good, other, "--shard-dir", damaged)
    assert "has 128 dimensions" in failing(capsys, good, other, "--model", "add-p59-0")
    assert not (tmp_path / "out").exists()


WRITERS = {"SAELens": sae_lens, "sparsify": sparsify, "dictionary_learning": dictionary_learning}
WEIGHTS = {
    "SAELens": ("W_enc", "b_enc", "W_dec", "b_dec"),
    "sparsify": ("encoder.weight", "encoder.bias", "W_dec", "b_dec"),
    "dictionary_learning": ("encoder.weight", "encoder.bias", "decoder.weight", "bias"),
}


def spoilt(folder: Path, tensor: str) -> Path:
    """The folder, with one NaN in one tensor."""
    path = next(path for path in folder.iterdir() if path.suffix in (".safetensors", ".pt"))
    found = torch.load(path) if path.suffix == ".pt" else load_file(path)
    found[tensor] = found[tensor].clone()  # encoder and decoder may be one tensor
    found[tensor][(0,) * found[tensor].ndim] = torch.nan
    torch.save(found, path) if path.suffix == ".pt" else save_file(found, path)
    return folder


@pytest.mark.parametrize(("kind", "tensor"), [(kind, tensor) for kind, own in WEIGHTS.items() for tensor in own])
def test_nan_in_any_weight_of_any_format_is_one_sentence(tmp_path, capsys, kind, tensor):
    good, broken = sparsify(tmp_path / "good", directions(N, D, 0)), WRITERS[kind](tmp_path / "b", directions(N, D, 1))
    samples = store(tmp_path / "x", torch.randn(20, D, generator=generator("test-x")))
    assert run(capsys, "compare", good, broken, "--draws", 1)[0] == 0
    spoilt(broken, tensor)
    for arguments in (("compare", good, broken), ("sae", "score", broken, "--shard-dir", samples)):
        code, out, err = run(capsys, *arguments)
        assert (code, out) == (2, "")
        assert f"{tensor} holds NaN or infinity" in err
        assert err.count("\n") == 1


@pytest.mark.parametrize("kind", WRITERS)
def test_zero_rows_are_dead_and_long_rows_are_not_with_and_without_activations(tmp_path, capsys, kind):
    atoms, lengths = directions(N, D, 0), torch.linspace(0.2, 5, N)[:, None]
    holed = torch.cat([lengths * atoms, torch.zeros(3, D)])
    folders = [WRITERS[kind](tmp_path / "holed", holed), WRITERS[kind](tmp_path / "whole", atoms)]
    x = torch.randn(300, D, generator=generator("test-x"))
    samples = store(tmp_path / "x", x)
    for more in ((), ("--shard-dir", samples)):
        _, out, err = run(capsys, "compare", *folders, "--json", "--draws", 1, *more)
        data = json.loads(out)
        assert (data["d_sae"], data["n_live"]) == ([N + 3, N], [N, N])
        assert data["mean_pwmcc"] == pytest.approx(1, abs=1e-5)
        assert f"holed: 3 of its {N + 3} decoder rows are 0 and count as dead\n" in err
        assert err.count("\n") == 1
        (note,) = [one for one in data["notes"] if "not of length 1" in one] or [""]
        scaled = load_sae(folders[0]).W_dec.norm(dim=1)
        assert ("holed (0.2 to 5)" in note) == bool(scaled[:N].max() > 1.1)
        assert "whole (" not in note
    assert compute_pwmcc(load_sae(folders[0]), load_sae(folders[1])).value == pytest.approx(1, abs=1e-5)
    code, out, _ = run(capsys, "sae", "score", *folders, "--shard-dir", samples, "--json")
    assert (code, json.loads(out)["pwmcc"]["value"]) == (0, pytest.approx(1, abs=1e-5))


@pytest.mark.parametrize("kind", WRITERS)
def test_dictionaries_whose_atoms_are_all_dead(tmp_path, capsys, kind):
    """Dead by rows of zeros, and by encoders that see only what points away from them."""
    good, zero = sparsify(tmp_path / "good", torch.eye(D)), WRITERS[kind](tmp_path / "zero", torch.zeros(N, D))
    silent = WRITERS[kind](tmp_path / "silent", -torch.eye(D))
    samples = store(tmp_path / "x", torch.rand(30, D, generator=generator("test-x")) + 0.1)
    assert "zero: all its atoms are dead; every decoder row is 0" in failing(capsys, good, zero)
    for dead in (zero, silent):
        said = failing(capsys, good, dead, "--shard-dir", samples)
        assert f"{dead.name}: all its atoms are dead" in said
        code, out, err = run(capsys, "sae", "score", dead, "--shard-dir", samples)
        assert (code, out) == (2, "")
        assert "a dictionary without live atoms cannot be scored" in err
    with pytest.raises(HusaiError, match="without live atoms"):
        compute_pwmcc(load_sae(good), load_sae(zero))


def test_numbers_in_memory_that_are_none_and_other_widths_are_refused():
    good = of(directions(N, D, 0))
    for name, value in (("W_dec", torch.full((N, D), torch.nan)), ("W_enc", torch.full((N, D), torch.inf))):
        with pytest.raises(HusaiError, match=f"b: {name} holds NaN or infinity"):
            compare([good, replace(good, **{name: value})], ["a", "b"], draws=1)
    with pytest.raises(HusaiError, match="b: its atoms have 8 dimensions"):
        compare([good, of(directions(N, 8, 0))], ["a", "b"], draws=1)
    with pytest.raises(HusaiError, match="needs at least 2 SAEs, and 3 for an interval; got 1"):
        compare([good], ["a"], draws=1)


def test_scores_too_refuse_activations_of_another_model_hook_or_width(tmp_path, capsys):
    hook = "blocks.0.hook_mlp_out"
    mine = sae_lens(tmp_path / "mine", directions(N, 128, 0), hook_name=hook, model_name="add-p59-0")
    x = torch.randn(30, 128, generator=generator("test-x"))
    stores = {name: store(tmp_path / name, x, model_name=name) for name in ("add-p113-0", "other/add-p59-0")}
    for where, message in (
        (
            ("--model", "add-p113-0"),
            "mine: was trained on model add-p59-0, but the activations are of model add-p113-0",
        ),
        (("--model", "add-p59-0", "--hook", "resid_post"), f"the SAEs were trained on {hook}"),
        (("--shard-dir", stores["add-p113-0"]), "mine: was trained on model add-p59-0, but the activations are of"),
        (("--shard-dir", store(tmp_path / "embed", x, hook_name="e")), f"mine: was trained on hook {hook}, but"),
        (("--shard-dir", store(tmp_path / "wide", x.repeat(1, 2))), "mine: encodes 128 dimensions, but"),
    ):
        code, out, err = run(capsys, "sae", "score", mine, *where)
        assert (code, out) == (2, "")
        assert message in err
        assert err.count("\n") == 1
    assert run(capsys, "sae", "score", mine, "--shard-dir", stores["other/add-p59-0"])[0] == 0


def test_saes_of_another_known_model_are_refused_and_of_an_unknown_one_warned_of(tmp_path, capsys):
    x = store(tmp_path / "x", torch.randn(30, 128, generator=generator("test-x")), model_name="add-p113-0")
    saes = {}
    for model in ("gpt2-small", "mine"):
        places = [tmp_path / model / str(i) for i in range(3)]
        saes[model] = [sae_lens(at, directions(N, 128, i), model_name=model) for i, at in enumerate(places)]
    said = failing(capsys, *saes["gpt2-small"], "--shard-dir", x)
    assert "was trained on model gpt2-small, but the activations are of model add-p113-0" in said
    code, out, err = run(capsys, "compare", *saes["mine"], "--shard-dir", x, "--draws", 1)
    assert code == 0
    assert err.count("their names alone do not say whether these are two models") == 3
    told = " ".join(out.split())
    for name in ("pwmcc", "max_cosine", "shared_fraction", "reappearance", "activation_matching"):
        assert any(f"{name} 0.{digit}" in told or f"{name} -0.{digit}" in told for digit in range(10)), name
    assert "activation_matching" in told.split("has no rung with an interval")[0].split(". ")[-1]


# --- the numbers ---


def test_where_a_tail_can_be_fitted_its_p_stands_beside_the_counted_one():
    same = [of(directions(N, D, 0)) for _ in range(2)]
    few, many = (compare(same, ["a", "b"], draws=count).to_json()["measures"]["pwmcc"]["nulls"] for count in (20, 60))
    assert set(few["ambient"]) == {"mean", "low", "high", "draws", "p", "z"}
    assert few["ambient"]["z"] > 5
    assert many["ambient"]["p"] == pytest.approx(1 / 61)
    assert many["ambient"]["p_fitted"] < 1 / 61


def test_matrices_are_those_of_the_definitions_and_their_intervals_of_the_jackknife():
    atoms = [directions(N + seed, 4, seed) for seed in range(4)]
    found = compare([of(one) for one in atoms], list("abcd"), draws=2)
    for i in range(4):
        for j in range(i):
            assert found.measures["pwmcc"].agreement.matrix[i, j] == pytest.approx(pwmcc(atoms[i], atoms[j]))
            assert found.measures["max_cosine"].agreement.matrix[j, i] == pytest.approx(max_cosine(atoms[i], atoms[j]))
    interval = found.measures["reappearance"].agreement.interval
    matrix = found.measures["reappearance"].agreement.matrix
    assert interval.mean == pytest.approx(matrix[~np.eye(4, dtype=bool)].mean())  # both directions count
    assert interval.low < interval.mean < interval.high
    assert found.everywhere == pytest.approx(np.mean([(count == 3).mean() for count in found.counts]))


def test_dictionaries_drawn_as_a_null_score_as_it_does_in_every_measure():
    """In three dimensions random atoms often come close, so that no measure is 0; how often depends on their numbers."""
    saes = [of(directions(10 + 15 * seed, 3, seed)) for seed in range(5)]
    found = compare(saes, list("abcde"), draws=40)
    for name in ("pwmcc", "max_cosine", "shared_fraction", "reappearance"):
        null = found.measures[name].nulls["ambient"]
        assert null.mean > 0.3
        assert null.low - 0.02 < found.measures[name].agreement.interval.mean < null.high + 0.02, name
    assert found.everywhere == pytest.approx(found.everywhere_nulls["ambient"], abs=0.05)
    assert "not told apart from ambient" in found.sentences["pwmcc"]


def test_untied_encoders_of_their_own_take_shared_fraction_away_but_nothing_else():
    atoms = directions(N, D, 0)
    random = [Dictionary(atoms, of(atoms).encode, of(atoms).decode, {}, W_enc=directions(N, D, s)) for s in (1, 2, 3)]
    found = compare(random, list("abc"), draws=2)
    assert found.measures["shared_fraction"].agreement.interval.mean == 0
    assert found.measures["pwmcc"].agreement.interval.mean == pytest.approx(1)
    none = [Dictionary(atoms, of(atoms).encode, of(atoms).decode) for _ in range(2)]
    found = compare([random[0], *none], ["a", "b", "c"], draws=2)
    assert "shared_fraction" not in found.measures
    assert found.notes[-1] == "shared_fraction is left out: b, c has no encoder matrix."


def test_codes_may_agree_where_decoders_do_not_and_shuffled_samples_take_that_away():
    x = torch.rand(400, D, generator=generator("test-x"))
    A, B = directions(N, D, 1), directions(N, D, 2)
    same = [of(A), of(B, lambda x: (x @ A.T).relu())]  # B writes elsewhere what A reads
    found = compare(same, ["a", "b"], Samples([x, x], x), draws=2)
    codes = found.measures["activation_matching"]
    assert codes.agreement.interval.mean == pytest.approx(1, abs=1e-4)
    assert found.measures["pwmcc"].agreement.interval.mean < 0.5
    shuffled = x[torch.randperm(400, generator=generator("test-shuffle"))]
    apart = compare(same, ["a", "b"], Samples([x, shuffled], x), draws=2).measures["activation_matching"]
    assert apart.agreement.interval.mean < 0.3
    assert codes.nulls["ambient_relu"].mean < 0.9


def test_signs_of_atoms_do_not_count_where_codes_have_signs():
    atoms = directions(N, D, 0)
    pair = [Dictionary(rows, of(rows).encode, of(rows).decode, signed_codes=True) for rows in (atoms, -atoms)]
    assert compare(pair, ["a", "b"], draws=2).measures["pwmcc"].agreement.interval.mean == pytest.approx(1)
    unsigned = [Dictionary(one.W_dec, one.encode, one.decode) for one in pair]
    assert compare(unsigned, ["a", "b"], draws=2).measures["pwmcc"].agreement.interval.mean < 0.7
    x = directions(40, D, 1)
    turned = [
        Dictionary(rows, lambda x, rows=rows: x @ rows.T, lambda f, rows=rows: f @ rows) for rows in (atoms, -atoms)
    ]
    for pair, agree in ((turned, True), (unsigned, False)):
        found = compare(pair, ["a", "b"], Samples([x, x], x), draws=2).measures
        for name in ("pwmcc", "activation_matching"):
            assert (found[name].agreement.interval.mean > 0.999) == agree, "negative codes say that atoms have no sign"


def test_a_transcoder_on_a_store_has_live_atoms_but_no_null_of_data(tmp_path):
    x = torch.rand(50, D, generator=generator("test-x"))
    folders = [sparsify(tmp_path / str(s), directions(N, D, s), torch.eye(D)[:N], transcode=True) for s in (0, 1)]
    found = compare([load_sae(folder) for folder in folders], ["a", "b"], Samples([x, x], None), draws=2)
    assert list(found.measures["pwmcc"].nulls) == ["ambient"]
    assert found.measures["activation_matching"].agreement.interval.mean == pytest.approx(1)
    assert "transcoder" in found.notes[0]
    assert "--target-shard-dir" in found.notes[0]


@pytest.fixture
def transcoded(tmp_path) -> tuple[list[Path], Path, Path]:
    """Two transcoders of which 8 latents read what inputs hold, and 4 nothing; stores of inputs and of flat targets."""
    x = torch.rand(200, D, generator=generator("test-x")) + 0.1
    y = torch.rand(200, 8, generator=generator("test-y")) @ torch.eye(D)[:8]
    reads = torch.cat([torch.eye(D)[:8], -torch.eye(D)[:4]])
    saes = [sparsify(tmp_path / f"t{s}", directions(N, D, s), reads, transcode=True) for s in (0, 1)]
    about = {"model_name": "toy"}
    return (
        saes,
        store(tmp_path / "in", x, hook_name="in", **about),
        store(tmp_path / "out", y, hook_name="out", **about),
    )


def test_nulls_of_transcoders_are_drawn_from_the_store_of_their_targets(transcoded, tmp_path, capsys):
    saes, into, out_of = transcoded
    pair = ("--shard-dir", into, "--target-shard-dir", out_of, "--json", "--draws", 5)
    code, out, _ = run(capsys, "compare", *saes, *pair)
    data = json.loads(out)
    assert code == 0
    assert data["n_live"] == [8, 8], "latents are those that fire on the inputs"
    assert list(data["nulls"]) == ["ambient", "data", "data_points"]
    assert data["nulls"]["ambient"] < data["nulls"]["data"] - 0.05, "targets fill 8 of 16 dimensions, inputs all"
    assert set(data["measures"]["activation_matching"]["nulls"]) >= {"ambient_relu", "data_points_top_k"}
    assert data["notes"] == []
    plain = sparsify(tmp_path / "plain", torch.eye(D)[4:])  # an SAE of the targets, of which only 8 dimensions vary
    data = json.loads(run(capsys, "compare", *saes, plain, *pair)[1])
    assert data["n_live"] == [8, 8, 4], "it encodes the targets, not the inputs"


def test_stores_that_do_not_belong_to_the_transcoders_are_refused(transcoded, tmp_path, capsys):
    saes, into, out_of = transcoded
    y = torch.rand(200, D, generator=generator("test-y"))
    plain = [sparsify(tmp_path / f"plain{s}", directions(N, D, s)) for s in (0, 1)]
    holed = torch.where(torch.arange(200)[:, None] == 7, torch.nan, y)
    named = [json.loads((folder / "cfg.json").read_text()) for folder in saes]
    assert all(config["transcode"] for config in named)
    targets = {
        "narrow": (store(tmp_path / "narrow", y[:, :9], model_name="toy"), f"t0: reconstructs {D} dimensions, but"),
        "fewer": (store(tmp_path / "fewer", y[:50], model_name="toy"), "rows must be pairs"),
        "stranger": (store(tmp_path / "stranger", y, model_name="gpt2"), "its model_name is 'gpt2', but that of"),
        "holed": (store(tmp_path / "holed", holed, model_name="toy"), "row 7 holds NaN"),
    }
    for target, message in targets.values():
        assert message in failing(capsys, *saes, "--shard-dir", into, "--target-shard-dir", target)
    pair = ("--shard-dir", into, "--target-shard-dir", out_of)
    assert "plain0: reconstructs what it encodes; leave out --target-shard-dir" in failing(capsys, *plain, *pair)
    assert "stands beside --shard-dir, which is missing" in failing(capsys, *saes, "--target-shard-dir", out_of)


def test_a_transcoder_that_names_its_hooks_is_held_to_them(tmp_path):
    x = torch.rand(20, D, generator=generator("test-x"))
    ends = [open_store(store(tmp_path / name, x, hook_name=name)) for name in ("in", "out")]

    def made(**meta: object) -> Dictionary:
        atoms = directions(N, D, 0)
        return Dictionary(atoms, lambda x: x @ atoms.T, lambda f: f @ atoms, dict(meta), d_source=D)

    fine = made(hook_name="in", hook_name_out="out")
    assert samples_of_store([fine], ["a"], *ends).x is not None
    with pytest.raises(HusaiError, match="a: reconstructs hook in, but the activations are of hook out"):
        samples_of_store([made(hook_name="in", hook_name_out="in")], ["a"], *ends)
    with pytest.raises(HusaiError, match="a: was trained on hook out, but the activations are of hook in"):
        samples_of_store([made(hook_name="out", hook_name_out="out")], ["a"], *ends)
    notes = compare([fine, of(directions(N, D, 1))], ["a", "b"], draws=1).notes
    assert not any("different hooks" in note for note in notes)
    other = replace(of(directions(N, D, 1)), meta={"hook_name": "in"})  # of the hook that the transcoder only reads
    assert "The SAEs name different hooks: in, out." in compare([fine, other], ["a", "b"], draws=1).notes


def test_a_dictionary_that_makes_nan_is_no_dictionary():
    atoms = directions(N, D, 0)
    x = torch.rand(9, D, generator=generator("test-x"))
    broken = of(atoms, lambda x: torch.full((len(x), N), torch.nan))
    with pytest.raises(HusaiError, match="b: gives codes that are NaN or infinite"):
        compare([of(atoms), broken], ["a", "b"], Samples([x, x], x), draws=2)


def test_turning_true_planes_takes_phases_away_and_leaves_what_lies_outside(reference):
    model, task = reference("add-p59-0")
    saes = [of(directions(8, 128, 0)) for _ in range(2)]
    samples = samples_of_model(saes, ["a", "b"], LoadedModel(model, task), "resid_post")
    assert samples.truth is not None
    span = samples.truth.union.float()
    inside = F.normalize(directions(8, span.shape[1], 1) @ span.T, dim=1)
    outside = F.normalize(directions(8, 128, 1) @ (torch.eye(128) - span @ span.T), dim=1)
    for atoms, expected in ((inside, False), (outside, True)):
        pair = [of(atoms, lambda x: x[:, :8]) for _ in range(2)]
        found = compare(pair, ["a", "b"], samples, draws=3)
        assert found.measures["pwmcc"].agreement.interval.mean == pytest.approx(1, abs=1e-5)
        for name in ("pwmcc", "shared_fraction", "reappearance"):
            assert (found.measures[name].nulls["plane_rotated"].mean > 0.99) == expected, name


# --- husai conformance ---


@pytest.fixture
def measures(tmp_path, monkeypatch) -> None:
    """A module `measures` of somebody else in the current folder."""
    (tmp_path / "measures.py").write_text(
        "from husai.analysis.conformance import DEFINITIONS\n"
        "ours = DEFINITIONS['max_cosine']\n"
        "def constant(A, B):\n    return 0.5\n"
        "def needs_three(A, B, C):\n    return 0.5\n"
        "number = 3\n"
    )
    (tmp_path / "broken.py").write_text("raise RuntimeError('no such thing')\n")
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    for name in ("measures", "broken"):
        monkeypatch.delitem(sys.modules, name, raising=False)


@pytest.mark.usefixtures("measures")
def test_conformance_of_a_measure_in_the_current_folder(capsys):
    code, out, _ = run(capsys, "conformance", "measures:ours")
    assert code == 0
    assert "It is `max_cosine` in all 14 cases." in out
    assert "turned plane" in out
    code, out, _ = run(capsys, "conformance", "measures:constant", "--json")
    data = json.loads(out)
    assert (code, data["conforms"]) == (1, False)
    assert data["sentence"].startswith(f"It is nearest to `{data['nearest']}`")
    identical = data["cases"][0]
    assert (identical["name"], identical["value"]) == ("identical", 0.5)
    assert identical["definitions"]["pwmcc"]["value"] == pytest.approx(1)


@pytest.mark.usefixtures("measures")
@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("measures", "measures: must be package.module:function"),
        ("nowhere:x", "nowhere:x: module nowhere cannot be imported (ModuleNotFoundError"),
        ("broken:x", "broken:x: module broken cannot be imported (RuntimeError: no such thing)"),
        ("measures:absent", "measures:absent: there is no such function"),
        ("measures:number", "measures:number: is no function but int"),
        ("measures:needs_three", "gives no number in any case (TypeError)"),
    ],
)
def test_what_cannot_be_imported_or_called_is_said_in_one_sentence(capsys, function, message):
    code, out, err = run(capsys, "conformance", function)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
