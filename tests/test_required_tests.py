"""A skip is a failure where no test may be left out."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import required_tests

FILES = {
    "test_one.py": "import pytest\ndef test_it(): pytest.skip('no Chromium')\ndef test_fine(): "
    "pass\n",
    "test_file.py": "import pytest\npytest.importorskip('no_such_package')\ndef test_it(): pass\n",
    "test_mark.py": "import pytest\n@pytest.mark.skipif(True, reason='deepspeed is not here')\ndef "
    "test_it(): pass\n",
    "test_known.py": "import pytest\ndef test_it(): pytest.skip('pdflatex is not installed')\n",
    "test_xfail.py": "import pytest\n@pytest.mark.xfail\ndef test_it(): assert False\n",
}


def run(folder: Path, name: str, required: str) -> tuple[int, str]:
    """Exit code and output of pytest with these hooks alone."""
    (folder / name).write_text(FILES[name])
    (folder / "pytest.ini").write_text("[pytest]\n")
    path = {"PYTHONPATH": str(Path(required_tests.__file__).parent), "M3_REQUIRE": required}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "required_tests",
        "-p",
        "no:cacheprovider",
        name,
    ]
    process = subprocess.run(
        command, cwd=folder, env=os.environ | path, capture_output=True, text=True, timeout=120
    )
    return process.returncode, process.stdout


@pytest.mark.parametrize("name", FILES)
def test_what_is_required_must_run(name: str, tmp_path: Path) -> None:
    code, output = run(tmp_path, name, "everything")
    is_allowed = name in ("test_known.py", "test_xfail.py")
    assert (code == 0) is is_allowed
    assert ("was skipped in a run that leaves no test out" in output) is not is_allowed


def test_elsewhere_a_skip_is_a_skip(tmp_path: Path) -> None:
    code, output = run(tmp_path, "test_one.py", "")
    assert code == 0
    assert "1 passed, 1 skipped" in output


def test_the_browser_may_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    browser = tmp_path / "my-chromium"
    browser.write_text("#!/bin/sh\n")
    browser.chmod(0o755)
    monkeypatch.setenv("M3_CHROMIUM", str(browser))
    assert required_tests.find_browser() == str(browser)
