"""`m3 chat` as a user types it: once, through a pipe, with every way of loading; and its
mistakes.
"""

import io
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForImageTextToText

from m3.cli import main
from m3.inference import Conversation, Generation
from m3.inference.chat import chat_options, input_lines
from m3.inference.command import read_arguments
from m3.inference.cost_table import explain_costs
from m3.inference.repl import Visual
from m3.model import M3ForConditionalGeneration
from m3.processing import M3Processor
from m3.processing.video import Sampling

ROOT = Path(__file__).resolve().parents[2]
Loaded = tuple[M3ForConditionalGeneration, M3Processor]


def chat(checkpoint: Path, *arguments: str | Path) -> int:
    return main(
        [
            "chat",
            "--model-path",
            str(checkpoint),
            "--device",
            "cpu",
            "--max-new-tokens",
            "6",
            *map(str, arguments),
        ]
    )


def test_the_command_line_is_read_once_into_typed_options() -> None:
    shown = ["--video-file", "v.mp4", "--image-file", "i.png", "--num-frames", "3"]
    options = chat_options(
        read_arguments(["--model-path", "m", *shown, "--load-4bit", "--temperature", "0.5"])
    )
    assert options.visuals == (Visual("video", "v.mp4"), Visual("image", "i.png"))
    assert (options.sampling.num_frames, options.generation.temperature) == (3, 0.5)
    assert (options.quantise, options.scales, options.query) == ("bnb-4bit", (), None)
    compared = chat_options(
        read_arguments(["--model-path", "m", "--matryoshka_vis_token_scale", "1,9"])
    )
    assert len(compared.scales) == 2


