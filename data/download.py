"""Files from the internet, pinned by sha256 or by revision; DATA_MIRROR=<folder> is looked in before any download."""

import json
import os
import shutil
import urllib.request
from pathlib import Path
from typing import NamedTuple

from data.manifest import DataError, expand, file_sha256, reading, replacing

CACHE = Path(__file__).parent / ".cache"
HUB = "https://huggingface.co"


def mirrored(name: str) -> Path | None:
    """The path of a file or folder of DATA_MIRROR; None where it is not there."""
    mirror = os.environ.get("DATA_MIRROR")
    path = expand(mirror or "") / name
    with reading(path):
        return path if mirror and path.exists() else None


def fetch(filename: str, url: str, sha256: str) -> Path:
    """The path of a pinned file: from DATA_MIRROR, from an earlier download, or downloaded now.

    Raises:
        DataError: the file has another checksum, or there is neither a copy of it nor a network.
    """
    path = mirrored(filename) or CACHE / filename
    if path.is_file():
        _check(path, sha256, f"put the file from {url} there")
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with urllib.request.urlopen(url, timeout=60) as response, replacing(path) as file:
            shutil.copyfileobj(response, file)
            file.flush()
            _check(Path(file.name), sha256, f"{url} has changed; put a copy of the pinned file into DATA_MIRROR")
    except OSError as e:  # urllib's errors are OSErrors; so is a full disk
        mirror = os.environ.get("DATA_MIRROR")
        where = f"{filename} is not in DATA_MIRROR={mirror}" if mirror else "DATA_MIRROR is not set"
        raise DataError(
            f"could not download {url} ({e}), and {where}: save the file as {path},"
            f" or as {filename} in a folder and set DATA_MIRROR to it (sha256 {sha256[:16]}...)"
        ) from None
    return path


def _check(path: Path, sha256: str, remedy: str) -> None:
    if (found := file_sha256(path)) != sha256:
        raise DataError(f"{path} has sha256 {found[:16]}..., expected {sha256[:16]}...: {remedy}")


class HubFile(NamedTuple):
    """A file of a data set on the Hugging Face hub; Path(file) downloads it, where it is not there yet."""

    filename: str  # "<repository>/<path in it>"
    url: str
    sha256: str
    size: int  # bytes

    @property
    def name(self) -> str:
        return self.filename.rsplit("/", 1)[-1]

    def __fspath__(self) -> str:
        return str(fetch(self.filename, self.url, self.sha256))


def hub_files(repository: str, revision: str, prefix: str = "") -> list[Path | HubFile]:
    """The parquet files of a data set of the hub whose path begins with `prefix`, sorted.

    DATA_MIRROR/<repository>/ is taken for a copy of the whole repository at that revision. Plain HTTP: the hub's own
    client retries for half a minute before it says that there is no network.

    Raises:
        DataError: no such files, or neither a copy of them nor a network.
    """
    files: list[Path | HubFile] = []
    if copy := mirrored(repository):
        where = str(copy)
        paths = sorted(copy.rglob("*.parquet"))
        files += [path for path in paths if path.relative_to(copy).as_posix().startswith(prefix)]
    else:
        where = f"{HUB}/api/datasets/{repository}/tree/{revision}?recursive=true"
        try:
            with urllib.request.urlopen(where, timeout=60) as response:
                entries = json.load(response)
        except (OSError, ValueError) as e:  # no network; an answer that is not the hub's
            only = f" --include '{prefix}*'" if prefix else ""
            raise DataError(
                f"could not reach {HUB} ({e}): on a machine with internet run `hf download {repository} --repo-type"
                f" dataset --revision {revision}{only} --local-dir mirror/{repository}`, and set DATA_MIRROR to that"
                " `mirror`"
            ) from None
        for entry in sorted(entries, key=lambda entry: entry["path"]):
            path = entry["path"]
            if path.startswith(prefix) and path.endswith(".parquet"):
                url = f"{HUB}/datasets/{repository}/resolve/{revision}/{path}"
                files.append(HubFile(f"{repository}/{path}", url, entry["lfs"]["oid"], entry["size"]))
    if not files:
        raise DataError(f"{where} has no parquet file {prefix}*: get revision {revision} of {repository}")
    return files
