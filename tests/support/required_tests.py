"""Tests that a run must not leave out: with M3_REQUIRE set, a skip is a failure unless it is one of
those that are known.

`.ci/run` sets it, so that a machine without a browser, DeepSpeed or what the server needs cannot be
green. Also where the browser is that tests open pages in.
"""

import os
import shutil
from collections.abc import Generator

import pytest

OPTIONAL = {
    "torchao": "not pinned: transformers imports it always, noisily",
    "liger": "its kernels are for GPUs",
    "needs a CUDA device": "run by hand on a machine that has one: docs/training_at_scale.md",
    "pdflatex": "a gigabyte, for one look at a table",
    "systemd-analyze": "not in containers",
    "versions of Python lay out help": "compared with the tested version",
    "wandb is installed": "the other side of a test",
    "for a CPU": "the other side of a test",
    "on CPUs alone": "the other side of a test",
}
"""Words in the reason of a skip that is allowed everywhere -> why."""


def find_browser() -> str | None:
    """Chromium or Chrome: the one that M3_CHROMIUM names, else the first on the PATH."""
    names = (os.environ.get("M3_CHROMIUM"), "chromium", "chromium-browser", "google-chrome")
    return next((path for name in names if name and (path := shutil.which(name))), None)


BROWSER = find_browser()
needs_browser = pytest.mark.skipif(
    BROWSER is None, reason="no Chromium: apt-get install chromium, or name it by M3_CHROMIUM"
)


def _fail_if_required(report: pytest.CollectReport | pytest.TestReport) -> None:
    is_expected_failure = "wasxfail" in vars(report)
    if not report.skipped or is_expected_failure or not os.environ.get("M3_REQUIRE"):
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    if not any(words in reason for words in OPTIONAL):
        report.outcome = "failed"
        report.longrepr = (
            f"{report.nodeid} was skipped in a run that leaves no test out (M3_REQUIRE): {reason}"
        )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Of a test that skips itself."""
    report = yield
    _fail_if_required(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Of a file that is skipped as a whole."""
    report = yield
    _fail_if_required(report)
    return report
