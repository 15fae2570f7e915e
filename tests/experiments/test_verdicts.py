"""The numbers of the report's first page, computed again from the JSON of the records with numpy and scipy alone."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

ROOT = Path(__file__).parents[2]
LAPTOP = ROOT / "experiments/records/laptop"
TABLE2 = {
    "MADA ends below Adam (": ("mada", "adam"), "MADA from AVGrad ends below Adam": ("mada_rho0", "adam"),
    "... and below AVGrad": ("mada_rho0", "avgrad"), "MADA-FS, what": ("mada_fs", "mada"),
    "From poor betas": ("mada_poor", "adam_poor"), "AVGrad ends below Adam": ("avgrad", "adam"),
    "HyperAdam ends below Adam": ("hyperadam", "adam"), "Lion ends below Adam": ("lion", "adam"),
    "Adan ends below Adam": ("adan", "adam"),
}  # fmt: skip
NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?(?:e-?\d+)?")


def record(name: str, scale: str = "laptop") -> Any:
    return json.loads((LAPTOP.parent / scale / f"{name}.json").read_text())


def finals(pattern: str, kind: str) -> dict[str, dict[int, float]]:
    """{row: {seed: value}} of the records ROW-SEED.json."""
    found: dict[str, dict[int, float]] = {}
    for path in LAPTOP.glob(pattern):
        final = json.loads(path.read_text()).get("final", {})
        row, _, seed = path.stem.rpartition("-")
        if kind in final and seed.isdigit():
            found.setdefault(row, {})[int(seed)] = final[kind]
    return found


def difference(losses: dict[str, dict[int, float]], key: str, against: str) -> list[float]:
    """Mean and 95% interval; below five seeds with the spread of all rows' differences from Adam."""

    def minus(first: str, second: str) -> np.ndarray:
        return np.array([losses[first][s] - losses[second][s] for s in sorted(losses[first].keys() & losses[second])])

    points = minus(key, against)
    n, error, freedom = len(points), points.std(ddof=1) / np.sqrt(len(points)), len(points) - 1
    if n < 5:
        rows = [minus(row, "adam") for row in losses if row != "adam"]
        freedom = sum(len(row) - 1 for row in rows)
        error = np.sqrt(sum(row.var(ddof=1) * (len(row) - 1) for row in rows) / freedom / n)
    half = stats.t.ppf(0.975, freedom) * error
    p = [stats.ttest_1samp(points, 0).pvalue] if n >= 5 else []
    return [points.mean(), points.mean() - half, points.mean() + half, *p]


def expected() -> Iterator[tuple[str, list[float]]]:
    """(the beginning of a claim, the numbers of the cell \"found here\")."""
    rows = ("adam", "mada", "mada_rho0", "mada_fs", "mada_poor", "adam_poor", "avgrad", "hyperadam", "lion", "adan",
            "mada_rho0_fs", "mada_shakespeare", "adam_999")  # fmt: skip
    losses = {row: its for row, its in finals("*.json", "val_loss").items() if row in rows}
    yield from tuned()
    yield from large_batch()
    for claim, pair in TABLE2.items():
        yield claim, difference(losses, *pair)
    yield "Fine-tuned", difference(finals("finetune/*.json", "loss_on_train"), "mada", "adam")
    for model, name in {"cnn": "5-layer CNN", "resnet9": "ResNet-9"}.items():
        found = finals(f"cifar/{model}-*.json", "accuracy")
        accuracy = {row.removeprefix(f"{model}-"): its for row, its in found.items()}
        yield f"MADA's accuracy on CIFAR-10 is higher, {name}", difference(accuracy, "mada", "adam")
    grid = {}
    for path in LAPTOP.glob("grid/*.json"):
        grid.setdefault(path.stem.partition("-")[0], []).append(json.loads(path.read_text())["final"]["loss_on_train"])
    yield "MADA's final training loss depends", [max(grid[o]) - min(grid[o]) for o in ("mada", "adam")]
    points = [f"0.{beta1}-0.501" for beta1 in ("01", "875", "99")]
    yield "Adam's training / validation", [
        number for point in points for final in [record(f"grid/adam-{point}", "gpu")["final"]]
        for number in (*map(float, point.split("-")), final["loss_on_train"], final["val_loss"])
    ]  # fmt: skip
    x = {name: curve["x"][-1] for name, curve in record("figure9")["runs"].items()}
    yield "MADA started at Adam finds", [x["MADA from Adam"], x["Adam"]]
    yield "... also with algorithm 1's", [x["MADA, weights first"]]
    cases = record("figure1")["cases"].values()
    yield "The bound of theorem 1", [case["best"]["C1, C2, C3 = 1, 1, 1"] for case in cases]
    rows_of = record("proposition1")["rows"]
    printed = max(row["fraction"] for row in rows_of if "as printed" in row["schedule"])
    yield "Under proposition 1", [100 * printed, 2, 0]  # the 2 of beta2
    cost = {row["optimizer"]: row["adamw"][0] for row in record("cost/480")["rows"]}
    yield "An iteration with MADA", [cost["mada"]]
    yield from placebos()
    for batch in (12, 256):
        yield "The coefficients go", [*signs(batch)]


