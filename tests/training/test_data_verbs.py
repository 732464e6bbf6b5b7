"""`m3 data check` and `m3 data show` on recipes that are clean and broken; what a run leaves out
is counted.
"""

import json
import os
import re
import subprocess
import tarfile
from html.parser import HTMLParser
from pathlib import Path

import datasets
import numpy as np
import pytest
from format_files import COUNT, WRITERS, picture, pictures, talk
from required_tests import BROWSER, needs_browser
from small_checkpoint import save_small

from m3.cli import main
from m3.config import load
from m3.data.length_balancing import read_lengths
from m3.data.mixture import read_mixture
from m3.training.loop.run_folder import RunFolder
from m3.training.recipe.recipe import Recipe

RECIPE = """
run: {folder}/run
model: {model}
matryoshka_vis_token_scale: [1, 9]
parts: {{vision_tower: frozen, connector: 1e-3, decoder: frozen}}
schedule: {{batch_size: 2, steps: 8, log_every: 3, save_every: 4}}
hardware: {{threads: 1}}
data:
  pack_length: 200
  sources:
"""
OPTIONS = ("path", "format", "image_folder", "chunk_bytes", "split", "take")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def recipe(folder: Path, *sources: str) -> Path:
    path = folder / "recipe.yaml"
    text = RECIPE.format(folder=folder, model=save_small(folder / "model")) + "".join(
        f"    - {{{source}}}\n" for source in sources
    )
    path.write_text(text)
    return path


def written(folder: Path, *names: str) -> list[str]:
    """Files of these formats, and what a recipe says of them."""
    rows = []
    for name in names:
        (folder / name).mkdir()
        source, _ = WRITERS[name](folder / name)
        options = {option: getattr(source, option) for option in OPTIONS}
        rows.append(
            ", ".join(f"{key}: {value}" for key, value in options.items() if value is not None)
        )
    return rows


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """One of everything that can be wrong, beside a source that is whole."""
    folder = tmp_path / "broken"
    pictures(folder)
    (folder / "torn.png").write_bytes(picture(1)[:60])
    ask = [{"from": "human", "value": "hi <b>there</b> " * 40}, {"from": "gpt", "value": "x"}]
    records = [
        {"id": "a", "image": "none.png", "conversations": talk(0)},
        {"id": "b", "conversations": talk(0)},
        {
            "id": "c",
            "conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": " "}],
        },
        {"id": "d", "image": "torn.png", "conversations": talk(0)},
        {"id": "d", "image": "0.png", "conversations": talk(0)},
        {"id": "e", "conversations": ask},
    ]
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (folder / "data.jsonl").write_text(
        lines + '{"id":\n' + json.dumps({"id": "f", "conversations": ask}) + "\n"
    )
    return recipe(
        tmp_path, *written(tmp_path, "caption_tar"), f"path: {folder}/data.jsonl, weight: 0.5"
    )


WRONG = [
    r"record: 2 x the record cannot be read",
    r"data\.jsonl, line 3: sample 'c': the answer in turn 1 is empty",
    r"data\.jsonl, line 7: not valid JSON",
    r"marks: 1 x .*\n    .*line 2: sample 'b': 1 <image> marks in the user's turns but 0 images",
    r"missing: 1 x an image file is missing\n    sample 'a': .*none\.png: no such image file",
    r"image: 1 x .*\n    sample 'd': .*torn\.png: the image data is damaged or cut short",
    r"too_long: 2 x does not fit a row\n    sample 'e' has \d+ tokens, the limit is 200",
    r"duplicate_id: 1 x .*\n    .*record 4: the id 'd' stands twice",
    r"duplicate: 1 x the same sample stands twice \(a notice\)\n    .*record 7: the same texts and "
    r"images came before",
    r"8 problems: 2 record, 1 marks, 1 missing, 1 image, 2 too_long, 1 duplicate_id",
]


@pytest.mark.parametrize("workers", [0, 2])
def test_check_names_all_that_is_wrong(
    broken: Path, workers: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "check", str(broken), "--workers", str(workers)]) == 1
    shown = capsys.readouterr().out
    assert [line for line in WRONG if not re.search(line, shown)] == []
    assert re.search(r"llava_json:\S+ +8 +3 +4 +8\n", shown), "samples, images, per pass, problems"
    assert re.search(r"caption_tar:\S+ +9 +\d+\.\d +15 +15 +15 +15\n", shown), (
        "lengths at 9 tokens per image"
    )


