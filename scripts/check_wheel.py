"""Build the wheel, unpack it into an empty folder, and use it from there: configs and reference models must come along.

    python scripts/check_wheel.py

Dependencies are taken from the environment that runs this script; the checkout itself is kept out of sight.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = (
    ["model", "list"],
    ["model", "verify", "add-p113-0"],
    ["sweep", "default", "--dry-run"],
    ["activations", "extract", "add-p59-0", "--hook", "mlp_out", "--out", "acts.safetensors"],
)


def run(arguments: list[str], folder: Path, environment: dict[str, str] | None = None) -> str:
    done = subprocess.run(arguments, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(arguments)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        run([sys.executable, "-m", "build", "--wheel", "--outdir", str(place / "dist"), str(ROOT)], place)
        wheel = next((place / "dist").glob("*.whl"))
        site = place / "site"
        run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site), str(wheel)], place)
        elsewhere = place / "elsewhere"
        elsewhere.mkdir()
        environment = {**os.environ, "PYTHONPATH": str(site)}
        where = run([sys.executable, "-c", "import husai; print(husai.__file__)"], elsewhere, environment)
        if not where.startswith(str(site)):
            sys.exit(f"the wheel is not what was imported: {where}")
        for command in COMMANDS:
            print(f"$ husai {' '.join(command)}")
            print(run([sys.executable, "-m", "husai.cli", *command], elsewhere, environment).rstrip())
    print("The wheel works on its own.")


if __name__ == "__main__":
    main()
