"""Asking for help, a plan or a recipe costs no heavy import; the package runs as a module and as a command."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from vlsi_cli import __version__

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "transformers", "datasets", "PIL", "accelerate", "peft", "numpy", "huggingface_hub")
PROGRAM = """
import sys
sys.argv = ["vlsi", *{words!r}]
from vlsi_cli.app import main
try:
    main()
except SystemExit as end:
    code = end.code or 0
found = [name for name in {heavy!r} if name in sys.modules]
sys.stderr.write("imported: " + " ".join(found) + "\\n")
sys.exit(code)
"""


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["distill", "--help"],
        ["export", "--help"],
        ["data", "preview", "--help"],
        ["push", "--help"],
        ["recipes", "check"],
        ["eval", "--help"],
        ["eval", "--list"],
        ["distill", "--dry-run"],
        ["distill", "--teacher", "Qwen/Qwen2-VL-72B", "--student", "2b", "--dry-run", "--json"],
    ],
    ids=" ".join,
)
def test_nothing_heavy_is_imported(words: list[str], tmp_path: Path) -> None:
    program = PROGRAM.format(words=words, heavy=HEAVY)
    environment = {"PYTHONPATH": str(ROOT), "PATH": "", "HOME": str(tmp_path)}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    missing = "Qwen/Qwen2-VL-72B" in words  # the paper's data
    assert done.returncode == (3 if missing else 0), done.stderr
    assert done.stdout
    assert done.stderr.endswith("imported: \n")
    assert missing or done.stderr == "imported: \n"


def test_the_package_costs_nothing_until_it_is_used(tmp_path: Path) -> None:
    program = f"""
import sys
import vlsi_cli
assert "distill" in dir(vlsi_cli)
try:
    vlsi_cli.distill(overrides={{"interaction.stpes": 1}})
except vlsi_cli.VlsiError:
    print([name for name in {HEAVY!r} if name in sys.modules])
"""
    environment = {"PYTHONPATH": str(ROOT), "PATH": "", "HOME": str(tmp_path)}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_runs_as_a_module(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "vlsi_cli", "--version"]
    environment = {"PYTHONPATH": str(ROOT), "PATH": "", "HOME": str(tmp_path)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == f"vlsi {__version__}\n"


def test_training_needs_no_package_that_only_some_runs_need() -> None:
    program = """
import sys
for name in "bitsandbytes deepspeed httpcore2 lmms_eval onnx onnxruntime peft tensorboard trackio".split():
    sys.modules[name] = None
import vlsi_cli.engine.runs.cache, vlsi_cli.engine.runs.distill, vlsi_cli.engine.runs.verbalize
"""
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


def test_ctrl_c_while_the_command_line_is_loading() -> None:
    program = """
import sys
class Pressed:
    def find_spec(self, name, path=None, target=None):
        if name == "vlsi_cli.app":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Pressed())
from vlsi_cli.__main__ import main
main()
"""
    command = [sys.executable, "-c", program]
    done = subprocess.run(
        command, env={"PYTHONPATH": str(ROOT), "PATH": ""}, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "warning: interrupted\n")


def test_ctrl_c_behind_the_end_shows_nothing() -> None:
    """Python waits for threads and takes modules down, which may take a second."""
    program = """
import atexit, signal, sys
sys.argv = ["vlsi", "--version"]
from vlsi_cli.__main__ import main
atexit.register(signal.raise_signal, signal.SIGINT)
main()
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, f"vlsi {__version__}\n", "")
