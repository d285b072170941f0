"""Suites given by `base` and `axes`: which cells they mean, in which order, and what is refused."""

import itertools
import time
from collections.abc import Iterator

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from husai.config import SuiteConfig, content_hash, override, read_yaml
from husai.config.axes import MOST_CELLS
from husai.errors import HusaiError
from husai.resources import find_config
from husai.suite import model_place
from husai.sweep.plan import plan

BASE = {"model": "add-p59-0", "hook": "resid_post", "sae": {"architecture": "topk", "d_sae": 64, "k": 1}}


def suite(axes=None, base=BASE, **more) -> SuiteConfig:
    return SuiteConfig.parse({"name": "s", "base": base, "axes": axes or {}, **more}, "s.yaml")


def cells(found: SuiteConfig) -> list[tuple]:
    """(model or name, hook, d_sae, the dial of sparsity) of every cell in order."""
    return [
        (subject.name or subject.model, hook, entry.sae.d_sae, entry.sae.sparsity[1])
        for subject in found.subjects
        for hook in subject.hooks or ("",)
        for entry in subject.entries
    ]


def short(found: SuiteConfig) -> list[tuple]:
    return [(hook, d_sae, int(k)) for _, hook, d_sae, k in cells(found)]


def test_base_alone_is_one_cell():
    assert cells(suite()) == [("add-p59-0", "resid_post", 64, 1)]


def test_the_product_has_the_first_axis_slowest():
    assert short(suite({"sae.d_sae": [64, 128], "sae.k": [1, 2, 4]})) == [
        *(("resid_post", 64, 1), ("resid_post", 64, 2), ("resid_post", 64, 4)),
        *(("resid_post", 128, 1), ("resid_post", 128, 2), ("resid_post", 128, 4)),
    ]


def test_cells_of_one_model_at_one_hook_stand_together_whatever_the_order_of_axes():
    found = suite({"sae.k": [1, 2], "hook": ["mlp_out", "resid_post"], "model": ["add-p59-0", "add-p113-0"]})
    assert [cell[:2] + cell[3:] for cell in cells(found)] == [
        (model, hook, k) for model in ("add-p59-0", "add-p113-0") for hook in ("mlp_out", "resid_post") for k in (1, 2)
    ]
    assert len(found.models) == 2
    assert found.models[0].hooks == ("mlp_out", "resid_post")


def test_keys_joined_by_commas_vary_together():
    found = suite({"sae.d_sae, sae.k": [[64, 1], [128, 2]], "training.lr": [0.001, 0.01]})
    assert [(e.sae.d_sae, e.sae.k, e.training.lr) for e in found.entries] == [
        *((64, 1, 0.001), (64, 1, 0.01), (128, 2, 0.001), (128, 2, 0.01)),
    ]


def test_a_group_is_replaced_before_what_is_within_it_is_set():
    for order in (("sae", "sae.k"), ("sae.k", "sae")):
        values = {"sae": [{"architecture": "topk", "d_sae": 32}, {"architecture": "batchtopk"}], "sae.k": [2, 3]}
        found = suite({key: values[key] for key in order})
        assert {(e.sae.architecture, e.sae.d_sae, e.sae.k) for e in found.entries} == {
            *(("topk", 32, 2), ("topk", 32, 3), ("batchtopk", 1024, 2), ("batchtopk", 1024, 3)),
        }


def test_exclude_drops_what_matches_all_keys_of_a_rule_and_include_adds_over_base():
    axes = {"hook": ["mlp_out", "resid_post"], "sae.d_sae": [64, 128], "sae.k": [1, 2, 4]}
    rules = [{"hook": "mlp_out", "sae.k": [2, 4]}, {"sae.d_sae": 128, "sae.k": 4}]
    more = [{"sae": {"architecture": "relu", "d_sae": 96, "l1_coefficient": 3}}, {"hook": "embed"}]
    assert short(suite(axes, exclude=rules, include=more)) == [
        *(("mlp_out", 64, 1), ("mlp_out", 128, 1)),
        *(("resid_post", 64, 1), ("resid_post", 64, 2), ("resid_post", 64, 4), ("resid_post", 128, 1)),
        *(("resid_post", 128, 2), ("resid_post", 96, 3), ("embed", 64, 1)),
    ]


def test_an_excluded_cell_may_be_included_again():
    assert short(suite({"sae.k": [1, 2]}, exclude=[{"sae.k": 1}], include=[{"sae.k": 1}])) == [
        *(("resid_post", 64, 2), ("resid_post", 64, 1)),
    ]


