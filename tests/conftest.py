"""What every test stands on: one thread, no network, reproducible random examples."""

from __future__ import annotations

import os
import sys
from collections import Counter
from pathlib import Path

# Before torch and transformers are imported. One thread: on a shared machine two threads that wait for each
# other are many times slower than one. Offline: a test that would reach for a hub must fail here too.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

import pytest
from hypothesis import HealthCheck, settings

from tests.quick import do_not_wait, set_aside

do_not_wait()

# No deadline: the first example pays for imports and caches, and a busy machine is not a wrong program.
settings.register_profile(
    "vlsi",
    deadline=None,
    derandomize=True,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("vlsi")


#: Files that take longest, which several processes begin with. By the number of their tests, as pytest-xdist has it,
#: they would come last, and but one core be busy at the end.
LONGEST = (
    "runs/test_demo.py",
    "faults/test_faults.py",
    "runs/test_zero.py",
    "runs/test_export_examples.py",
    "runs/test_processes.py",
    "runs/test_resume.py",
    "runs/test_eval_processes.py",
    "runs/test_machines.py",
    "runs/test_cache_run.py",
    "runs/test_distill.py",
    "runs/test_push.py",
    "runs/test_smoke_script.py",
)


def pytest_configure(config: pytest.Config) -> None:
    """Leave the order of files to what is below."""
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put files in order for several processes; skip what is marked `gpu` on a machine without a CUDA device."""
    if hasattr(config, "workerinput"):
        here, count = Path(__file__).parent, Counter(item.path for item in items)
        first = {here / name: place for place, name in enumerate(LONGEST)}
        items.sort(key=lambda item: (first.get(item.path, len(first)), -count[item.path]))
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if torch.cuda.is_available():
        return
    for item in marked:
        item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def pytest_collection_finish(session: pytest.Session) -> None:
    _set_aside()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    if len(sys.modules) > _known + 100:
        _set_aside()


_known = 0


def _set_aside() -> None:
    global _known
    _known = len(sys.modules)
    set_aside()
