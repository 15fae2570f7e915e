"""The vision runs, on made-up images."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from experiments import cifar, table5


def test_the_models_are_the_papers() -> None:
    x = torch.zeros(2, 3, 32, 32)
    for make, size in ((cifar.cnn, 62_006), (cifar.resnet9, 6_575_370)):
        net = make()
        assert net(x).shape == (2, 10)
        assert sum(p.numel() for p in net.parameters()) == size


def test_resnet9_has_the_notebooks_dropout() -> None:
    torch.manual_seed(0)
    net, x = cifar.resnet9(8), torch.randn(4, 3, 32, 32)
    assert [type(layer).__name__ for layer in net][-4:] == ["MaxPool2d", "Flatten", "Dropout", "Linear"]
    assert [layer.p for layer in net if isinstance(layer, torch.nn.Dropout)] == [0.2]
    assert not torch.equal(net(x), net(x))  # masks differ
    assert all(run.settings["dropout"] == 0.2 for run in table5.runs("laptop") if "resnet9" in run.name)
    net.eval()
    assert torch.equal(net(x), net(x))


def test_a_seed_fixes_the_dropout_too(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels, labels = torch.arange(40 * 3072).remainder(251).to(torch.uint8).view(40, 3, 32, 32), torch.arange(40) % 10
    monkeypatch.setattr(cifar, "images", lambda train: (pixels, labels, "made up"))
    run = next(run for run in table5.runs("laptop") if run.name == "cifar/resnet9-sgd-1")
    options = run.settings["options"] | {"compile": False}
    small = dict(run.settings) | {"images": 32, "batch_size": 8, "epochs": 2, "options": options}
    first, again, without = (cifar.train(small | {"dropout": rate})["train_loss"] for rate in (0.2, 0.2, 0.0))
    assert first == again != without


def test_one_cycle_is_torchs() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=1001)
    rates = []
    for _ in range(1000):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert [cifar.one_cycle(i / 1000, 0.1) for i in range(1000)] == pytest.approx(rates, rel=0.02, abs=2e-4)


def test_augmentation_moves_and_mirrors() -> None:
    x = torch.arange(32.0).expand(64, 3, 32, 32)  # every row counts its columns
    y = cifar.shifted_and_mirrored(x, torch.Generator().manual_seed(0))
    assert y.shape == x.shape
    inner = y[:, 0, 16, 8:24].diff(dim=1)
    assert set(inner.flatten().tolist()) == {-1.0, 1.0}  # moved: still counting; mirrored: backwards
    assert (y[:, 0, 16, 16] - 16).abs().max() <= 5


def test_the_mirror_is_read_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jpegs = []
    for grey in (10, 200, 90):
        buffer = io.BytesIO()
        Image.new("RGB", (32, 32), (grey, grey, grey)).save(buffer, "JPEG")
        jpegs.append(buffer.getvalue())
    offsets = np.cumsum([0, *map(len, jpegs)])
    data = np.frombuffer(b"".join(jpegs), np.uint8)
    np.savez(tmp_path / cifar.MIRROR, jpeg=data, offsets=offsets, labels=np.array([3, 1, 2]))
    monkeypatch.setenv("DATA_MIRROR", str(tmp_path))
    monkeypatch.setattr(cifar, "TRAIN", 2)  # and one to test on
    for train, greys, expected in ((2, [10, 200, 90], [3, 1, 2]), (1, [10, 90], [3, 2])):
        pixels, labels, origin = cifar.images(train)
        assert pixels.shape == (train + 1, 3, 32, 32) and labels.tolist() == expected and "JPEG" in origin
        assert pixels.float().mean((1, 2, 3)).tolist() == pytest.approx(greys, abs=2)


@pytest.mark.parametrize("optimizer", table5.OPTIONS)
def test_each_optimizer_learns(optimizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images of one grey for each of two classes, told apart after an epoch."""
    labels = torch.arange(640) % 2
    pixels = (labels * 200).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 32, 32).contiguous()
    monkeypatch.setattr(cifar, "images", lambda train: (pixels, labels, "made up"))
    run = next(run for run in table5.runs("laptop") if run.settings["optimizer"] == optimizer)
    result = cifar.train(dict(run.settings) | {"images": 512, "batch_size": 8, "epochs": 1, "augment": True})
    assert result["final"]["accuracy"] == 100
    learned = run.settings["options"].get("hyper_lr", {})
    start = run.settings["options"]
    assert all(result["final"][name] != start.get(name) for name in learned if name.startswith("beta"))