def test_one_question_one_answer(
    checkpoint: Path, loaded: Loaded, files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = files / "red.png"
    assert (
        chat(
            checkpoint,
            "--image-file",
            picture,
            "--query",
            "what colour",
            "--matryoshka_vis_token_scale",
            "9",
        )
        == 0
    )
    conversation = Conversation(*loaded, Generation(6))
    conversation.show_image(picture)
    assert capsys.readouterr().out.strip() == conversation.ask("what colour", 9).text


def test_several_scales_side_by_side(
    checkpoint: Path, files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = (
        "--video-file",
        files / "short.mp4",
        "--num-frames",
        "3",
        "--query",
        "what happens",
    )
    scales = ("1", "9@24", "36+1@24")
    assert chat(checkpoint, *arguments, "--matryoshka_vis_token_scale", ",".join(scales)) == 0
    lines = capsys.readouterr().out.splitlines()
    shown = [line.partition("]")[0] for line in lines if line.startswith("[")]
    assert shown == [f"[{scale}" for scale in scales]


def test_explain_counts_tiles_tokens_and_flops(
    checkpoint: Path, loaded: Loaded, files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    visuals = (
        "--image-file",
        files / "red.png",
        "--video-file",
        files / "short.mp4",
        "--num-frames",
        "4",
    )
    assert chat(checkpoint, *visuals, "--explain") == 0
    shown = capsys.readouterr().out
    assert f"1. {files / 'red.png'}  60 x 40 pixels, 1 tile\n" in shown
    assert f"2. {files / 'short.mp4'}  4 frames of 64 x 48 pixels, 3.0 s, 4 tiles\n" in shown
    assert "   tokens at scale 1: 4, 4: 16, 9: 36, 36: 144, 144: 576\n" in shown
    rows = [line.split() for line in shown.splitlines() if line.split()[:1] in (["1"], ["144"])]
    assert [row[1] for row in rows] == ["5", "720"]
    assert rows[0][3] == rows[1][3], "seeing costs the same at every scale of a resolution"
    assert float(rows[0][4]) < float(rows[1][4])
    conversation = Conversation(*loaded)
    conversation.show_image(files / "red.png")
    with pytest.raises(ValueError, match="scale 7 cannot be reached"):
        explain_costs(conversation, "", [7])


def test_explain_counts_what_is_seen_at_each_resolution(loaded: Loaded, files: Path) -> None:
    conversation = Conversation(*loaded)
    conversation.show_image(files / "red.png")
    conversation.show_video(files / "short.mp4", Sampling(num_frames=4))
    scales = [36, "36@24", "9@24", "36+9@24"]
    shown = explain_costs(conversation, "", scales)
    assert "   tokens at scale 36: 144, 36@24: 144, 9@24: 36, 36+9@24: 63\n" in shown
    rows = {line.split()[0]: line.split() for line in shown.splitlines() if "KiB" in line}
    assert list(rows) == [str(scale) for scale in scales]
    seeing = {label: float(row[3]) for label, row in rows.items()}
    assert seeing["9@24"] == seeing["36@24"] < seeing["36+9@24"] < seeing["36"]
    # 2 pictures of 48 pixels and 3 of 24
    mixed = (2 * seeing["36"] + 3 * seeing["36@24"]) / 5
    assert seeing["36+9@24"] == pytest.approx(mixed, abs=2e-3)
    assert rows["36"][4] == rows["36@24"][4], "reading follows the tokens"
    assert all(not visual.views for visual in conversation.pictures())


def test_a_question_without_a_picture_gets_a_hint(
    checkpoint: Path, files: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """On the screen, not in the answer."""
    assert chat(checkpoint, "--query", "Hello?") == 0
    assert "No picture was shown" in caplog.text
    caplog.clear()
    assert chat(checkpoint, "--image-file", files / "red.png", "--query", "Hello?") == 0
    assert "No picture was shown" not in caplog.text


def test_a_terminal_is_left_by_the_end_of_input_not_by_an_interrupt(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    typed: list[str | type[BaseException]] = ["one", KeyboardInterrupt, "two", EOFError]

    def answer(prompt: str) -> str:
        assert prompt == "> "
        entry = typed.pop(0)
        if isinstance(entry, str):
            return entry
        raise entry

    monkeypatch.setattr("builtins.input", answer)
    assert list(input_lines()) == ["one", "two"]
    assert "Ctrl-D or /exit ends." in capsys.readouterr().out


def test_turns_through_a_pipe(
    checkpoint: Path,
    files: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lines = [
        f"/image {files / 'red.png'}",
        "/scale 9",
        "what colour",
        "/scale 1,144",
        "what colour",
        "/scale 9@24",
        "what colour",
        "/scale 100",
        "/scale 36@50",
        "/scal 9",
        f"/image {files / 'none.png'}",
        "/explain",
        f"/video {files / 'short.mp4'}",
        "what happens in <video>",
        "/clear",
        "hello",
        "/help",
        "/exit",
        "never asked",
    ]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines)))
    assert chat(checkpoint) == 0
    shown = capsys.readouterr().out
    for told in (
        "[1] ",
        "[144] ",
        "scale 100 cannot be reached exactly",
        "resolution 50 is more than this model sees",
        "unknown command /scal. Did you mean '/scale'?",
        "no such image file",
        "red.png  60 x 40 pixels",
        "/exit         end",
    ):
        assert told in shown
    assert "never asked" not in shown


@pytest.mark.parametrize("flag", ["--load-4bit", "--load-8bit", "--lora", "--merge"])
def test_every_way_of_loading_answers(
    checkpoint: Path, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flag: str
) -> None:
    arguments: list[str | Path] = [flag]
    if flag in ("--lora", "--merge"):
        torch.manual_seed(0)
        model = AutoModelForImageTextToText.from_pretrained(checkpoint)
        targets = r"model\.language_model\..*(q_proj|v_proj)"
        get_peft_model(
            model, LoraConfig(r=4, target_modules=targets, init_lora_weights=False)
        ).save_pretrained(tmp_path)
        arguments = ["--lora", tmp_path] + (["--merge"] if flag == "--merge" else [])
    assert (
        chat(checkpoint, *arguments, "--image-file", files / "ramp.png", "--query", "what is it")
        == 0
    )
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--matryoshka_vis_token_scale", "nine"], "the scale 'nine' cannot be read"),
        (["--matryoshka_vis_token_scale", "36@"], "the scale '36@' cannot be read"),
        (["--query", "x", "--image-file", "none.png"], "no such image file"),
        (
            ["--query", "x <image>"],
            "the question has the marks <image>, but what was shown since the last one is nothing",
        ),
        (["--fps", "1", "--collage"], "a collage always has 6 frames"),
        (["--merge"], "merge was asked for without an adapter"),
    ],
)
def test_mistakes_are_one_line(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert chat(checkpoint, *arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


@pytest.mark.slow
def test_the_shipped_model_in_a_process_of_its_own(files: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "m3.cli",
        "chat",
        "--model-path",
        str(ROOT / "playground" / "m3-tiny"),
    ]
    questions = (
        "What is the main colour of the image?\n/scale 1\nWhat is the main colour of the image?\n"
    )
    ran = subprocess.run(
        [*command, "--image-file", str(files / "red.png")],
        input=questions,
        capture_output=True,
        text=True,
        check=True,
    )
    assert len(ran.stdout.splitlines()) == 2
    assert "Traceback" not in ran.stderr
