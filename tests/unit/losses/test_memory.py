from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

# At the size of a real vocabulary one fp32 [256, 151936] tensor takes 148 MiB, and the textbook forms
# need four to six of them. Each program runs alone, so that nothing else moves its peak, and warms up on
# two tokens first.
PROGRAM = """
import json, resource, torch
from vlsi_cli.engine.losses import cross_entropy, divergence, divergence_matrix
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
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
work(2)
before = peak()
work(R)
print(json.dumps(peak() - before))
"""
BODIES = {
    "cross_entropy": "cross_entropy(a, w_s, torch.arange(n), vocabulary=V, tile_tokens=16).sum().backward()",
    "divergence": "divergence(a, w_s, b, w_t, vocabulary=V, tile_tokens=16).sum().backward()",
    "matrix": "divergence_matrix([a, a], w_s, [b, b], w_t, vocabulary=V, tile_tokens=16)",
}


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux")
@pytest.mark.parametrize(("name", "trained"), [*((n, False) for n in BODIES), ("cross_entropy", True)])
def test_the_peak_stays_below_one_vocabulary_sized_tensor(name, trained):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(body=BODIES[name], trained=trained)],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )
    # 16-token tiles of 9.3 MiB: five buffers and the head's own gradient; far below the one tensor of 148
    # MiB.
    assert json.loads(done.stdout) < 100 * 2**20