def large_batch() -> Iterator[tuple[str, list[float]]]:
    losses = fresh("large_batch")
    claims = TABLE2 | {
        "At a large batch MADA from Adam (0.9, 0.95)": ("mada_adam", "adam"),
        "... and Adam with beta2": ("mada_adam", "adam_99"),
        "... and the constants that it learned": ("mada_adam", "mada_adam_fs"),
        "At a large batch sign steps": ("sign", "adam"),
        "... and the constants that they learned": ("sign", "sign_fs"),
        "... and Adam with betas (0.8, 0.999)": ("sign", "adam_08_999"),
        "... and on beta2 alone they": ("sign_beta2", "adam"),
    }
    for claim, (key, against) in claims.items():
        if key in losses and against in losses:
            yield claim, signed_ranks(losses[key], losses[against])


def fresh(folder: str) -> dict[str, dict[int, float]]:
    """{arm: {seed: loss}} of the sweeps' records."""
    arms = {path.stem: json.loads(path.read_text()) for path in LAPTOP.glob(f"{folder}/*.json") if "-" not in path.stem}
    return {name: dict(zip(arm["seeds"], arm["val_loss"], strict=True)) for name, arm in arms.items()}


def signed_ranks(first: dict[int, float], second: dict[int, float]) -> list[float]:
    """Hodges and Lehmann's median, the interval that Wilcoxon's test does not reject, and its p."""
    points = np.array([first[seed] - second[seed] for seed in first.keys() & second])
    n = len(points)
    walsh = np.sort([(points[i] + points[j]) / 2 for i in range(n) for j in range(i, n)])
    reject = [stats.wilcoxon(points - w, method="exact", zero_method="zsplit").pvalue < 0.05 for w in walsh]
    kept = walsh[~np.array(reject)]
    return [np.median(walsh), kept[0], kept[-1], stats.wilcoxon(points, method="exact").pvalue]


def tuned() -> Iterator[tuple[str, list[float]]]:
    losses = finals("tuned/control-*.json", "val_loss") | fresh("tuned")
    claims = {
        "MADA from (0.9, 0.95) beats": ("mada", "adam"), "... and the constants that it": ("mada", "control-fs"),
        "... and Adam with betas": ("mada", "control-adam"), "MADA from Adam's best": ("mada_best", "adam"),
        "MADA from AVGrad beats": ("mada_avgrad", "avgrad"), "What MADA learned": ("mada_fs", "adam"),
        "Sign steps": ("sign", "adam"),
        "... and the constants that they": ("sign", "control-sign_fs"),
        "... and on beta2": ("control-sign_beta2", "adam"),
        "AVGrad beats": ("avgrad", "adam"), "Muon beats": ("muon", "adam"),
        "Schedule-Free": ("schedule_free", "adam"), "SOAP beats": ("soap", "adam"),
    }  # fmt: skip
    for claim, (key, against) in claims.items():
        if key in losses and against in losses:
            yield claim, signed_ranks(losses[key], losses[against])


