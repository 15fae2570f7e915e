"""The optimizers as a package that pip installs: `from nanomada import MADA`."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
USE = """
import sys, torch, nanomada
from nanomada import MADA, Adam, Coefficient, RuleOptimizer, interpolate
assert nanomada.__file__.startswith(sys.argv[1]), nanomada.__file__
assert "optim" not in sys.modules
x = torch.nn.Parameter(torch.ones(3))
optimizer = interpolate(Adam, MADA)([x], lr=0.1)
x.square().sum().backward()
optimizer.step()
print(x.tolist())
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source, made = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "optim", source / "optim", ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", made, source]
    done = subprocess.run([*command, "-q"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (found,) = made.glob("nanomada-*.whl")
    return found


def test_the_wheel_holds_the_optimizers_typed_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    package = {name for name in names if not name.partition("/")[0].endswith(".dist-info")}
    assert package == {f"nanomada/{path.name}" for path in (ROOT / "optim").iterdir() if path.is_file()}
    assert "nanomada/py.typed" in package
    metadata = zipfile.ZipFile(wheel).read(next(name for name in names if name.endswith("METADATA"))).decode()
    needed = [line for line in metadata.splitlines() if line.startswith("Requires-Dist") and "extra ==" not in line]
    assert len(needed) == 1 and needed[0].startswith("Requires-Dist: torch")


def test_it_works_from_an_empty_folder(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    (tmp_path / "empty").mkdir()
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run([sys.executable, "-c", USE, str(tmp_path / "site")], cwd=tmp_path / "empty",
                          env=environment, capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert all(value < 1 for value in eval(done.stdout))
