"""One run owns an out_dir, however often it is killed and whoever wants its place."""

import re
from pathlib import Path

import pytest
from outcomes import ends_equal
from processes import forked, in_processes

# Two processes at a time with the same command; one of them is killed at a random moment, the other may take over.
CONTENDERS = """
import json, os, pathlib, random, signal, time
import ranks
folder, kills, argv = pathlib.Path(argv[0]), int(argv[1]), argv[2:]
rng, ends = random.Random(7), {0: 0, 2: 0, -9: 0}
while True:
    pids = ranks.launch({"ranks": 1, "argv": argv}, folder)
    time.sleep(rng.uniform(0, 0.5))
    pids += ranks.launch({"ranks": 1, "argv": argv}, folder)
    last = ends[-9] >= kills
    if not last:
        time.sleep(rng.uniform(0, 1.0))
        os.kill(pids[rng.random() < 0.3], signal.SIGKILL)  # one that has ended is not waited for yet
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    for code in codes:
        ends[code] += 1
    if last and 0 in codes:
        break
print("ENDS", json.dumps([ends[0], ends[2], ends[-9]]))
"""


@pytest.mark.parametrize("kills", [3, pytest.param(50, marks=pytest.mark.long)])
def test_a_contender_is_refused_or_takes_over(small: list[str], tmp_path: Path, kills: int) -> None:
    run = [*small, f"--max_iters={10 * kills}", "--checkpoint_interval=1", "--eval_iters=3"]
    in_processes(tmp_path, (1, run))
    run += [f"--out_dir={tmp_path / 'killed'}", "--init_from=auto"]
    (done,) = forked({"argv": ["-c", CONTENDERS, str(tmp_path), str(kills), *run], "seconds": 400})
    assert done["code"] == 0, done
    finished, refused, killed = map(int, re.findall(r"\d+", re.search(r"ENDS (.*)", done["out"])[1]))  # type: ignore[index]
    print(f"{killed} kills, {refused} refused, {finished} finished")
    assert killed >= kills and refused and finished
    assert len(re.findall(r"belongs to a run of \S+, process \d+: choose another, or wait", done["err"])) == refused
    ends_equal(tmp_path / "run", tmp_path / "killed")


def test_of_two_preparations_of_one_folder_one_is_refused(tmp_path: Path) -> None:
    jobs = []
    for name in ("one", "other"):
        (tmp_path / name).write_text(f"the text of {name}\n" * 20_000)
        command = ["prepare.py", "--input", str(tmp_path / name), "--tokenizer=char", f"--out={tmp_path / 'data'}"]
        jobs.append({"argv": command})
    done, refused = sorted(forked(jobs)[0], key=lambda end: end["code"])
    assert (done["code"], refused["code"]) == (0, 2) and "Traceback" not in done["err"]
    assert re.fullmatch(r"prepare.py: \S+ holds other data \(.*\): --overwrite .*\n", refused["err"])
