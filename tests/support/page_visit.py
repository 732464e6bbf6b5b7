"""An open page of `m3 serve --ui` in a browser, for its tests."""

import json
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from required_tests import BROWSER
from serving_files import PATIENCE, wait_until

playwright = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed (extra: dev)"
)


class Visit:
    """An open page, what it complained about and what it asked the network for."""

    def __init__(
        self,
        browser: Any,
        address: str,
        width: int = 1280,
        scheme: str = "light",
        height: int = 900,
    ) -> None:
        viewport = {"width": width, "height": height}
        context = browser.new_context(viewport=viewport, color_scheme=scheme)
        self.page, self.address, self.said, self.asked = context.new_page(), address, [], []
        self.bodies: list[dict[str, Any]] = []
        self.page.set_default_timeout(PATIENCE * 1000)
        self.page.on("console", self._hear)
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", self._note)
        self.page.goto(f"{address}/ui")

    def _hear(self, message: Any) -> None:
        """What the server refuses is told of in the console too."""
        if message.type == "error" and "Failed to load resource" not in message.text:
            self.said.append(message.text)

    def _note(self, request: Any) -> None:
        self.asked.append(request.url)
        if request.url.endswith("/v1/chat/completions"):
            self.bodies.append(json.loads(request.post_data))

    def upload(self, *files: Path) -> None:
        """In the place of what was there."""
        while self.page.get_by_label("Remove").count():
            self.page.get_by_label("Remove").first.click()
        self.page.set_input_files("#files", files)
        playwright.expect(self.page.get_by_label("Remove")).to_have_count(len(files))

    def ask(self, question: str) -> None:
        self.page.get_by_label("Question", exact=True).fill(question)
        self.page.click("#ask")

    def compare(self, question: str) -> None:
        self.page.get_by_label("Question", exact=True).fill(question)
        self.page.click("#compare")
        self.rest("#cards")

    def has(self, element: Any, **properties: str) -> None:
        """Waits until it has them: `value`, or an attribute of it."""
        for name, expected in properties.items():
            if name == "value":
                playwright.expect(element).to_have_value(expected, timeout=PATIENCE * 1000)
            else:
                playwright.expect(element).to_have_attribute(
                    name, expected, timeout=PATIENCE * 1000
                )

    def close(self) -> None:
        """With what it still has under way, or the next visit finds no place."""
        self.page.context.close()
        wait_until(lambda: counted(self.address, "m3_requests_running") == 0)

    def rest(self, part: str) -> None:
        self.page.locator(f"{part}[aria-busy=false]").wait_for()

    def says(self, text: str) -> None:
        playwright.expect(self.page.locator("#message")).to_contain_text(
            text, timeout=PATIENCE * 1000
        )

    def writes(self) -> None:
        """Waits until there is some of the last answer."""
        self.page.wait_for_function(
            "() => [...document.querySelectorAll('.said .answer')].at(-1)?.innerText.length > 20"
        )

    def save(self, name: str, folder: Path) -> Path:
        with self.page.expect_download() as found:
            self.page.get_by_role("button", name=name).click()
        found.value.save_as(folder / found.value.suggested_filename)
        return folder / found.value.suggested_filename

    def options(self, **values: int) -> None:
        if not self.page.locator("details[open]").count():
            self.page.get_by_text("More settings", exact=True).click()
        for name, value in values.items():
            self.page.locator(f"#{name}").fill(str(value))

    @property
    def talk(self) -> str:
        return self.page.locator("#log").inner_text()


@contextmanager
def open_browser() -> Iterator[Any]:
    """Chromium with a camera that is none."""
    with playwright.sync_playwright() as browsers:
        camera = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
        yield browsers.chromium.launch(
            executable_path=BROWSER, args=["--no-sandbox", *camera], timeout=PATIENCE * 1000
        )


def counted(address: str, name: str) -> float:
    lines = (
        urllib.request.urlopen(f"{address}/metrics", timeout=PATIENCE).read().decode().splitlines()
    )
    return sum(float(line.split()[-1]) for line in lines if line.startswith(name))


def until(address: str, name: str, expected: float) -> None:
    wait_until(lambda: counted(address, name) == expected)
