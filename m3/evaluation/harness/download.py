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

from httpx2 import TransportError
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

from m3.command_line import CommandLine
from m3.evaluation.harness.local_data import Data, read_task
from m3.evaluation.suites import suites
from m3.files import atomic_folder

logger = logging.getLogger(__name__)
Download = Callable[[str, Path], None]
UNREACHABLE = (
    OfflineModeIsEnabled,
    LocalEntryNotFoundError,
    HfHubHTTPError,
    TransportError,
    OSError,
)


def main(argv: list[str]) -> int:
    """Fetches what is not there yet.

    0: all is there; ValueError: the hub cannot be reached, and what to do then.
    """
    parser = CommandLine(
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
    # the harness is imported once the command line is known to be good
    from m3.evaluation.harness.tasks import tasks_folder

    include = tasks_folder(arguments.include_path)
    fetch(arguments.names, arguments.data_root, include, from_hub)
    return 0


def fetch(
    suite_names: list[str], root: Path, include: Path | None, download: Download
) -> list[Path]:
    """The folders of all data sets, those that were there included."""
    from m3.evaluation.harness.tasks import find_tasks

    tasks = [
        task
        for suite_name in suite_names
        for task in (
            [t.task for t in suites()[suite_name].tasks] if suite_name in suites() else [suite_name]
        )
    ]
    remote_data = {Data.of(read_task(task_file.path)) for task_file in find_tasks(tasks, include)}
    remote = sorted(
        (data_set for data_set in remote_data if data_set.is_remote),
        key=lambda data_set: data_set.dataset,
    )
    if not remote:
        logger.info(
            "%s: the data are in the repository, there is nothing to fetch", ", ".join(suite_names)
        )
    folders = []
    for data_set in remote:
        target_folder = root / Path(data_set.dataset).name
        if not target_folder.is_dir():
            logger.info("fetching %s", data_set.dataset)
            with atomic_folder(target_folder, is_resumed=True) as partial_folder:
                download(data_set.dataset, partial_folder)
        if data_set.videos is not None and not (root / data_set.videos).is_dir():
            unpack(target_folder, root / data_set.videos)
        folders.append(target_folder)
        logger.info("%s is in %s", data_set.dataset, target_folder)
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
        member_content = archive.extractfile(member)
    except KeyError as error:
        raise ValueError(
            f"{archive.name}: {member.name} is a link to {member.linkname}, which is not in the "
            "archive"
        ) from error
    if member_content is None:
        return
    target_file = (folder / member.name).resolve()
    if not target_file.is_relative_to(folder.resolve()):
        raise ValueError(
            f"{archive.name}: {member.name} would be written outside of {folder}; the "
            "archive is not safe"
        )
    target_file.parent.mkdir(parents=True, exist_ok=True)
    with member_content, target_file.open("wb") as open_file:
        shutil.copyfileobj(member_content, open_file)


def unpack(folder: Path, target: Path) -> None:
    """Unpacks all archives of a repository into `target`; parts of one archive (`x.tar.partaa`,
    ...) are joined first.
    """
    with atomic_folder(target) as unfinished_folder:
        _extract_all(folder, unfinished_folder)


def _extract_all(folder: Path, target: Path) -> None:
    archive_parts: dict[str, list[Path]] = {}
    for archive_path in sorted(folder.rglob("*")):
        if archive_path.suffix == ".zip":
            with zipfile.ZipFile(archive_path) as archive:
                archive.extractall(target)
        elif ".tar" in archive_path.name and archive_path.is_file():
            archive_parts.setdefault(
                f"{archive_path.parent}/{archive_path.name.split('.tar')[0]}", []
            ).append(archive_path)
    for pieces in archive_parts.values():
        whole_archive = pieces[0]
        if len(pieces) > 1:
            whole_archive = target / "joined.tar"
            with whole_archive.open("wb") as joined:
                for piece in pieces:
                    with piece.open("rb") as open_part:
                        shutil.copyfileobj(open_part, joined)
        with tarfile.open(whole_archive) as archive:
            for member in archive:  # `extractall(filter="data")` came with Python 3.11.4
                extract(archive, member, target)
    (target / "joined.tar").unlink(missing_ok=True)
    if not any(target.iterdir()):
        # videos lie in the repository as they are
        shutil.copytree(folder, target, dirs_exist_ok=True, symlinks=True)
