"""What every program does to its process."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
STEPS = """if True:
    import resource, sys
    import torch
    import cli
    from model import GPT, GPTConfig
    if sys.argv[1] == "kept":
        cli.keep_memory()
    model = GPT(GPTConfig(block_size=32, vocab_size=65, n_layer=2, n_head=4, n_embd=128))
    tokens = torch.zeros(24, 32, dtype=torch.int64)
    for step in range(20):
        model(tokens, tokens)[1].backward()
        if step == 9:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_a_step_finds_the_memory_of_the_step_before() -> None:
    kept, not_kept = (
        int(subprocess.run([sys.executable, "-c", STEPS, case], cwd=ROOT, check=True, capture_output=True).stdout)
        for case in ("kept", "not")
    )
    assert 5 * kept < not_kept  # 20 and 3973 when this was written
