"""The numbers of the report's first page, computed again from the JSON of the records with numpy and scipy alone."""

import json
import re
from collections.abc import Callable, Iterator
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
    if n < 5:  # its seeds are those of the whole table
        seeds = losses[key].keys()
        rows = [np.array([losses[row][s] - losses["adam"][s] for s in seeds if s in losses[row]]) for row in losses
                if row not in ("adam", "adam_999")]  # fmt: skip
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
    yield from large_batch()
    yield from tuned()
    yield from ten_seeds()
    yield from placebos()
    at_large_batch = fresh("large_batch")
    for claim, (key, against) in TABLE2.items():
        if key in at_large_batch and against in at_large_batch:
            yield claim, signed_ranks(at_large_batch[key], at_large_batch[against])
    for claim, pair in TABLE2.items():
        yield claim, difference(losses, *pair)
    yield "Fine-tuned", difference(finals("finetune/*.json", "loss_on_train"), "mada", "adam")
    for model, name in {"cnn": "5-layer CNN", "resnet9": "ResNet-9"}.items():
        found = finals(f"cifar/{model}-*.json", "accuracy")
        accuracy = {row.removeprefix(f"{model}-"): its for row, its in found.items()}
        yield f"MADA's accuracy on CIFAR-10 is higher, {name}", difference(accuracy, "mada", "adam")
    grid: dict[str, dict[str, float]] = {}
    for path in LAPTOP.glob("grid/*.json"):
        optimizer, _, at = path.stem.partition("-")
        grid.setdefault(optimizer, {})[at] = json.loads(path.read_text())["final"]["loss_on_train"]
    inside = {optimizer: [its[at] for at in its if not at.startswith("0.99")] for optimizer, its in grid.items()}
    yield "MADA's final training loss depends", [
        *(max(grid[o].values()) - min(grid[o].values()) for o in ("mada", "adam")), 1, 0.99,  # the 1 of beta1
        *(max(inside[o]) - min(inside[o]) for o in ("mada", "adam"))]  # fmt: skip
    points = [f"0.{beta1}-0.501" for beta1 in ("01", "875", "99")]
    yield "Adam's training / validation", [
        number for point in points for final in [record(f"grid/adam-{point}", "gpu")["final"]]
        for number in (*map(float, point.split("-")), final["loss_on_train"], final["val_loss"])
    ]  # fmt: skip
    x = {name: curve["x"][-1] for name, curve in record("figure9")["runs"].items()}
    yield "MADA started at Adam finds", [x["MADA from Adam"], x["Adam"]]
    yield "... also with algorithm 1's", [x["MADA, weights first"]]
    cases = record("figure1")["cases"].values()
    yield "The bound of theorem 1", [
        number for constants in ((1, 1, 1), (10, 10, 1))
        for number in (*((1, 2, 3) if constants[0] == 1 else ()), *constants,
                       *(case["best"]["C1, C2, C3 = {}, {}, {}".format(*constants)] for case in cases))
    ]  # fmt: skip
    rows_of = record("proposition1")["rows"]
    printed = max(row["fraction"] for row in rows_of if "as printed" in row["schedule"])
    yield "Under proposition 1", [100 * printed, 2, 0]  # the 2 of beta2
    cost = {row["optimizer"]: row["adamw"][0] for row in record("cost/480")["rows"]}
    yield "An iteration with MADA", [cost["mada"]]
    for batch in (12, 48, 256):
        yield f"At {batch} sequences", signs(batch)


Claims = list[tuple[str, str, str]]  # (the beginning of a claim, the first of a pair, the second)


