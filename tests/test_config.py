import pytest
from pydantic import ValidationError

from husai.config import (
    SAE_CONFIGS,
    BatchTopKConfig,
    CompiledConfig,
    GatedConfig,
    ModelConfig,
    RecurrentConfig,
    ReLUConfig,
    SAEConfig,
    SuiteConfig,
    TopKConfig,
    TransformerConfig,
    content_hash,
    load_recipe,
    load_trainable,
    override,
    read_yaml,
)
from husai.errors import HusaiError
from husai.resources import find_config


@pytest.fixture
def write(tmp_path):
    def at(text: str | bytes):
        path = tmp_path / "some.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return at


def test_defaults_are_the_default_recipe_of_addition():
    config = ModelConfig()
    assert (config.task.op, config.task.p, config.transformer.layout) == ("add", 113, "abe")


def test_config_is_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        ModelConfig().task.p = 7


@pytest.mark.parametrize("text", ["task: {op: add, modulus: 7}", "task: {modulus: 7}"])
def test_unknown_key_is_named_with_its_file(write, text):
    path = write(text)
    with pytest.raises(HusaiError) as caught:
        ModelConfig.load(path)
    assert str(caught.value) == f"{path}: unknown key 'task.modulus'. Allowed here: op, p"


def test_a_misspelt_key_gets_the_one_that_was_meant():
    with pytest.raises(
        HusaiError,
        match=r"unknown key 'sae\.kk', did you mean 'k'\? Allowed here: d_sae, decoder_norm, k, auxk_coefficient,",
    ):
        SAEConfig.parse({"sae": {"architecture": "topk", "kk": 3}})


SUITE = {"name": "s", "hooks": ["resid_post"], "entries": [{"sae": {"architecture": "topk"}}]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"entries": [{"sae": {"architecture": "relu", "k": 3}}]},
            "unknown key 'entries.0.sae.k' (and 1 further problem)",
        ),
        (
            {"entries": [{"sae": {"architecture": "topq"}}]},
            f"'entries.0.sae.architecture': must be {', '.join(map(repr, SAE_CONFIGS))}, 'package.module:Class', got 'topq'",
        ),
        ({"entries": [{"sae": {"k": 3}}]}, "key 'entries.0.sae.architecture' is missing"),
        ({"model": {"task": {"q": 1}}}, "unknown key 'model.task.q'. Allowed here: op, p"),
        ({"model": {"planted": {"d": 3}}}, "unknown key 'model.planted.d'. Allowed here: d_model, n_atoms, k,"),
        ({"hooks": [], "model": {"planted": {"k": 300}}}, "'model.planted': k 300 exceeds the 128 groups of atoms"),
        ({"model": {"circles": {"frequencis": [1]}}}, "'model.circles.frequencis', did you mean 'frequencies'?"),
        ({"model": {"planted": {}, "task": {}}}, "unknown key 'model.task'. Allowed here: planted"),
        ({"model": {"planted": {}}}, "'hooks': a synthetic source has no hooks; leave them out"),
        ({"model": {"circles": {}}}, "'hooks': a synthetic source has no hooks; leave them out"),
        ({"hooks": []}, "'hooks': at least one hook of the model must be named, such as resid_post"),
        ({"model": {"taks": {}}}, "unknown key 'model.taks', did you mean 'task'?"),
        ({"model": 5}, "'model': must be a valid dictionary"),
        ({"models": [{"model": "m", "hooks": ["embed"]}]}, "'hooks': the suite has a list of models, each with hooks"),
        ({"models": [{"model": "m"}]}, "'models.0.hooks': at least one hook of the model must be named"),
        ({"models": [{"model": {"planted": {}}}]}, "'models': each entry needs a name, unless its model is one"),
        ({"models": [{"model": "m", "hooks": ["embed"]}] * 2}, "'models': two entries are called m"),
        ({"models": [{"model": {"kind": "clock", "key": [1]}}]}, "unknown key 'models.0.model.key'"),
        ({"init_seeds": [0, -1]}, "'init_seeds.1': must be greater than or equal to 0, got -1"),
        ({"data_seeds": [-5]}, "'data_seeds.0': must be greater than or equal to 0, got -5"),
    ],
)
def test_problems_deep_in_a_suite_are_named_as_they_stand_in_its_file(change, message):
    assert SuiteConfig.parse(SUITE).subjects[0].model == "add-p113-0"
    with pytest.raises(HusaiError) as caught:
        SuiteConfig.parse({**SUITE, **change})
    assert message in str(caught.value)


