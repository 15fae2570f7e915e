"""CIFAR-10: its images, the paper's two networks (appendix C.2), and one run of one of them."""

import io
import itertools
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from data.download import mirrored
from optim import build_optimizer

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)  # of the training images, per channel
TRAIN = 50_000  # images of the training set, the first ones; the others are the test set
MIRROR = "cifar10_jpeg_full.npz"


def images(train: int = TRAIN) -> tuple[Tensor, Tensor, str]:
    """(train + 10000, 3, 32, 32) uint8, (train + 10000,) labels, where they come from: `train` images, then the test's.

    DATA_MIRROR/cifar10_jpeg_full.npz where the variable is set and the file is there, otherwise Hugging Face's cifar10.
    """
    from PIL import Image

    if path := mirrored(MIRROR):
        archive = np.load(path)
        data, ends = archive["jpeg"].tobytes(), [*itertools.pairwise(archive["offsets"].tolist())]
        pictures = [Image.open(io.BytesIO(data[a:b])) for a, b in ends[:train] + ends[TRAIN:]]
        labels, origin = archive["labels"], "CIFAR-10 recompressed as JPEG (about 30 dB)"
    else:
        from datasets import load_dataset

        parts = [load_dataset("uoft-cs/cifar10", split=split) for split in ("train", "test")]
        pictures = [row["img"] for part in (parts[0].select(range(train)), parts[1]) for row in part]
        labels, origin = np.array([row["label"] for part in parts for row in part]), "Hugging Face's cifar10"
    labels = np.concatenate([labels[:train], labels[TRAIN:]])
    stack = np.stack([np.asarray(picture.convert("RGB")) for picture in pictures])
    return torch.from_numpy(stack).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(labels).long(), origin


def cnn(width: int = 6) -> nn.Module:
    """Two convolutions, the first of `width` channels, and three linear layers (62,006 parameters)."""
    return nn.Sequential(
        nn.Conv2d(3, width, 5), nn.ReLU(), nn.MaxPool2d(2),  # (B, 6, 14, 14)
        nn.Conv2d(width, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),  # (B, 400)
        nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10),
    )  # fmt: skip


class Residual(nn.Module):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


def resnet9(width: int = 64, dropout: float = 0.2) -> nn.Module:
    """github.com/Moddy2024/ResNet-9: eight convolutions, two of them pairs with a shortcut, and a linear layer.

    `width` channels after the first convolution, twice, four and eight times as many after the next.
    """
    C = width

    def block(inputs: int, outputs: int, pool: bool = False) -> nn.Sequential:
        layers = [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
        return nn.Sequential(*layers, *([nn.MaxPool2d(2)] if pool else []))

    return nn.Sequential(
        block(3, C), block(C, 2 * C, pool=True), Residual(block(2 * C, 2 * C), block(2 * C, 2 * C)),
        block(2 * C, 4 * C, pool=True), block(4 * C, 8 * C, pool=True),
        Residual(block(8 * C, 8 * C), block(8 * C, 8 * C)),
        nn.MaxPool2d(4), nn.Flatten(), nn.Dropout(dropout), nn.Linear(8 * C, 10),
    )  # fmt: skip


MODELS: dict[str, Callable[..., nn.Module]] = {"cnn": cnn, "resnet9": resnet9}


def shifted_and_mirrored(x: Tensor, generator: torch.Generator) -> Tensor:
    """Each image moved by up to 4 pixels and mirrored or not: (B, 3, 32, 32), what leaves the frame comes back in."""
    B = len(x)
    padded = F.pad(x, (4, 4, 4, 4), mode="reflect")  # (B, 3, 40, 40)
    top, left = (torch.randint(9, (B,), generator=generator).to(x.device) for _ in range(2))
    line = torch.arange(32, device=x.device)
    rows, columns = top[:, None] + line, left[:, None] + line  # (B, 32) each
    mirror = (torch.rand(B, generator=generator) < 0.5).to(x.device)
    columns = torch.where(mirror[:, None], columns.flip(1), columns)
    index = torch.arange(B, device=x.device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[index, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def train(settings: Mapping[str, Any]) -> dict[str, Any]:
    """One run; settings: model, width, dropout (ResNet-9's), images (to train on), optimizer, its options, batch_size,
    epochs, schedule, augment, seed.

    Returns the test accuracy at the end (%), the losses per epoch and the coefficients at the end.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    N = settings["images"]
    pixels, labels, origin = images(N)
    scale = torch.tensor(STD, device=device).view(3, 1, 1) * 255
    shift = torch.tensor(MEAN, device=device).view(3, 1, 1) * 255
    pixels, labels = pixels.to(device), labels.to(device)

    def batch(chosen: Tensor) -> Tensor:
        return (pixels[chosen].float() - shift) / scale

    torch.manual_seed(settings["seed"])  # weights and dropout
    generator = torch.Generator().manual_seed(settings["seed"])  # order, augmentation: the same for every optimizer
    shape = {name: settings[name] for name in ("width", "dropout") if name in settings}
    net = MODELS[settings["model"]](**shape).to(device)
    optimizer = build_optimizer(settings["optimizer"], net.parameters(), **settings["options"])
    B, epochs, peak = settings["batch_size"], settings["epochs"], settings["options"]["lr"]
    steps = N // B * epochs
    losses, step, begun = [], 0, time.perf_counter()
    for _ in range(epochs):
        total = torch.zeros((), device=device)
        order = torch.randperm(N, generator=generator).to(device)
        for chosen in order[: N // B * B].view(-1, B):
            x = shifted_and_mirrored(batch(chosen), generator) if settings["augment"] else batch(chosen)
            for group in optimizer.param_groups:
                group["lr"] = peak if settings["schedule"] == "constant" else one_cycle(step / steps, peak)
            loss = F.cross_entropy(net(x), labels[chosen])
            optimizer.zero_grad(set_to_none=False)
            loss.backward()
            optimizer.step()
            total += loss.detach()
            step += 1
        losses.append(float(total) / (N // B))
        print(f"epoch {len(losses)}/{epochs}: training loss {losses[-1]:.4f}", flush=True)

    net.eval()
    with torch.no_grad():
        test = torch.arange(N, len(pixels), device=device)
        right = sum(int((net(batch(part)).argmax(1) == labels[part]).sum()) for part in test.split(1000))
    card = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    return {
        "final": {"accuracy": 100 * right / len(test), "train_loss": losses[-1], **optimizer.coefficients},
        "train_loss": losses, "data": origin, "device": card, "seconds": time.perf_counter() - begun,
    }  # fmt: skip


def one_cycle(done: float, peak: float) -> float:
    """The rate after this fraction of the steps, as torch's OneCycleLR has it: up to `peak` at 0.3, down from there."""
    start, end = peak / 25, peak / 25e4
    low, high, part = (start, peak, done / 0.3) if done < 0.3 else (end, peak, (1 - done) / 0.7)
    return low + (high - low) * 0.5 * (1 - float(np.cos(np.pi * part)))
