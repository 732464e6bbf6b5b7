"""A task that a language model scores, end to end, with a real server on this machine in the
place of the judge.
"""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from m3.evaluation.harness import judge
from m3.evaluation.results.store import Store
from tests.evaluation.benchmark_mirrors import write_activitynetqa
from tests.evaluation.test_sweep import keys_of, rows, run_sweep

KEYS = (
    "API_TYPE",
    "MODEL_VERSION",
    "OPENAI_API_URL",
    "OPENAI_BASE_URL",
    "OPENAI_API_MODEL",
    judge.KEY,
    "HF_HOME",
)
DOCUMENTS = 4


class Judge(BaseHTTPRequestHandler):
    """Says yes to questions whose right answer is red or blue; keeps what it was asked."""

    asked: list[dict] = []

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        Judge.asked.append({**body, "path": self.path, "key": self.headers["Authorization"]})
        if self.headers["Authorization"] != "Bearer secret":
            self.send_error(401, "no such key")
            return
        content = body["messages"][-1]["content"]
        is_right = any(f"Correct Answer: {colour}" in content for colour in ("red", "blue"))
        verdict = "{'pred': 'yes', 'score': 4}" if is_right else "{'pred': 'no', 'score': 1}"
        message = {"role": "assistant", "content": verdict}
        reply = json.dumps(
            {"model": body["model"], "choices": [{"index": 0, "message": message}]}
        ).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(reply)))
        self.end_headers()
        self.wfile.write(reply)

    def log_message(self, format: str, *args: object) -> None:
        """Not on the screen."""


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    for name in KEYS:
        monkeypatch.setenv(name, "")  # so that what a sweep sets does not stay
        monkeypatch.delenv(name)
    monkeypatch.setenv(judge.KEY, "secret")
    Judge.asked.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Judge)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


@pytest.mark.slow
def test_a_judged_task_end_to_end(
    tmp_path: Path,
    address: str,
    model_folder: Path,
    task_folder: Path,
    caplog: pytest.LogCaptureFixture,
):
    caplog.set_level("INFO")
    root, run = write_activitynetqa(tmp_path / "data", DOCUMENTS), tmp_path / "run"
    extra = f"--data-root {root} --frames 2"
    with pytest.raises(
        ValueError,
        match="activitynetqa asks a language model to score the answers, which costs money",
    ):
        run_sweep(run, task_folder, model_folder, tasks="activitynetqa", scales="1,9", extra=extra)
    assert Judge.asked == []  # off by default
    extra += f" --judge tiny-judge --judge-url {address}"
    assert (
        run_sweep(run, task_folder, model_folder, tasks="activitynetqa", scales="1,9", extra=extra)
        == 0
    )
    said = [record.getMessage() for record in caplog.records]
    cost = said.index("judge tiny-judge, activitynetqa: up to 8 calls, about 0.0028 million tokens")
    # before the first cell is scored
    assert cost < next(i for i, line in enumerate(said) if line.startswith("[1/2] "))
    # one word to see whether it is there, then each answer at each scale
    assert len(Judge.asked) == 1 + 2 * DOCUMENTS
    assert {(one["path"], one["key"], one["model"]) for one in Judge.asked} == {
        ("/v1/chat/completions", "Bearer secret", "tiny-judge")
    }
    cells = {(cell["metric"], cell["scale"]): cell for cell in rows(run)}
    for scale in ("1", "9"):
        assert cells["gpt_eval_accuracy", scale]["is_primary"] == "True"
        # red and blue, of red, green, blue, white
        assert float(cells["gpt_eval_accuracy", scale]["value"]) == 50.0
        assert float(cells["gpt_eval_score", scale]["value"]) == 2.5
        store = Store(run / "store")
        texts = [
            store.answer(key).text
            for key in keys_of(run, "tiny", f"activitynetqa@{scale}").values()
        ]
        asked = "\n".join(one["messages"][-1]["content"] for one in Judge.asked)
        assert all(f"Predicted Answer: {text}\n" in asked for text in texts)


def test_a_judge_that_does_not_answer_stops_the_sweep_before_it_starts(
    tmp_path: Path,
    address: str,
    task_folder: Path,
    model_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    def sweep(url: str) -> None:
        extra = f"--judge tiny-judge --judge-url {url}"
        run_sweep(
            tmp_path / "run", task_folder, model_folder, tasks="tiny_one", scales="1", extra=extra
        )

    with pytest.raises(
        ValueError,
        match=r"the judge tiny-judge at http://127\.0\.0\.1:1/v1/chat.* gives no "
        r"answer \(Conn",
    ):
        sweep("http://127.0.0.1:1/v1")
    monkeypatch.setenv(judge.KEY, "wrong")
    with pytest.raises(ValueError, match="'401 no such key'.*the key in OPENAI_API_KEY"):
        sweep(address)
    assert not (tmp_path / "run").exists()