def test_a_list_of_models_shares_the_suites_entries_unless_it_has_its_own():
    own = {"sae": {"architecture": "relu"}}
    clock = {"kind": "clock", "keys": [2]}
    models = [
        {"name": "atoms", "model": {"planted": {}}, "entries": [own]},
        {"name": "clock", "model": clock, "hooks": ["mlp_out"]},
        {"model": "add-p59-0", "hooks": ["mlp_out"]},
    ]
    suite = SuiteConfig.parse({"name": "s", "models": models, "entries": [{"sae": {"architecture": "topk"}}]})
    assert [subject.entries[0].sae.architecture for subject in suite.subjects] == ["relu", "topk", "topk"]
    assert suite.subjects[1].model == CompiledConfig.parse(clock)
    assert SuiteConfig.parse(suite.model_dump(mode="json")) == suite
    with pytest.raises(HusaiError, match="'model': the suite has a list of models; leave out model"):
        SuiteConfig.parse({**suite.model_dump(mode="json"), "model": "add-p59-0"})


def test_a_later_field_leaves_run_ids_and_files_of_its_default_as_they_were():
    plain, rectified = TopKConfig(), TopKConfig(auxk_rectified=True)
    assert "auxk_rectified" not in plain.to_yaml()
    assert "auxk_rectified: true" in rectified.to_yaml()
    assert content_hash(plain) != content_hash(rectified)


def test_a_file_of_another_kind_is_told_by_its_keys():
    with pytest.raises(
        HusaiError, match=r"unknown key 'task' \(and \d further problems\)\. Allowed here: name, models, model, hooks"
    ):
        SuiteConfig.parse({"task": {"p": 59}, "training": {"steps": 5}})


def test_a_wrong_override_is_named_beside_the_file(write):
    path = write("sae: {architecture: topk}")
    with pytest.raises(HusaiError) as caught:
        SAEConfig.load(path, ["sae.k=0"])
    assert str(caught.value).startswith(f"{path} with sae.k=0: 'sae.k': must be greater")


def test_another_architecture_keeps_what_it_has_in_common(write):
    path = write("sae: {architecture: topk, d_sae: 64, k: 5, auxk_coefficient: 0.5}\ntraining: {steps: 7}")
    batch = SAEConfig.load(path, ["sae.threshold_lr=0.1"], architecture="batchtopk")
    assert batch.sae == BatchTopKConfig(d_sae=64, k=5, auxk_coefficient=0.5, threshold_lr=0.1)
    assert batch.training.steps == 7
    assert SAEConfig.load(path, architecture="gated").sae == GatedConfig(d_sae=64)
    path = write("sae: {architecture: topk, d_sae: 96, k: 6, auxk_coefficient: 0.5}\ntraining: {steps: 7}")
    for name in SAE_CONFIGS:
        other = SAEConfig.load(path, architecture=name).sae
        assert other.architecture == name
        assert other.d_sae == (64 if name in ("pca", "ica", "nmf") else 96)  # their width is another matter
    with pytest.raises(HusaiError, match=r"as gated sae.k=3: unknown key 'sae.k'"):
        SAEConfig.load(path, ["sae.k=3"], architecture="gated")


def test_every_architecture_has_an_example():
    examples = [SAEConfig.load(path) for path in (find_config("topk_8x", "examples").parent).glob("*.yaml")]
    assert {example.sae.architecture for example in examples} == set(SAE_CONFIGS)


@pytest.mark.parametrize(
    ("name", "d", "factor", "batch"),
    [("gpt2", 768, 8, 4096), ("gpt2_medium", 1024, 4, 4096), ("pythia_1_4b", 2048, 4, 8192)],
)
def test_presets_for_language_models_load_by_name_and_survive_saving(tmp_path, name, d, factor, batch):
    preset = SAEConfig.load(find_config(name, "examples"), ["init_seeds=[3]"])
    assert (preset.sae.d_sae, preset.training.batch_size) == (factor * d, batch)
    assert preset.training.warmup_steps == preset.training.steps // 50
    (tmp_path / "saved.yaml").write_text(preset.to_yaml(), encoding="utf-8")
    saved = SAEConfig.load(tmp_path / "saved.yaml", [f"training.checkpoint_every={preset.training.checkpoint_every}"])
    assert saved == preset