def test_equal_cells_are_one():
    replaced = suite({"sae": [{"architecture": "topk", "k": 1}, {"architecture": "topk", "k": 2}], "sae.k": [3, 4]})
    assert [entry.sae.k for entry in replaced.entries] == [3, 4]
    by_default = suite(include=[{"sae.decoder_norm": "unit"}])
    assert len(cells(by_default)) == 1, "what a default says is no other cell"
    twice = {"name": "s", "hooks": ["embed"], "entries": [{"sae": {"architecture": "relu", "l1_coefficient": 1}}] * 2}
    assert len(SuiteConfig.parse(twice).entries) == 1


def test_a_synthetic_source_varies_with_its_name():
    base = BASE | {"name": "planted", "model": {"planted": {"n_atoms": 128}}, "hook": None}
    found = suite({"name, model.planted.k": [["sparse", 2], ["dense", 8]], "sae.k": [2, 8]}, base)
    assert [(cell[0], cell[3]) for cell in cells(found)] == [("sparse", 2), ("sparse", 8), ("dense", 2), ("dense", 8)]
    assert [subject.model.planted.k for subject in found.subjects] == [2, 8]


def test_what_stands_beside_the_axes_stays():
    found = suite({"sae.k": [1, 2]}, init_seeds=[3], data_seeds=[4], controls=[{"kind": "surrogate"}])
    assert (found.init_seeds, found.data_seeds) == ((3,), (4,))
    assert found.subjects[0].controls[0].kind == "surrogate"


def ids(found: SuiteConfig, runs) -> list[str]:
    planned, _ = plan(found, [model_place(one, found.name, runs) for one in found.subjects], runs)
    return [job.cell.run_id for job in planned]


def test_run_ids_and_their_order_are_those_of_the_suite_written_out(tmp_path):
    written = read_yaml(find_config("default", "suites"))
    pairs = [[entry["sae"], entry["training"]] for entry in written["entries"]]
    base = {"model": written["model"]}
    axes = {"sae, training": pairs, "hook": written["hooks"]}
    by_axes = SuiteConfig.parse({"name": "default", "base": base, "axes": axes})
    found = ids(by_axes, tmp_path)
    assert found == ids(SuiteConfig.parse(written), tmp_path)
    assert len(found) == 14
    assert found[0] != ids(suite(base=BASE | {"hook": "mlp_out"}), tmp_path)[0]


def test_run_ids_agree_where_hooks_have_entries_of_their_own(tmp_path):
    topk = [{"sae": BASE["sae"] | {"k": k}} for k in (1, 2, 4)]
    written = {
        "name": "s",
        "entries": topk,
        "models": [
            {"model": "add-p59-0", "hooks": ["mlp_out"], "entries": topk[:1]},
            {"model": "add-p59-0", "hooks": ["resid_post", "embed"]},
            {"name": "atoms", "model": {"planted": {}}, "entries": topk[:2]},
        ],
    }
    atoms = {"name": "atoms", "model": {"planted": {}}, "hook": None}
    by_axes = suite(
        {"hook": ["mlp_out", "resid_post", "embed"], "sae.k": [1, 2, 4]},
        exclude=[{"hook": "mlp_out", "sae.k": [2, 4]}],
        include=[atoms, atoms | {"sae.k": 2}],
    )
    assert ids(by_axes, tmp_path) == ids(SuiteConfig.parse(written), tmp_path)


def test_overrides_reach_base_and_axes_before_they_are_multiplied_out(tmp_path):
    path = tmp_path / "s.yaml"
    axes = {"sae.k": [1, 2], "sae.d_sae, training.steps": [[64, 5], [128, 6]]}
    path.write_text(yaml.safe_dump({"name": "s", "base": BASE, "axes": axes}))
    assert len(SuiteConfig.load(path).entries) == 4
    changes = ["axes.sae.k=[4]", "axes.sae.d_sae, training.steps=[[32, 9]]", "axes.training.lr=[1e-3, 2e-3]"]
    found = SuiteConfig.load(path, ["base.training.batch_size=7", *changes])
    assert [(e.sae.k, e.sae.d_sae, e.training.steps, e.training.batch_size, e.training.lr) for e in found.entries] == [
        *((4, 32, 9, 7, 0.001), (4, 32, 9, 7, 0.002)),
    ]