def family(claims: Claims, losses: dict[str, dict[int, float]], test: Callable[..., list[float]]
           ) -> Iterator[tuple[str, list[float]]]:  # fmt: skip
    """The numbers of each claim that is recorded, then its p with Holm's correction, in which the others count as 1."""
    found = {i: test(losses[key], losses[against]) for i, (_, key, against) in enumerate(claims)
             if len(losses.get(key, {}).keys() & losses.get(against, {})) > 5}  # fmt: skip
    p = np.array([found[i][-1] if i in found else 1.0 for i in range(len(claims))])
    order = np.argsort(p)
    corrected = np.empty(len(p))
    corrected[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    for i, numbers in found.items():
        yield claims[i][0], [*numbers, corrected[i]]


def fresh(folder: str) -> dict[str, dict[int, float]]:
    """{arm: {seed: loss}} of the sweeps' records."""
    return {name: dict(zip(arm["seeds"], arm["val_loss"], strict=True)) for name, arm in arms(folder).items()}


def arms(folder: str) -> dict[str, Any]:
    return {path.stem: json.loads(path.read_text()) for path in LAPTOP.glob(f"{folder}/*.json") if "-" not in path.stem}


def signed_ranks(first: dict[int, float], second: dict[int, float]) -> list[float]:
    """Hodges and Lehmann's median, the interval that Wilcoxon's test does not reject, and its p."""
    points = np.array([first[seed] - second[seed] for seed in first.keys() & second])
    n = len(points)
    walsh = np.sort([(points[i] + points[j]) / 2 for i in range(n) for j in range(i, n)])
    reject = [stats.wilcoxon(points - w, method="exact", zero_method="zsplit").pvalue < 0.05 for w in walsh]
    kept = walsh[~np.array(reject)]
    p = stats.wilcoxon(points, method="exact", zero_method="zsplit").pvalue
    return [np.median(walsh), kept[0], kept[-1], p]


def large_batch() -> Iterator[tuple[str, list[float]]]:
    found, losses = arms("large_batch"), fresh("large_batch")
    constants = ("adam", "adam_99", "adam_999", "adam_08_95", "adam_08_99", "adam_08_999")
    if all(name in found for name in constants):
        best = min(constants, key=lambda name: min(np.mean(point["val_loss"]) for point in found[name]["grid"]))
        losses["best"] = losses[best]
    yield from family([
        ("At a large batch MADA from Adam beats the best", "mada_adam", "best"),
        ("At a large batch MADA from Adam beats the constants", "mada_adam", "mada_adam_fs"),
        ("At a large batch sign steps", "sign", "best"), ("At a large batch MADA from AVGrad", "mada_rho0", "avgrad"),
        ("At a large batch MADA from beta3", "mada", "mada_start"),
    ], losses, signed_ranks)  # fmt: skip


def tuned() -> Iterator[tuple[str, list[float]]]:
    yield from family([
        ("MADA from (0.9, 0.95) beats", "mada", "adam"), ("... and Adam with beta1", "mada", "adam_08"),
        ("... and HyperAdam", "mada", "hyperadam"), ("... and the constants that it", "mada", "control-fs"),
        ("What MADA learned", "mada_fs", "mada"), ("... and Adam whose", "mada_fs", "adam"),
        ("... and Adam with beta1", "mada_fs", "adam_08"), ("MADA with the box", "mada", "mada_best"),
        ("HyperAdam beats", "hyperadam", "adam"), ("MADA from AVGrad beats", "mada_avgrad", "avgrad"),
        ("Sign steps in log", "sign", "adam"), ("... and MADA's own", "sign", "mada"),
        ("... and Adam with beta1", "sign", "adam_08"), ("... and the constants that they", "sign", "control-sign_fs"),
        ("Sign steps on beta2", "control-sign_beta2", "adam"), ("Sign steps from", "sign", "control-sign_above"),
        *((f"{label} beats", name, "adam") for label, name in (
            ("AVGrad", "avgrad"), ("Lion", "lion"), ("Adan", "adan"), ("Prodigy", "prodigy"), ("Muon", "muon"),
            ("SOAP", "soap"), ("Schedule-Free AdamW", "schedule_free"))),
        ("... and MADA", "schedule_free", "mada"),
    ], finals("tuned/control-*.json", "val_loss") | fresh("tuned"), signed_ranks)  # fmt: skip


def ten_seeds() -> Iterator[tuple[str, list[float]]]:
    losses = finals("*.json", "val_loss") | finals("sign/*.json", "val_loss")
    yield from family([
        ("At one untuned rate MADA from Adam", "mada_shakespeare", "adam"),
        ("... and Adam with beta2", "mada_shakespeare", "adam_999"),
        ("At one untuned rate MADA from AVGrad", "mada_rho0", "avgrad"), ("... and Adam with", "mada_rho0", "adam_999"),
        ("At one untuned rate sign steps in", "sign", "adam"), ("... and Adam with", "sign", "adam_999"),
        ("... and Adam with", "sign", "adam_08_999"), ("At one untuned rate sign steps on", "sign_beta2", "adam"),
        ("At one untuned rate sign steps from", "sign", "sign_above"),
    ], losses, lambda first, second: difference({"a": first, "b": second}, "a", "b"))  # fmt: skip


def placebos() -> Iterator[tuple[str, list[float]]]:
    worthless, real = ("zero", "signs", "shuffled", "moment"), ("lion", "avgrad", "yogi")
    rows = {end: record(f"placebo/{end}-24")["rows"]["0.008"] for end in ("none", *worthless, *real)}
    yield "A hypergradient keeps Adam", [0.95, *(np.median(rows[end]["w"]) for end in (*worthless, *real))]
    losses = {end: dict(enumerate(columns["val_loss"])) for end, columns in rows.items()}
    yield from family([("Learning between Adam and", end, "none") for end in worthless], losses, signed_ranks)
    yield "The next batch's loss", [100 * np.mean(rows[end]["finite_share"]) for end in (*worthless, *real)]


def signs(batch: int) -> list[int]:
    """How many of the 18 coefficients move as the authors' in every seed, from the first value to step 500, and how
    many of the 7 that start inside their box."""
    authors = json.loads((ROOT / "experiments/paper.json").read_text())["coefficients"]
    at = authors["steps"].index(500)
    agree: list[str] = []
    for start in ("mada_rho0", "mada_poor", "mada"):
        for name in ("beta1", "beta2", "beta3", "rho", "c", "gamma"):
            theirs = authors[start][name][at] - authors[start][name][0]
            ours = []
            for path in LAPTOP.glob(f"regime/{start}-{batch}-*.json"):
                curve = json.loads(path.read_text())["curves"][name]
                ours.append(curve[-1] - curve[0])
            assert ours
            if all(abs(o) < 0.01 if abs(theirs) < 1e-5 else o * theirs > 0 for o in ours):
                agree.append(f"{start} {name}")
    free = {"mada beta3", *(f"{start} {name}" for start in ("mada_rho0", "mada_poor", "mada")
                            for name in ("beta1", "beta2"))}  # fmt: skip
    return [len(agree), 18, 7, len(free.intersection(agree))]


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
            word = "not seen" if low <= 0 <= high else "sign reproduced" if low * theirs > 0 else "other sign here"
            assert verdict == word, (paper, found)
            judged += 1
        if match and (holm := re.search(r"Holm's p [=<] ([.\d]+)", found)):
            low, high = float(match[1]), float(match[2])
            word = "undecided" if float(holm[1]) >= 0.05 else "yes" if high < 0 else "no, worse"
            assert verdict == ("no, equal within 0.005" if low > -0.005 and high < 0.005 else word), found
            judged += 1
    assert judged >= 30
