"""Steps as CUDA graphs. Without a GPU a tape stands in for the graph: like one, it repeats kernels on the memory of the
capture, with the numbers that were in Python then, and refuses whatever hands a tensor's value to Python."""

import math
import os
from pathlib import Path

import pytest
import torch
from outcomes import ends_equal, rows, without_seconds
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import train
from runtime import checkpoint, graph, parallel
from runtime.settings import ConfigError, parse

GPU = torch.cuda.is_available()


class Tape(TorchDispatchMode):
    """Records kernels and runs them, as a capture does not."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels: list = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.equal.default):
            raise RuntimeError(f"{func}: operation not permitted when stream is capturing")
        result = func(*args, **(kwargs or {}))
        self.kernels.append((func, args, kwargs or {}, result))
        return result

    def replay(self) -> None:
        for func, args, kwargs, result in self.kernels:
            given = {id(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)}
            again = func(*args, **kwargs)
            for old, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
                if isinstance(old, torch.Tensor) and id(old) not in given and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


def tape(function):
    """Stands in for `cuda_graph`; what the recording changed is put back, since a capture changes nothing."""
    kept = [(t, t.clone()) for t in tensors_in_place()]
    with torch.random.fork_rng(), Tape() as recording:
        result = function()
    with torch.no_grad():
        for tensor, value in kept:
            tensor.copy_(value)
    replays.append(0)
    number = len(replays) - 1

    def replay() -> None:
        replays[number] += 1
        with torch.no_grad():
            recording.replay()

    return replay, result


replays: list[int] = []
OPTIMIZERS: list = []


def tensors_in_place() -> list[torch.Tensor]:
    """All that a step writes: the matrices and columns of the optimizer's rows, and its scalars."""
    optimizer = OPTIMIZERS[-1]
    found = [*optimizer._values.scalars]
    for bucket in optimizer.buckets:
        found += [t for t in tree_leaves(tuple(bucket.rows)) if isinstance(t, torch.Tensor)]
    return found


@pytest.fixture
def taped(monkeypatch: pytest.MonkeyPatch):
    """Graphs for every run in this process."""
    replays.clear()

    def build(*args, real=train.optimizers.build, **kwargs):
        OPTIMIZERS.append(real(*args, **kwargs))
        return OPTIMIZERS[-1]

    monkeypatch.setattr(train.optimizers, "build", build)
    monkeypatch.setattr(graph, "pays", lambda *_: True)
    monkeypatch.setattr(graph, "cuda_graph", tape)
    yield
    OPTIMIZERS.clear()


CASES = {
    "mada": ["--hyper_momentum=0.5"],
    "mada, weights first, from a late step on": ["--order=weights_first", "--hyper_start=6"],
    "adam, no dropout": ["--optimizer=adam", "--dropout=0", "--hyper_lr=None"],
    "mada, learned by Adam": ["--hyper_optimizer=adam", "--hyper_space=log"],
    "a learned rate": ["--optimizer=adam", "--hyper_lr={'lr': 1e-4, 'beta1': 1e-3}", "--hyper_momentum=0"],
}


@pytest.mark.parametrize("changes", CASES.values(), ids=CASES.keys())
def test_replays_are_the_plain_steps(small: list[str], tmp_path: Path, changes: list[str], request) -> None:
    """Bit by bit: batches, dropout, warm-up and decay of the rate, coefficients, two micro-batches, a resumed run."""
    run = [*small, *changes, "--log_interval=1"]
    assert train.main([*run, f"--out_dir={tmp_path / 'plain'}", "--cuda_graph=False"]) == 0
    request.getfixturevalue("taped")
    assert train.main([*run, f"--out_dir={tmp_path / 'graph'}"]) == 0
    assert replays == [2 * 12 - graph.PLAIN, 12 - graph.PLAIN]  # of micro-batches, of steps
    ends_equal(tmp_path / "plain", tmp_path / "graph")
    checkpoint.newest(tmp_path / "graph").path.unlink()
    assert train.main([*run, f"--out_dir={tmp_path / 'graph'}", "--init_from=auto"]) == 0
    ends_equal(tmp_path / "plain", tmp_path / "graph")


def test_a_replayed_step_is_refused_where_the_gradient_is_not_finite(small, tmp_path, taped, monkeypatch) -> None:
    def accumulate(net, tokens, batch, *rest, real=train.accumulate):
        loss = real(net, tokens, batch, *rest)
        if batch in (8, 9):
            next(iter(net.parameters())).grad[0] = math.nan
        return loss

    monkeypatch.setattr(train, "accumulate", accumulate)
    assert train.main([*small, "--log_interval=1", "--max_skipped=2"]) == 3
    found = rows(tmp_path / "run")
    assert [row["step"] for row in found][-1] == "9" and [row["grad_norm"] for row in found[-2:]] == ["nan", "nan"]
    assert len({row["beta1"] for row in found[-3:]}) == 1 and replays[1] == 9 - graph.PLAIN


