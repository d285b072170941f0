import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "husai"

# One way down: a room imports only rooms before it in this list (or itself).
ROOMS = [
    *(
        "errors",
        "engines",
        "memory",
        "seeding",
        "schedule",
        "modes",
        "config",
        "resources",
        "store",
        "optimise",
        "tasks",
        "transformer",
        "recurrent",
        "models",
        "activations",
        "truth",
        "runs",
        "shards",
        "capture",
    ),
    *(
        "sae",
        "reuse",
        "analysis",
        "measure",
        "workflow",
        "tracking",
        "cell",
        "sweep",
        "report",
        "console",
        "planner",
    ),
    *("live", "making", "suite", "controls", "single", "pipeline", "api", "samples", "finished", "comparison"),
    *("commands", "cli"),
]
ONLY_IN = {
    "wandb": {"tracking/wandb.py"},
    "tensorboard": {"tracking/tensorboard.py"},
    "transformer_lens": {"transformer/weights.py", "capture.py"},
    "sae_lens": {"sae/weights.py", "sae/registry.py", "sae/registered.py"},
    "sklearn": {"sae/baselines.py"},
    "ray": {"engines/ray.py"},
}
INSIDE = {"torch.utils.tensorboard": "tensorboard"}  # a door to another package
LAZY = {"wandb", "tensorboard", "transformer_lens", "sae_lens", "sklearn", "ray"}


def modules() -> list[Path]:
    return [path for path in SOURCE.rglob("*.py") if path != SOURCE / "__init__.py"]


def room(name: str) -> int:
    return ROOMS.index(name)


def imports(tree: ast.AST) -> list[str]:
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            if node.module == "husai":
                found += [f"husai.{alias.name}" for alias in node.names]
            else:
                found.append(INSIDE.get(node.module or "", node.module or ""))
    return found


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_go_downward_only(path):
    own = room(path.relative_to(SOURCE).parts[0].removesuffix(".py"))
    for name in imports(ast.parse(path.read_text())):
        if name.startswith("husai."):
            assert room(name.split(".")[1]) <= own, f"{path.name} imports {name}, which lies above it"


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(SOURCE)))
def test_heavy_packages_stay_in_their_rooms_and_load_lazily(path):
    tree = ast.parse(path.read_text())
    inside = str(path.relative_to(SOURCE))
    for name in imports(tree):
        package = name.split(".")[0]
        assert inside in ONLY_IN.get(package, {inside}), f"{inside} imports {package}"
    guarded = [node for node in tree.body if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)]
    top = ast.Module([node for node in tree.body if node not in guarded], [])
    functions = [node for node in ast.walk(top) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    lazily = [name for function in functions for name in imports(function)]
    for package in LAZY:
        eager = sum(n.split(".")[0] == package for n in imports(top)) - sum(n.split(".")[0] == package for n in lazily)
        assert eager <= 0, f"{inside} imports {package} when it is imported"


def loaded_by(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_the_command_line_starts_without_heavy_packages():
    assert not {"torch", "pandas", "matplotlib", "sae_lens", "scipy"} & loaded_by("import husai.cli")


def test_the_report_loads_no_torch():
    assert "torch" not in loaded_by("import husai.report.write")


def test_every_public_name_of_the_package_resolves():
    import husai

    for name in husai.__all__:
        assert getattr(husai, name).__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        husai.nonsense  # noqa: B018


def test_every_config_field_is_described_and_read():
    from husai import config

    text = "".join(path.read_text() for path in modules())
    for name in dir(config):
        kind = getattr(config, name)
        if isinstance(kind, type) and issubclass(kind, config.Config):
            for field, info in kind.model_fields.items():
                assert info.annotation is not None
                assert f".{field}" in text or f'"{field}"' in text, f"{name}.{field} is read nowhere"