def test_further_problems_are_counted():
    with pytest.raises(HusaiError, match=r"unknown key 'x' \(and 1 further problem\)"):
        ModelConfig.parse({"x": 1, "y": 2})


def test_missing_key_is_named():
    with pytest.raises(HusaiError, match="suite: key 'entries' is missing"):
        SuiteConfig.parse({"name": "s", "hooks": ["resid_post"]}, "suite")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"training": {"steps": -1}}, "'training.steps': must be greater than or equal to 0, got -1"),
        ({"training": {"steps": "many"}}, "'training.steps': must be a valid integer"),
        ({"training": {"frac_train": 1.0}}, "'training.frac_train': must be less than 1, got 1.0"),
        ({"training": {"lr": float("nan")}}, "'training.lr'"),
        ({"transformer": {"layout": "gpt"}}, "'transformer.layout': must be 'abe' or 'husai', got 'gpt'"),
    ],
)
def test_bad_value_is_named_with_what_is_allowed(data, message):
    with pytest.raises(HusaiError) as caught:
        ModelConfig.parse(data)
    assert message in str(caught.value)


def test_heads_must_divide_the_width():
    assert TransformerConfig.parse({"d_model": 12, "n_heads": 3}).n_heads == 3
    with pytest.raises(HusaiError, match="n_heads 3 does not divide d_model 128"):
        TransformerConfig.parse({"n_heads": 3})


def test_k_above_d_sae_names_both():
    assert TopKConfig.parse({"k": 16, "d_sae": 16}).k == 16
    with pytest.raises(HusaiError, match="k 17 exceeds d_sae 16"):
        SAEConfig.parse({"sae": {"architecture": "topk", "k": 17, "d_sae": 16}})


def test_architecture_picks_the_config():
    assert isinstance(SAEConfig.parse({"sae": {"architecture": "relu"}}).sae, ReLUConfig)
    with pytest.raises(HusaiError, match=r"unknown key 'sae\.k'\. Allowed here: d_sae, decoder_norm, l1_coefficient"):
        SAEConfig.parse({"sae": {"architecture": "relu", "k": 8}})
    with pytest.raises(HusaiError, match="'topk', 'relu'"):
        SAEConfig.parse({"sae": {"architecture": "vq"}})


def test_seed_lists_must_pair():
    with pytest.raises(HusaiError, match="init_seeds and data_seeds must be lists of equal length"):
        SAEConfig.parse({"sae": {"architecture": "relu"}, "init_seeds": [0, 1], "data_seeds": [0]})


def test_override_sets_dotted_keys_as_yaml_values(write):
    path = write("task: {op: add, p: 59}")
    config = ModelConfig.load(path, ["task.p=7", "training.batch_size=null", "training.lr=1.0e-3", "task.op=mul"])
    assert (config.task.p, config.task.op, config.training.batch_size, config.training.lr) == (7, "mul", None, 1e-3)


def test_override_leaves_its_argument_alone():
    data = {"task": {"p": 59}}
    assert override(data, ["task.p=7", "training.steps=3"]) == {"task": {"p": 7}, "training": {"steps": 3}}
    assert data == {"task": {"p": 59}}


def test_value_may_hold_an_equals_sign():
    assert override({}, ["name=a=b"]) == {"name": "a=b"}


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ("steps", "override 'steps': must have the form key=value"),
        ("=3", "override '=3': must have the form key=value"),
        ("task.p.q=3", "override 'task.p.q=3': 'p' is not a group of keys"),
        ("task.p=[1", r"override 'task.p=\[1': the value is not valid YAML"),
    ],
)
def test_bad_override_is_quoted(item, message):
    with pytest.raises(HusaiError, match=message):
        override({"task": {"p": 59}}, [item])


def test_override_of_an_unknown_key_is_refused(write):
    with pytest.raises(HusaiError, match=r"unknown key 'training\.stepps'"):
        ModelConfig.load(write("task: {p: 59}"), ["training.stepps=3"])


def test_hash_does_not_depend_on_the_order_of_keys():
    assert content_hash({"a": 1, "b": {"c": 2, "d": 3}}) == content_hash({"b": {"d": 3, "c": 2}, "a": 1})
    first = ModelConfig.parse({"task": {"p": 7, "op": "mul"}, "training": {"lr": 1}})
    again = ModelConfig.parse({"training": {"lr": 1.0}, "task": {"op": "mul", "p": 7}})
    assert content_hash(first) == content_hash(again)


