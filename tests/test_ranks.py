"""Processes that should not have been started together, and one whose memory is full: a line, and all leave."""

import shutil
from pathlib import Path

from processes import forked, ranks

import train

# The second process, in its first step, asks for more than any machine has.
GREEDY = """
import torch, train
def accumulate(*_):
    torch.empty(10**15)
train.accumulate = accumulate
"""


def test_ranks_that_differ_are_refused_before_anything_is_moved(small: list[str], corpus: str, tmp_path: Path) -> None:
    assert train.main([*small, "--max_iters=2"]) == 0
    before = sorted(path.name for path in (tmp_path / "run").iterdir())
    data = shutil.copytree(corpus, tmp_path / "data")
    manifest = data / "manifest.json"
    manifest.write_text(manifest.read_text().replace("words shuffled by a test", "words of another test"))
    assert manifest.read_text() != Path(corpus, "manifest.json").read_text()
    others = {"--seed=7": "seed is 1337 on rank 0, 7 on rank 1", "--n_embd=32": "n_embd is 16 on rank 0, 32 on rank 1",
              "--block_size=8": "block_size is 16 on rank 0, 8", "--batch_size=2": "batch_size is 4 on rank 0, 2",
              f"--dataset={data}": "the data's manifest is '", "--init_from=auto": "the checkpoint's step is 0 on",
              "--rho=0.5": "coefficients is {", "--parallel=fsdp": "parallel is 'ddp' on rank 0, 'fsdp'"}  # fmt: skip
    run = ["train.py", *small, "--max_iters=4"]
    found = forked(*(ranks(run, [*run, other]) for other in others))
    for (other, said), ends in zip(others.items(), found, strict=True):
        assert [end["code"] for end in ends] == [2, 2], ends
        for start, end in zip(("train.py: the", "train.py: rank 1: the"), ends, strict=True):
            assert end["err"].startswith(f"{start} processes differ: ") and said in end["err"], (other, end["err"])
            assert end["err"].count("\n") == 1
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == before


def test_a_process_without_memory_ends_all_in_one_line_each(small: list[str], tmp_path: Path) -> None:
    run = ["train.py", *small]
    alone, (first, second) = forked({"argv": run, "patch": GREEDY}, ranks(run, run, patches=("", GREEDY)))
    for end, rank in ((alone, 0), (second, 1)):
        assert end["code"] == 2 and end["err"].count("\n") == 1
        assert f"rank {rank} is out of memory (" in end["err"] and "lower batch_size=4" in end["err"]
    assert first["code"] == 4 and first["err"].count("\n") == 1 and "lost another process in step 1" in first["err"]


def test_what_is_best_is_decided_once(small: list[str], tmp_path: Path) -> None:
    """The second process sees no checkpoint, as over a network; a sharded save needs both."""
    run = ["train.py", *small, "--parallel=fsdp", "--always_save_checkpoint=False", "--dist_timeout=20",
           "--eval_interval=1", "--max_iters=1"]  # fmt: skip
    even = "import train; train.evaluate = lambda *_: 1.0"
    blind = f"{even}; train.checkpoint.find = lambda _: []"
    again = [*run, "--init_from=resume", "--max_iters=3"]
    for ends in forked(ranks(run, run, patches=(even, even)), ranks(again, again, patches=(even, blind))):
        assert [end["code"] for end in ends] == [0, 0], ends
    assert sorted(path.stem for path in (tmp_path / "run").glob("*.shards")) == ["ckpt_000001", "ckpt_000003"]


BROKEN = [
    {"WORLD_SIZE": ""}, {"RANK": "0"}, {"LOCAL_WORLD_SIZE": "x"}, {"RANK": "-1"}, {"WORLD_SIZE": "0"},
    {"LOCAL_RANK": ""}, {"RANK": "", "LOCAL_RANK": "1"},
    {"WORLD_SIZE": "2"}, {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"},
    {"MASTER_ADDR": "nowhere.invalid", "MASTER_PORT": "1", "RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"},
]  # fmt: skip


def test_a_broken_environment_is_one_line(small: list[str], tmp_path: Path) -> None:
    programs = (["train.py", *small], ["sample.py"], ["evaluate.py"])
    jobs = [{"argv": argv, "env": env} for argv in programs for env in BROKEN]
    for job, end in zip(jobs, forked(*jobs), strict=True):
        assert end["code"] == 2 and end["err"].count("\n") == 1 and "the environment has " in end["err"], (job, end)
        assert next(iter(job["env"])) in end["err"]
    assert not (tmp_path / "run").exists()
