"""`m3 data fetch-eval SUITE --data-root DIR`: local copies of data, for machines without a network
(`m3 sweep --data-root`).

In: names of suites or tasks. Out: `DIR/NAME/`, the hub's repository of each data set, and its
videos unpacked where the harness's tasks look for them (local_data.py).
"""

import argparse
import logging
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled
from requests import ConnectionError as NoConnection

from m3.evaluation.harness.local_data import Data, read_task
from m3.evaluation.harness.tasks import find_tasks, tasks_folder
from m3.evaluation.suites import suites

logger = logging.getLogger(__name__)
Download = Callable[[str, Path], None]
UNREACHABLE = (OfflineModeIsEnabled, LocalEntryNotFoundError, HfHubHTTPError, NoConnection, OSError)


def main(argv: list[str]) -> int:
    """Fetches what is not there yet.

    0: all is there; ValueError: the hub cannot be reached, and what to do then.
    """
    parser = argparse.ArgumentParser(
        prog="m3 data fetch-eval",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument(
        "names",
        nargs="+",
        metavar="SUITE",
        help=f"suites ({', '.join(suites())}) or tasks of lmms-eval",
    )
    parser.add_argument("--data-root", type=Path, required=True, help="folder for the copies")
    parser.add_argument(
        "--include-path", type=Path, default=Path("lmms_eval_tasks"), help="folder with own tasks"
    )
    arguments = parser.parse_args(argv)
    include = tasks_folder(arguments.include_path)
    fetch(arguments.names, arguments.data_root, include, from_hub)
    return 0


def fetch(names: list[str], root: Path, include: Path | None, download: Download) -> list[Path]:
    """The folders of all data sets, those that were there included."""
    tasks = [
        task
        for name in names
        for task in ([t.task for t in suites()[name].tasks] if name in suites() else [name])
    ]
    data = {Data.of(read_task(file.path)) for file in find_tasks(tasks, include)}
    remote = sorted((one for one in data if one.is_remote), key=lambda one: one.dataset)
    if not remote:
        logger.info(
            "%s: the data are in the repository, there is nothing to fetch", ", ".join(names)
        )
    folders = []
    for one in remote:
        folder = root / Path(one.dataset).name
        if not folder.is_dir():
            aside = root / f".{folder.name}.partial"  # a killed download goes on there
            logger.info("fetching %s", one.dataset)
            download(one.dataset, aside)
            aside.rename(folder)
        if one.videos is not None and not (root / one.videos).is_dir():
            unpack(folder, root / one.videos)
        folders.append(folder)
        logger.info("%s is in %s", one.dataset, folder)
    return folders


def from_hub(dataset: str, folder: Path) -> None:
    """Downloads a repository of the hub.

    Raises:
        ValueError: it cannot be reached, or needs an account.
    """
    try:
        snapshot_download(dataset, repo_type="dataset", local_dir=folder)
    except UNREACHABLE as error:
        raise ValueError(
            f"{dataset} cannot be fetched from the hub ({type(error).__name__}: "
            f"{str(error).splitlines()[0]}). Without a "
            "network: fetch on a machine that has one and copy the folder. With one: unset "
            "HF_HUB_OFFLINE; for data sets that "
            "ask for consent, accept on huggingface.co and run `hf auth login`"
        ) from error


def extract(archive: tarfile.TarFile, member: tarfile.TarInfo, folder: Path) -> None:
    """One file (of a link, what it points at), never outside `folder`; folders come with their
    files.
    """
    try:
        content = archive.extractfile(member)
    except KeyError as error:
        raise ValueError(
            f"{archive.name}: {member.name} is a link to {member.linkname}, which is not in the "
            "archive"
        ) from error
    if content is None:
        return
    place = (folder / member.name).resolve()
    if not place.is_relative_to(folder.resolve()):
        raise ValueError(
            f"{archive.name}: {member.name} would be written outside of {folder}; the "
            "archive is not safe"
        )
    place.parent.mkdir(parents=True, exist_ok=True)
    with content, place.open("wb") as file:
        shutil.copyfileobj(content, file)


def unpack(folder: Path, target: Path) -> None:
    """Unpacks all archives of a repository into `target`; parts of one archive (`x.tar.partaa`,
    ...) are joined first.
    """
    aside = target.with_name(f".{target.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    parts: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix == ".zip":
            with zipfile.ZipFile(path) as archive:
                archive.extractall(aside)
        elif ".tar" in path.name and path.is_file():
            parts.setdefault(f"{path.parent}/{path.name.split('.tar')[0]}", []).append(path)
    for pieces in parts.values():
        whole = pieces[0]
        if len(pieces) > 1:
            whole = aside / "joined.tar"
            with whole.open("wb") as joined:
                for piece in pieces:
                    with piece.open("rb") as part:
                        shutil.copyfileobj(part, joined)
        with tarfile.open(whole) as archive:
            for member in archive:  # `extractall(filter="data")` came with Python 3.11.4
                extract(archive, member, aside)
    (aside / "joined.tar").unlink(missing_ok=True)
    if not any(aside.iterdir()):
        # videos lie in the repository as they are
        shutil.copytree(folder, aside, dirs_exist_ok=True, symlinks=True)
    aside.rename(target)