def test_hash_is_twelve_hex_digits():
    assert len(content_hash(ModelConfig())) == 12
    int(content_hash(ModelConfig()), 16)


@pytest.mark.parametrize("item", ["task.p=7", "task.op=sub", "training.init_seed=1", "training.batch_size=null"])
def test_hash_changes_with_every_value(item):
    assert content_hash(ModelConfig.parse(override({}, [item]))) != content_hash(ModelConfig())


def test_hash_tells_its_parts_apart():
    assert content_hash("ab", "c") != content_hash("a", "bc")
    assert content_hash(ModelConfig(), 1) != content_hash(ModelConfig(), 2)


def test_yaml_round_trip(write):
    config = ModelConfig.parse({"task": {"op": "mul", "p": 59}, "training": {"batch_size": None, "lr": 1e-05}})
    again = ModelConfig.load(write(config.to_yaml()))
    assert again == config
    assert content_hash(again) == content_hash(config)


def test_with_seed_sets_all_three_seeds_and_nothing_else():
    config = ModelConfig.parse({"training": {"steps": 7}})
    seeded = config.with_seed(5)
    changed = {k: v for k, v in seeded.training.model_dump().items() if v != config.training.model_dump()[k]}
    assert changed == {"init_seed": 5, "split_seed": 5, "batch_seed": 5}
    assert seeded.task == config.task


def test_missing_file_is_named(tmp_path):
    with pytest.raises(HusaiError, match=r"absent\.yaml: no such file"):
        ModelConfig.load(tmp_path / "absent.yaml")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("task: {op: add", "is not valid YAML"),
        ("- task\n- training\n", "must hold a mapping of keys to values"),
        ("just words", "must hold a mapping of keys to values"),
        ("", "must hold a mapping of keys to values"),
        (b"task: \xff\xfe", "cannot be read"),
    ],
)
def test_unreadable_file_says_why(write, content, message):
    path = write(content)
    with pytest.raises(HusaiError) as caught:
        read_yaml(path)
    assert str(path) in str(caught.value)
    assert message in str(caught.value)


def test_a_folder_is_no_config(tmp_path):
    with pytest.raises(HusaiError, match="cannot be read"):
        read_yaml(tmp_path)


@pytest.mark.parametrize("name", ["planted", "planted-32", "circles"])
def test_shipped_suites_of_synthetic_sources_match_their_truth_in_width_and_k(name):
    suite = SuiteConfig.load(find_config(name, "suites"))
    assert suite.hooks == ()
    assert suite.name == name
    assert len(suite.init_seeds) == len(suite.data_seeds) == 5
    assert SuiteConfig.parse(suite.model_dump(mode="json")) == suite
    if name != "circles":
        (entry,) = suite.entries
        assert (entry.sae.d_sae, entry.sae.k) == (suite.model.planted.n_atoms, suite.model.planted.k)
        assert not suite.model.planted.noise


def test_recipes_are_told_apart_by_what_they_name(write):
    assert isinstance(load_recipe(write("task: {p: 59}")), ModelConfig)
    assert isinstance(load_recipe(write("{p: 59, recurrent: {cell: lstm}}"), ["walks.length=3"]), RecurrentConfig)
    compiled = write("{kind: clock, keys: [1, 2]}")
    assert isinstance(load_recipe(compiled), CompiledConfig)
    with pytest.raises(HusaiError, match="is of a compiled model, whose weights are written down"):
        load_trainable(compiled)
    with pytest.raises(HusaiError, match="unknown key 'task'"):
        load_recipe(write("{task: {p: 59}, recurrent: {cell: lstm}}"))


def test_a_seed_of_a_recurrent_recipe_leaves_the_walks_alone():
    config = RecurrentConfig.parse({"recurrent": {}, "walks": {"seed": 7}})
    seeded = config.with_seed(3)
    assert (seeded.training.init_seed, seeded.training.batch_seed, seeded.walks.seed) == (3, 3, 7)


@pytest.mark.parametrize(
    "training", [{"lower_dtype": "bf16"}, {"dtype": "bf16"}, {"compile": True}, {"temporal": 1.0}], ids=str
)
def test_a_class_of_saelens_computes_its_losses_itself(training):
    with pytest.raises(HusaiError, match="saelens:topk"):
        SAEConfig.parse({"sae": {"architecture": "saelens:topk", "settings": {"k": 3}}, "training": training})
