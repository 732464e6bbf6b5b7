"""What axe-core, the accessibility checker, finds wrong with a page that is open in a browser."""

from typing import Any

import pytest


def violations(page: Any) -> list[str]:
    """What axe-core finds wrong with a page as it is now: rule, element and advice."""
    axe = pytest.importorskip(
        "axe_playwright_python.sync_playwright", reason="axe is not installed (extra: dev)"
    )
    rules = {"target-size": {"enabled": True}}
    found = axe.Axe().run(page, options={"rules": rules}).response
    assert len(found["passes"]) > 10, "it looked at the page"
    return [
        f"{violation['id']}: {node['html'][:200]} {node['failureSummary']}"
        for violation in found["violations"]
        for node in violation["nodes"]
    ]