def placebos() -> Iterator[tuple[str, list[float]]]:
    ends = ("lion", "avgrad", "yogi", "zero", "signs", "shuffled", "moment")
    rows = {end: record(f"placebo/{end}-24")["rows"]["0.008"] for end in ("none", *ends)}
    weights = [np.mean(rows[end]["w"]) for end in ends]
    yield "A hypergradient leaves Adam", [0.95, *weights]
    lowest = ends[3 + int(np.argmin(weights[3:]))]
    points = np.array(rows[lowest]["val_loss"]) - np.array(rows["none"]["val_loss"])
    half = stats.t.ppf(0.975, len(points) - 1) * points.std(ddof=1) / np.sqrt(len(points))
    yield "... without harm", [points.mean(), points.mean() - half, points.mean() + half,
                               stats.ttest_1samp(points, 0).pvalue]  # fmt: skip
    yield "The next batch's loss", [100 * np.mean(rows[end]["finite_share"]) for end in ends]


def signs(batch: int) -> tuple[int, int]:
    """How many of the 18 coefficients move as the authors' in every seed, from the first to the last value."""
    authors = json.loads((ROOT / "experiments/paper.json").read_text())["coefficients"]
    agree = 0
    for start in ("mada_rho0", "mada_poor", "mada"):
        for name in ("beta1", "beta2", "beta3", "rho", "c", "gamma"):
            theirs = authors[start][name][-1] - authors[start][name][0]
            ours = []
            for path in LAPTOP.glob(f"regime/{start}-{batch}-*.json"):
                curve = json.loads(path.read_text())["curves"][name]
                ours.append(curve[-1] - curve[0])
            agree += all(abs(o) < 0.01 if abs(theirs) < 1e-5 else o * theirs > 0 for o in ours) and bool(ours)
    return agree, 18


@pytest.fixture(scope="module")
def page() -> list[list[str]]:
    text = (ROOT / "experiments/report.md").read_text()
    table = text.partition("## Verdicts")[2].partition("\n## ")[0]
    lines = [line for line in table.splitlines() if line.startswith("| ") and not line.startswith("| claim |")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_every_number_of_the_verdicts_follows_from_the_records(page: list[list[str]]) -> None:
    left = [*page]
    for claim, numbers in expected():
        [row, *_] = [row for row in left if row[0].startswith(claim)] or [[claim, "", "is not there"]]
        left.remove(row)
        cell = row[2].replace("p < 0.0001", "p = 0")
        shown = [(text, float(text)) for text in NUMBER.findall(cell)]
        assert len(shown) == len(numbers), (row, numbers)
        for (text, value), number in zip(shown, numbers, strict=True):
            digits = len(text.partition("e")[0].partition(".")[2])
            assert value == pytest.approx(number, abs=0.51 * 10**-digits + 1e-3 * abs(number)), (row, numbers)
    typed = ("MADA's perplexities on other texts", "What figure 8 measures")  # no record of ours is behind these
    assert all(row[0].startswith(typed) for row in left) and len(left) == len(typed), left


def test_a_verdict_is_what_its_interval_says(page: list[list[str]]) -> None:
    judged = 0
    for _, verdict, found, paper, _ in page:
        match = re.search(r"\[([-+.\d]+), ([-+.\d]+)\]", found)
        if match and paper:
            low, high, theirs = float(match[1]), float(match[2]), float(paper)
            word = "not seen" if low <= 0 <= high else "sign reproduced" if low * theirs > 0 else "contradicted"
            assert verdict == word, (paper, found)
            judged += 1
    assert judged >= 10
