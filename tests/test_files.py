"""Files, folders and locks of m3/files.py."""

from pathlib import Path

import pytest

from m3.files import atomic_file, atomic_folder, check_model_name, lock, write_text


def test_an_error_leaves_the_file_that_was_there(tmp_path: Path) -> None:
    write_text(tmp_path / "new" / "a.txt", "one\r\n")
    with pytest.raises(KeyboardInterrupt), atomic_file(tmp_path / "new" / "a.txt") as temporary:  # noqa: PT012
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert [path.read_bytes() for path in (tmp_path / "new").iterdir()] == [b"one\r\n"]


def test_a_folder_that_is_resumed_goes_on_with_what_there_is(tmp_path: Path) -> None:
    dest = tmp_path / "copy"
    with pytest.raises(KeyboardInterrupt), atomic_folder(dest, is_resumed=True) as folder:  # noqa: PT012
        (folder / "first").touch()
        raise KeyboardInterrupt
    assert not dest.exists()
    with atomic_folder(dest, is_resumed=True) as folder:
        (folder / "second").touch()
    assert sorted(path.name for path in dest.iterdir()) == ["first", "second"]
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


def test_a_lock_is_held_once(tmp_path: Path) -> None:
    with (
        lock(tmp_path / "new" / ".lock", "in use"),
        pytest.raises(ValueError, match="^in use$"),
        lock(tmp_path / "new" / ".lock", "in use"),
    ):
        pass
    with lock(tmp_path / "new" / ".lock", "in use"):
        pass


@pytest.mark.parametrize("name", ["nope", "./nope", "/no/such/folder", "a/b/c", "../a"])
def test_what_is_neither_here_nor_an_id_of_the_hub_is_refused_at_once(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}: no such folder .looked from .*owner/name"):
        check_model_name(name)


def test_what_is_here_or_may_be_on_the_hub_is_let_through(tmp_path: Path) -> None:
    for name in (tmp_path, "mucai/llava-v1.5-7b-m3", "owner/name"):
        check_model_name(name)
