"""What leaves the house: changelog, version, pins, and the wheel with everything in it."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from email.parser import Parser
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import vlsi_cli
from tests.invariants.tree import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# Their versions are not pinned: they have to fit the torch of the machine, and no test runs them.
UNPINNED_EXTRAS = {"eval", "track"}


def _requirements() -> list[Requirement]:
    extras = PROJECT["optional-dependencies"]
    lines = [
        *PROJECT["dependencies"],
        *(line for name in extras if name not in UNPINNED_EXTRAS for line in extras[name]),
    ]
    return [Requirement(line) for line in lines]


def _pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = (line.split("==") for line in lines if line and not line.startswith("#"))
    return {canonicalize_name(name): version for name, version in pairs}


def test_changelog() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## \[(.+?)\](?: - (\d{4}-\d\d-\d\d))?$", text, flags=re.MULTILINE)
    assert headings[0] == ("Unreleased", "")
    assert all(date for _, date in headings[1:])
    released = [Version(name) for name, _ in headings[1:]]
    assert released == sorted(released, reverse=True)
    assert all(version <= Version(vlsi_cli.__version__) for version in released)


def test_version() -> None:
    assert PROJECT["dynamic"] == ["version"], "the version has one home, vlsi_cli/__init__.py"
    try:
        installed = metadata.version("vlsi-cli")
    except metadata.PackageNotFoundError:
        pytest.skip("vlsi-cli is not installed in this environment")
    assert installed == vlsi_cli.__version__


def test_pins_satisfy_the_ranges() -> None:
    pins = _pins()
    for need in _requirements():
        name = canonicalize_name(need.name)
        assert name in pins, f"{name} has no tested version in constraints.txt"
        assert need.specifier.contains(pins[name]), f"{need} does not admit the tested {pins[name]}"


def test_no_dependency_asks_for_torchvision() -> None:
    """It would replace torch, or break the import of every vision model when it was built for another one."""
    lines = [
        *PROJECT["dependencies"],
        *(line for group in PROJECT["optional-dependencies"].values() for line in group),
    ]
    assert not [line for line in lines if Requirement(line).name in {"torchvision", "lmms-eval"}]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel, built from this checkout without the network."""
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = folder.glob("*.whl")
    return zipfile.ZipFile(path)


def test_wheel_has_every_file(wheel: zipfile.ZipFile) -> None:
    inside = set(wheel.namelist())
    code = [
        path for path in (ROOT / "vlsi_cli").rglob("*") if path.is_file() and "__pycache__" not in path.parts
    ]
    recipes = [path.relative_to(ROOT / "recipes") for path in (ROOT / "recipes").rglob("*.yaml")]
    assert recipes
    assert not {path.relative_to(ROOT).as_posix() for path in code} - inside
    assert not {f"vlsi_cli/_recipes/{path.as_posix()}" for path in recipes} - inside
    for size in ("large", "small"):
        assert f"vlsi_cli/demo/{size}/config.json" in inside


def test_wheel_metadata(wheel: zipfile.ZipFile) -> None:
    folder = f"vlsi_cli-{vlsi_cli.__version__}.dist-info"
    fields = Parser().parsestr(wheel.read(f"{folder}/METADATA").decode())
    assert fields["Name"] == "vlsi-cli"
    assert fields["Version"] == vlsi_cli.__version__
    assert fields["Requires-Python"] == ">=3.11"
    assert fields["License-Expression"] == "Apache-2.0"
    assert set(fields.get_all("Provides-Extra", [])) == {
        *("deepspeed", "eval", "onnx", "peft", "quant", "track", "dev")
    }
    assert "vlsi = vlsi_cli.__main__:main" in wheel.read(f"{folder}/entry_points.txt").decode()
    assert f"{folder}/licenses/LICENSE" in wheel.namelist()


def test_wheel_fits(wheel: zipfile.ZipFile) -> None:
    """The demo pair is the bulk of it; 10 MB is what the large model may take."""
    assert sum(entry.compress_size for entry in wheel.infolist()) < 20e6
    assert not [name for name in wheel.namelist() if Path(name).parts[0] not in {"vlsi_cli", *_dist_info()}]


def _dist_info() -> set[str]:
    return {f"vlsi_cli-{vlsi_cli.__version__}.dist-info"}