def test_an_override_leaves_what_it_was_given_as_it_was():
    data = {"sae": {"k": 1}, "a.b": 2}
    assert override(data, ["sae.k=3", "a.b=4", "a.c=5"]) == {"sae": {"k": 3}, "a.b": 4, "a": {"c": 5}}
    assert data == {"sae": {"k": 1}, "a.b": 2}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"axes": {"sae.k": []}}, "s.yaml: axis 'sae.k': must be a list of at least one value"),
        ({"axes": {"sae.k": 3}}, "axis 'sae.k': must be a list"),
        ({"axes": {"sae.k": [1, 2, 1.0]}}, "axis 'sae.k': holds 1 twice"),
        ({"axes": {"training.lr": [0.001, "1e-3"]}}, "axis 'training.lr': holds 0.001 twice"),
        ({"axes": {"sae.k, sae.d_sae": [[1, 64], [1, 64]]}}, "axis 'sae.k, sae.d_sae': holds [1, 64] twice"),
        ({"axes": {"sae.k, sae.d_sae": [[1, 64], [2]]}}, "each value must be a list of 2, one a key, got [2]"),
        ({"axes": {"sae.k, sae.d_sae": [1]}}, "each value must be a list of 2, one a key, got 1"),
        ({"axes": {"sae.k": [1], "sae.k, sae.d_sae": [[1, 64]]}}, "'sae.k' stands in two axes"),
        (
            {"axes": {"sea.k": [1]}},
            "unknown key 'axes.sea.k', did you mean 'sae'? Allowed here: model, name, hook, sae",
        ),
        ({"axes": {"hooks": ["embed"]}}, "unknown key 'axes.hooks', did you mean 'hook'?"),
        ({"axes": {"sae.kk": [1]}}, "cell sae.kk=1: unknown key 'sae.kk', did you mean 'k'?"),
        ({"axes": {"sae.k": [1, 0]}}, "cell sae.k=0: 'sae.k': must be greater than or equal to 1, got 0"),
        ({"axes": {"hook.x": ["embed"]}}, "cell hook.x=embed: 'hook' is not a group of keys"),
        ({"axes": {"model.p": [59]}}, "cell model.p=59: 'model' is not a group of keys"),
        ({"axes": {1: [2]}}, "s.yaml: 'axes.1': must be a valid string, got 1"),
        ({"axes": [1]}, "'axes': must be a valid dictionary"),
        (
            {"base": BASE | {"sae.k": 3}},
            "unknown key 'base.sae.k', did you mean 'sae'? Allowed here: model, name, hook",
        ),
        ({"base": {"sae": BASE["sae"]}}, "cell of base: key 'model' is missing"),
        ({"base": {"model": "m", "hook": "embed"}}, "cell of base: key 'sae' is missing"),
        (
            {"base": {"model": "m", "sae": BASE["sae"]}},
            "cell of base: 'hooks': at least one hook of the model must be named",
        ),
        ({"base": BASE | {"model": {"planted": {}}}}, "cell of base: 'hooks': a synthetic source has no hooks"),
        (
            {"base": BASE | {"model": {"kind": "clock", "keys": [2]}}},
            "cell of base: key 'name' is missing; a model that",
        ),
        ({"base": BASE | {"name": "m"}, "axes": {"model": ["a", "b"]}}, "cell model=b: another model is called m too"),
        ({"base": BASE | {"sae": {"architecture": "transcoder"}}}, "'sae': transcoder needs a target beside its hook"),
        ({"include": [{}]}, "'include.0' (of base) is there already; leave it out"),
        ({"axes": {"sae.k": [1, 2]}, "include": [{"sae.k": 2.0}]}, "'include.0' (sae.k=2.0) is there already"),
        ({"include": [{"sae.k": 2}, {"sae.k": 2}]}, "'include.1' (sae.k=2) is there already"),
        ({"include": [{"sea.k": 2}]}, "unknown key 'include.sea.k', did you mean 'sae'?"),
        ({"include": {"sae.k": 2}}, "'include': must be a valid tuple"),
        ({"axes": {"sae.k": [1, 2]}, "exclude": [{"sae.k": 3}]}, "'exclude.0' (sae.k: 3) drops no cell; is a key or"),
        (
            {"axes": {"sae.k": [1, 2]}, "exclude": [{"sae.k": 1}, {"sae.kk": 1}]},
            "'exclude.1' (sae.kk: 1) drops no cell",
        ),
        ({"exclude": [{"seeds": 1}]}, "unknown key 'exclude.seeds'"),
        ({"exclude": [{}]}, "'exclude.0' is empty; name at least one key"),
        ({"exclude": [{"sae.k": [1, 2]}]}, "s.yaml: 'exclude' leaves no cell"),
        ({"base": None}, "'base': must be a valid dictionary"),
        ({"entries": [{"sae": BASE["sae"]}]}, "'entries' and base exclude each other; leave one out"),
        ({"models": []}, "'models' and base exclude each other"),
        ({"seeds": [1]}, "unknown key 'seeds'"),
    ],
)
def test_every_slip_is_named(more, message):
    with pytest.raises(HusaiError) as caught:
        SuiteConfig.parse({"name": "s", "base": BASE} | more, "s.yaml")
    assert message in str(caught.value)
    assert str(caught.value).startswith("s.yaml: ")


