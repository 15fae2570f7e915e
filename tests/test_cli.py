"""What every program does to its process."""

import re
import signal
import subprocess
import sys
import time
from pathlib import Path
import cli

import pytest
from processes import forked

ROOT = Path(__file__).parents[1]
PROGRAMS = ["train.py", "sample.py", "evaluate.py", "export.py", "plot.py", "compare.py", "sweep.py", "data/prepare.py",
            "-m experiments", "-m benchmarks.table"]  # fmt: skip
STEPS = """
import resource, torch, cli
from model import GPT, GPTConfig
if argv[0] == "kept":
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
    kept, not_kept = (int(end["out"]) for end in forked(*({"argv": ["-c", STEPS, it]} for it in ("kept", "not"))))
    assert 5 * kept < not_kept  # 20 and 3973 when this was written


@pytest.mark.skipif(sys.platform != "linux", reason="it looks into /proc")
@pytest.mark.parametrize("program", PROGRAMS)
def test_ctrl_c_while_a_program_imports_torch_is_no_traceback(program: str) -> None:
    command = [sys.executable, *program.split(), "--help"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                          preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)) as process:
        until = time.monotonic() + 120
        while not re.search("libtorch|numpy", Path(f"/proc/{process.pid}/maps").read_text()):
            assert process.poll() is None and time.monotonic() < until
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        assert (*process.communicate(timeout=60), process.returncode) == ("", "", -signal.SIGINT)


def test_ctrl_c_while_a_class_is_made_is_no_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    class Interrupted:
        def __set_name__(self, owner: type, name: str) -> None:
            raise KeyboardInterrupt

    @cli.program("x.py", again="again")
    def main(argv: list[str]) -> None:
        type("Made", (), {"attribute": Interrupted()})

    assert main([]) == cli.STOPPED
    assert capsys.readouterr().err == "x.py: interrupted; again\n"

    @cli.program("x.py")
    def bug(argv: list[str]) -> None:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        bug([])


def test_an_error_of_the_users_shows_its_traceback_only_where_it_is_asked_for() -> None:
    asked = ("", "0", "1")
    jobs = [{"argv": ["sample.py", "--out_dir=nowhere"], "env": {"NANOMADA_TRACEBACK": value}} for value in asked]
    assert ["Traceback" in end["err"] for end in forked(*jobs)] == [False, False, True]