def test_graphs_are_captured_anew_where_the_optimizer_s_memory_moved(small, tmp_path, request, monkeypatch) -> None:
    """Of the edits that move it: a fixed coefficient that now differs between groups."""
    edited = []

    def accumulate(net, tokens, batch, *rest, real=train.accumulate):
        loss = real(net, tokens, batch, *rest)
        if batch == 5:
            OPTIMIZERS[-1].param_groups[1]["eps"] = 1e-3
            edited.append(len(replays))
        return loss

    monkeypatch.setattr(train, "accumulate", accumulate)
    run = [*small, "--log_interval=1"]
    request.getfixturevalue("taped")
    assert train.main([*run, f"--out_dir={tmp_path / 'graph'}"]) == 0
    # Batches 3 (its second half) to 5 and steps 4; then 3 calls without a graph, and the rest of 12 again.
    assert replays == [2 * 5 - 3, 1, 2 * 7 - 3, 8 - 3] and edited == [2]
    monkeypatch.setattr(graph, "pays", lambda *_: False)
    assert train.main([*run, f"--out_dir={tmp_path / 'plain'}"]) == 0
    ends_equal(tmp_path / "plain", tmp_path / "graph")


def test_where_the_capture_fails_the_run_goes_on(small: list[str], tmp_path: Path, taped, monkeypatch) -> None:
    def fails(function):
        with Tape():
            torch.ones(()).item()

    assert train.main([*small, f"--out_dir={tmp_path / 'graph'}"]) == 0
    monkeypatch.setattr(graph, "cuda_graph", fails)
    with pytest.warns(UserWarning, match="without CUDA graphs, the capture failed: .*_local_scalar_dense"):
        assert train.main([*small, f"--out_dir={tmp_path / 'plain'}"]) == 0
    assert without_seconds(tmp_path / "plain") == without_seconds(tmp_path / "graph")


def test_graphs_are_refused_where_there_are_none(small: list[str]) -> None:
    with pytest.raises(ConfigError, match="cuda_graph=True is for one process on a GPU, not 1 on cpu"):
        parse(train.Config, [*small, "--cuda_graph=True"], train.check, "train.py")
    with pytest.raises(ConfigError, match=r"cuda_graph=True is for a rule of optim/ or your own, not torch\.optim:Ad"):
        changes = ["--cuda_graph=True", "--optimizer=torch.optim:AdamW", "--hyper_lr=None", "--hyper_momentum=0"]
        parse(train.Config, [*small, *changes], train.check, "train.py")


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not GPU, reason="no GPU"))])
def test_a_deterministic_run_has_the_same_bits_each_time_and_resumed(small, tmp_path: Path, device: str) -> None:
    run = [*small, "--deterministic", f"--device={device}", "--log_interval=1", f"--compile={device == 'cuda'}"]
    for name in ("one", "two"):
        assert train.main([*run, f"--out_dir={tmp_path / name}"]) == 0
        assert not torch.are_deterministic_algorithms_enabled() and torch.backends.cuda.cudnn_sdp_enabled()
    ends_equal(tmp_path / "one", tmp_path / "two")
    checkpoint.newest(tmp_path / "two").path.unlink()
    assert train.main([*run, f"--out_dir={tmp_path / 'two'}", "--init_from=auto"]) == 0
    ends_equal(tmp_path / "one", tmp_path / "two")


def test_what_deterministic_asks_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    del os.environ["CUBLAS_WORKSPACE_CONFIG"]
    try:
        parallel.deterministic(True)
        assert torch.are_deterministic_algorithms_enabled() and os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
        assert not torch.backends.cuda.cudnn_sdp_enabled() and torch.backends.cuda.flash_sdp_enabled()
    finally:
        parallel.deterministic(False)


@pytest.mark.skipif(not GPU, reason="no GPU")
@pytest.mark.filterwarnings("error:the run goes on without CUDA graphs")
@pytest.mark.parametrize("compiled", [False, True])
def test_graphs_of_a_gpu_are_the_plain_steps(small: list[str], tmp_path: Path, compiled: bool) -> None:
    run = [*small, "--deterministic", "--device=cuda", f"--compile={compiled}", "--log_interval=1"]
    for name in ("True", "False"):
        assert train.main([*run, f"--out_dir={tmp_path / name}", f"--cuda_graph={name}"]) == 0
    assert without_seconds(tmp_path / "True") == without_seconds(tmp_path / "False")