def test_axes_without_base_miss_it():
    with pytest.raises(HusaiError, match="key 'base' is missing"):
        SuiteConfig.parse({"name": "s", "axes": {"sae.k": [1]}})


def test_too_many_cells_are_counted_before_any_is_made():
    start = time.perf_counter()
    with pytest.raises(HusaiError, match=r"makes 1000000000000 cells; a suite has at most 100000"):
        suite({key: list(range(1, 1001)) for key in ("sae.k", "sae.d_sae", "training.steps", "training.lr")})
    assert time.perf_counter() - start < 1
    axes = {"sae.k": list(range(1, 2)), "sae.dead_steps": list(range(1, MOST_CELLS // 2 + 2))}
    with pytest.raises(HusaiError, match="suite s: makes 100002 cells"):
        suite(axes, controls=[{"kind": "surrogate"}])


def test_the_limit_holds_for_a_suite_written_out():
    entries = [{"sae": {"architecture": "topk", "dead_steps": i + 1}} for i in range(101)]
    with pytest.raises(HusaiError, match="suite s: makes 101000 cells"):
        SuiteConfig.parse({"name": "s", "hooks": [f"h{i}" for i in range(1000)], "entries": entries})


VALUES = {
    "sae.k": st.integers(1, 8),
    "sae.d_sae": st.integers(8, 64),
    "training.steps": st.integers(1, 9),
    "hook": st.sampled_from(["embed", "mlp_out", "resid_mid", "resid_post"]),
    "model": st.sampled_from(["add-p59-0", "add-p113-0", "add-p113-1"]),
}


@st.composite
def grids(draw) -> tuple[dict[str, list], list[dict[str, list]]]:
    keys = draw(st.lists(st.sampled_from(sorted(VALUES)), min_size=1, max_size=4, unique=True))
    axes = {key: draw(st.lists(VALUES[key], min_size=1, max_size=3, unique=True)) for key in keys}
    rules = []
    for _ in range(draw(st.integers(0, 2))):
        named = draw(st.lists(st.sampled_from(keys), min_size=1, unique=True))
        rules.append({key: draw(st.lists(st.sampled_from(axes[key]), min_size=1, unique=True)) for key in named})
    return axes, rules


def combinations(axes, rules) -> Iterator[dict]:
    for values in itertools.product(*axes.values()):
        one = dict(zip(axes, values, strict=True))
        if not any(all(one[key] in rule[key] for key in rule) for rule in rules):
            yield one


def hashes(found: SuiteConfig) -> list[str]:
    return [
        content_hash(subject.model, hook, entry)
        for subject in found.subjects
        for hook in subject.hooks
        for entry in subject.entries
    ]


@given(grids(), st.randoms(use_true_random=False))
def test_the_cells_are_the_product_less_the_excluded_in_whatever_order_the_axes_stand(grid, random):
    axes, rules = grid
    expected = [*combinations(axes, rules)]
    if not expected:
        with pytest.raises(HusaiError, match="leaves no cell"):
            suite(axes, exclude=rules)
        return
    found = hashes(suite(axes, exclude=rules))
    assert len(found) == len(set(found)) == len(expected)
    shuffled = dict(random.sample([*axes.items()], len(axes)))
    assert set(hashes(suite(shuffled, exclude=rules[::-1]))) == set(found)


def test_the_shipped_example_has_seven_cells():
    found = SuiteConfig.load(find_config("width-and-k", "suites"))
    assert [(hook, d_sae, dial) for _, hook, d_sae, dial in cells(found)] == [
        *(("mlp_out", 128, 1), ("mlp_out", 128, 2)),
        *(("resid_post", 128, 1), ("resid_post", 128, 2), ("resid_post", 256, 1), ("resid_post", 256, 2)),
        ("resid_post", 128, 5),
    ]