def test_check_of_what_the_recipe_leaves_out_anyway(
    broken: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = ["data.broken=skip", "data.too_long=drop"]
    assert main(["data", "check", str(broken), *told]) == 1
    assert "1 problem: 1 duplicate_id" in capsys.readouterr().out
    assert (
        main(["data", "check", str(broken), *told, "--allow", "duplicate_id", "--messages", "1"])
        == 0
    )
    shown = capsys.readouterr().out
    assert "all is well" in shown
    assert "... and 1 more" in shown
    assert main(["data", "check", str(broken), "--allow", "everything"]) == 2
    assert "no such kind of problem: everything. Known: source, record" in capsys.readouterr().err


def test_check_of_a_source_that_cannot_be_opened(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = recipe(tmp_path, "path: nowhere.json", *written(tmp_path, "text_jsonl"))
    assert main(["data", "check", str(path)]) == 1
    shown = capsys.readouterr().out
    assert "source: 1 x the source cannot be opened\n    nowhere.json: no such data file" in shown
    assert re.search(r"text_jsonl:\S+ +any ", shown), "the others are looked at all the same"


def test_check_reads_the_held_out_samples_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    held_out = f"held_out={{every: 1, source: {{path: {tmp_path}/nowhere.json}}}}"
    path = recipe(tmp_path, *written(tmp_path, "text_jsonl"))
    assert main(["data", "check", str(path)]) == 0
    assert main(["data", "check", str(path), held_out]) == 1
    assert "nowhere.json: no such data file" in capsys.readouterr().out


def test_check_of_every_format_is_clean_and_keeps_lengths(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = written(tmp_path, *WRITERS)
    path = recipe(tmp_path, *rows)
    lengths = tmp_path / "lengths.npz"
    assert main(["data", "check", str(path), "--headers", "--lengths", str(lengths)]) == 0
    shown = capsys.readouterr().out
    assert "all is well" in shown
    names = re.findall(r"^(\w+:\S+) +4 +\d", shown, re.MULTILINE)
    assert len(names) == len(WRITERS)
    found = read_lengths(lengths, names)
    assert all(len(costs) == COUNT and costs.min() > 0 for costs in found)
    conversation = found[names.index(next(name for name in names if name.startswith("llava_json")))]
    assert np.ptp(conversation) == 0
    data = load(path, Recipe, [f"data.lengths={lengths}"]).data
    mixture = read_mixture(data, seed=0, step_samples=8, steps=3, devices=2, batch_size=4)
    costs = [int(found[source][record]) for source, record in map(mixture.record_at, range(24))]
    for step in (costs[:8], costs[8:16], costs[16:]):
        assert abs(sum(step[:4]) - sum(step[4:])) <= max(step), "what a recipe's lengths are for"


def test_check_lists_what_is_not_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = written(tmp_path, "text_jsonl", "interleaved_jsonl", "text_files", "caption_tar")
    with tarfile.open(tmp_path / "caption_tar" / "captions.tar", "a") as tar:
        tar.add(tmp_path / "text_files" / "a.py", "._a.png")
    assert main(["data", "check", str(recipe(tmp_path, *rows)), "--headers"]) == 0
    last = capsys.readouterr().out.splitlines()[-4:]
    assert re.search(r"^not used of text_jsonl:\S+: meta \(4 x\)$", last[0])
    assert re.search(
        r"^not used of interleaved_jsonl:\S+: image_info\.(matched_sim|raw_url) \(4 x\), "
        r"image_info\.",
        last[1],
    )
    assert re.search(r"^not used of text_files:\S+: files \.png \(1 x\)$", last[2])
    assert re.search(
        r"^not used of caption_tar:\S+: similarity \(2 x\), hidden members and those "
        r".* \(1 x\)$",
        last[3],
    )


def test_a_run_skips_drops_and_counts(broken: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """8 steps of 2 samples: two passes over 4 captions and the half of 8 records, the same half
    each time.
    """
    told = ["data.broken=skip", "data.too_long=drop", "run=" + str(broken.parent / "run")]
    assert main(["train", str(broken), *told]) == 0
    rows = RunFolder(broken.parent / "run").read_metrics()
    assert [row["step"] for row in rows] == [3, 4, 6, 8], "a line before every checkpoint"
    counted = [
        sum(int(row[name]) for row in rows) for name in ("left_out_broken", "left_out_too_long")
    ]
    assert sum(counted) >= 4, "at most one of the eight records is whole"
    assert all(count % 2 == 0 for count in counted), "the same half in both passes"
    assert main(["train", str(broken), f"run={broken.parent}/refused", "data.too_long=drop"]) == 2
    assert re.search(r"broken/(data\.jsonl, line \d|none\.png|torn\.png)", capsys.readouterr().err)


class Page(HTMLParser):
    """Texts by the class of their element, and whether anything is loaded from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, list[str]] = {}
        self.sources: list[str] = []
        self.tags: set[str] = set()
        self._class = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.tags.add(tag)
        self._class = values.get("class") or ""
        self.sources += [value for name in ("src", "href") if (value := values.get(name))]

    def handle_data(self, data: str) -> None:
        self.found.setdefault(self._class, []).append(data)


def test_show_is_what_is_trained(broken: Path) -> None:
    out = broken.parent / "pages" / "page.html"
    assert (
        main(["data", "show", str(broken), "--out", str(out), "-n", "16", "schedule.seed=3"]) == 0
    )
    page = Page()
    page.feed(out.read_text())
    assert "script" not in page.tags
    assert all(source.startswith("data:image/jpeg;base64,") for source in page.sources)
    assert len(page.sources) >= 8, "four captions in each of two passes"
    assert {"the red one<|im_end|>", "the green one<|im_end|>"} <= set(page.found["learned"])
    assert page.found["image"].count("image 1") == len(page.sources) + 1, "and once in the legend"
    assert any("Not trained" in text for text in page.found["error"])
    assert "<b>there</b>" not in out.read_text(), "what data says is escaped"
    assert main(["data", "show", str(broken), "--out", str(out), "-n", "2", "--from", "15"]) == 0
    assert out.read_text().count("<section") == 1, "the mixture ends at position 15"


@needs_browser
def test_the_page_opens_in_a_browser(tmp_path: Path) -> None:
    path, out = recipe(tmp_path, *written(tmp_path, "llava_json")), tmp_path / "page.html"
    assert main(["data", "show", str(path), "--out", str(out), "-n", "4"]) == 0
    command = [
        str(BROWSER),
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={tmp_path}/profile",
        "--dump-dom",
    ]
    environment = os.environ | {"HOME": str(tmp_path)}
    shown = subprocess.run(
        [*command, out.as_uri()],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
        env=environment,
    )
    assert shown.stdout.count('class="good"') == 4
