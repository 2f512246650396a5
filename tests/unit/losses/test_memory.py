from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

# At the size of a real vocabulary one fp32 [256, 151936] tensor takes 148 MiB, and the textbook forms
# need four to six of them. Each program runs alone, so that nothing else moves its peak, and warms up on
# two tokens first.
# The kernel's high-water mark of resident memory, set back to what is resident now: the peak of the imports, whose
# pages may have gone since, must not hide what comes after.
METER = """
def status(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(name + ":"))
def begin():
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    return status("VmRSS")
def peak():
    return status("VmHWM")
"""
PROGRAM = """
import json, torch
from vlsi_cli.engine.losses import AllPairs, cross_entropy, divergence, divergence_matrix
torch.set_num_threads(1)
V, R, H = 151936, 256, 8
w_s, w_t = torch.randn(V, H), torch.randn(V + 128, H)
if {trained}:
    w_s.requires_grad_()
    w_s.grad = torch.zeros(V, H)
xs, xt = torch.randn(R, H, requires_grad=True), torch.randn(R, H)
def work(n):
    a, b = xs[:n], xt[:n]
    {body}
work(2)
before = begin()
work(R)
print(json.dumps(peak() - before))
"""
BODIES = {
    "cross_entropy": "cross_entropy(a, w_s, torch.arange(n), vocabulary=V, tile_tokens=16).sum().backward()",
    "divergence": "divergence(a, w_s, b, w_t, vocabulary=V, tile_tokens=16).sum().backward()",
    "matrix": "divergence_matrix([a, a], w_s, [b, b], w_t, vocabulary=V, tile_tokens=16)",
}
# With the rectangles that the losses choose themselves: two small and four large layers, a drawn pair each.
EIGHT_PAIRS = """
    for way in ("sums", "recompute"):
        pairs = AllPairs([a, a], w_s, [b] * 4, w_t, vocabulary=V, gradient=way)
        (pairs.loss(0, [1]) + pairs.loss(1, [3])).sum().backward()"""
# 8192 tokens after 512: what a loss takes must not have grown by more than the states and gradients have.
FLAT = """
import json, torch
from vlsi_cli.engine.losses import AllPairs, cross_entropy, divergence, rectangles
torch.set_num_threads(1)
rectangles.KEPT_BYTES["cpu"] = 2**24  # at this width the usual budget would hold all of the first call's rows
V, H = 4096, 16
w, xs, xt = torch.randn(V, H), torch.randn(8192, H, requires_grad=True), torch.randn(8192, H)
def work(n):
    a, b = xs[:n], xt[:n]
    divergence(a, w, b, w, vocabulary=V).sum().backward()
    divergence(a, w, b, w, vocabulary=V, kind="jsd").sum().backward()
    cross_entropy(a, w, torch.arange(n) % V, vocabulary=V).sum().backward()
    AllPairs([a, a], w, [b, b], w, vocabulary=V, gradient="recompute").loss(1, [1]).sum().backward()
begin()
work(512)
before = peak()
work(8192)
print(json.dumps(peak() - before))
"""
# Blocks above 1 MB go back to the system when they are freed, so that a peak is what was held and not what the
# allocator kept in case.
SETTINGS = {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": str(10**6)}


def run(program: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", METER + program],
        capture_output=True,
        text=True,
        check=True,
        timeout=1000,
        env={**os.environ, **SETTINGS, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )
    return int(json.loads(done.stdout))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(("name", "trained"), [*((n, False) for n in BODIES), ("cross_entropy", True)])
def test_the_peak_stays_below_one_vocabulary_sized_tensor(name, trained):
    # 16-token tiles of 9.3 MiB: five buffers and the head's own gradient; far below the one tensor of 148
    # MiB.
    assert run(PROGRAM.format(body=BODIES[name], trained=trained)) < 100 * 2**20


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_eight_pairs_stay_below_one_vocabulary_sized_tensor():
    assert run(PROGRAM.format(body=EIGHT_PAIRS, trained=False)) < 64 * 2**20


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_dense_logits_would_not():
    """The twin that must fail: the same eight pairs with whole logits."""
    body = """
    z_s, z_t = a @ w_s.T, b @ w_t[:V].T
    (z_t.softmax(-1) * (z_t.log_softmax(-1) - z_s.log_softmax(-1))).sum().backward()"""
    # Four such tensors and more are alive at once; half of that is asked, as a system short of memory takes back some.
    assert run(PROGRAM.format(body=body, trained=False)) > 2 * 148 * 2**20


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_peak_is_flat_in_the_tokens():
    # States, gradients and sums a token: a few MiB at this width; one [8192, 4096] tensor would be 128 MiB.
    assert run(FLAT) < 16 * 2**20
