"""`m3 bench serve`: a whole run over a small model with a router; what a round of a comparison counts."""

from collections import Counter
from pathlib import Path

import pytest
from tiny_models import make_model
from transformers import SiglipImageProcessorPil

from m3.bench.command import main
from m3.bench.serve_compare import FIGURES, Round
from m3.bench.serve_load import RequestResult, renew_picture
from m3.data.synthetic.tokenizer import build_tokenizer
from m3.processing import M3Processor, load_image


@pytest.fixture
def routed_folder(tmp_path: Path) -> Path:
    """A checkpoint of random weights with a router that takes the cheapest budget at `auto:0.8`."""
    nesting = {"kind": "grid_pool", "trained_scales": ["1@24", "36@24", 36, 144]}
    image_processor = SiglipImageProcessorPil(size={"height": 48, "width": 48})
    processor = M3Processor(image_processor, build_tokenizer(), grid=(12, 12), nesting=nesting)
    choice = {
        "budgets": ["1@24", "36@24", 36, 144],
        "view": 24,
        "target": "loss_gap",
        "costs": [0.1, 0.3, 0.6, 1.0],
        "prices": [[0.8, 1e9], [1.0, 0.0]],
        "width": 16,
        "heads": 2,
    }
    model = make_model(
        vocab_size=len(processor.tokenizer),
        image_token_id=processor.image_token_id,
        nesting=nesting,
        budget_choice=choice,
    )
    model.save_pretrained(tmp_path / "routed")
    processor.save_pretrained(tmp_path / "routed")
    return tmp_path / "routed"


def test_figures_of_a_round() -> None:
    results = [RequestResult(9, seconds, None, True, "") for seconds in (1.0, 2.0, 3.0)]
    measured = Round(results, 6.0, 4.5, Counter())
    figures = [round(figure(measured), 6) for figure in FIGURES.values()]
    assert figures == [2.0, 2.8, 0.5, 6.0, 4.5]
    assert FIGURES["seconds of a request, p50"](Round(results[:1], 1.0, 1.0, Counter())) == 1.0


def test_a_renewed_picture_is_the_same_picture_in_another_file() -> None:
    png = Path("m3/serving/ui/examples/count.png").read_bytes()
    first, second = renew_picture(png), renew_picture(png)
    assert len({png, first, second}) == 3
    assert load_image(first).tobytes() == load_image(second).tobytes() == load_image(png).tobytes()


@pytest.mark.slow
def test_a_run_compares_a_choice_with_the_largest(
    routed_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = ["--pictures", "1", "--clients", "3", "--minutes", "0.05", "--rounds", "2"]
    scales = ["--scales", "1@24,auto,auto:rule,36+1", "--against-largest", "auto:0.8"]
    options = [*sizes, *scales, "--max-tokens", "4"]
    assert main(["serve", "--model", str(routed_folder), *options]) == 0
    text = capsys.readouterr().out
    assert "questions at scales ['1@24', 'auto', 'auto:rule', '36+1']" in text
    assert "all at auto:0.8 against all at 144: " in text
    table = [line for line in text.splitlines() if line.startswith(tuple(FIGURES))]
    assert len(table) == len(FIGURES)
    for line in table:
        first, second, ratio = (float(cell) for cell in line.split("(")[0].split()[-3:])
        assert ratio == pytest.approx(first / second, abs=0.05 + 0.1 * ratio)
    (chosen,) = [line for line in text.splitlines() if "all rounds, auto:0.8: " in line]
    assert chosen.endswith(" at 1@24") and "," not in chosen.partition(": ")[2]
    assert "0 errors, 0 answers that differ" in text
