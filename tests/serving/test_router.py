"""Several models in one process; the body's `model` chooses."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from openai import NotFoundError, OpenAI
from peft import LoraConfig, get_peft_model
from serving_files import ask, png
from starlette.testclient import TestClient

from m3 import config
from m3.inference import Conversation, Generation, load
from m3.serving.cluster.config import Fleet, Served
from m3.serving.cluster.local import create_local
from m3.serving.settings import Settings

KEY = {"Authorization": "Bearer secret"}


@pytest.fixture(scope="module")
def folder(
    tiny_checkpoint: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """`tiny`, a checkpoint, and `adapter`, which changes what it says."""
    folder = tmp_path_factory.mktemp("router")
    model, _ = load(tiny_checkpoint(folder / "tiny"), device="cpu")
    targets = r"model\.language_model\..*\.(q_proj|v_proj|o_proj)"
    get_peft_model(
        model, LoraConfig(r=4, target_modules=targets, init_lora_weights=False)
    ).save_pretrained(folder / "adapter")
    return folder


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[TestClient]:
    path, lora = str(folder / "tiny"), str(folder / "adapter")
    models = (Served(path=path), Served(path=path, name="other/one"), Served(path=path, lora=lora))
    fleet = Fleet(models=tuple(dataclasses.replace(model, device="cpu") for model in models))
    with TestClient(create_local(fleet, Settings(api_key="secret")), headers=KEY) as client:
        yield client


@pytest.fixture(scope="module")
def openai(client: TestClient) -> OpenAI:
    return OpenAI(
        base_url="http://testserver/v1", api_key="secret", max_retries=0, http_client=client
    )


def test_models_lists_all(openai: OpenAI) -> None:
    assert [model.id for model in openai.models.list()] == ["tiny", "other/one", "adapter"]
    assert openai.models.retrieve("other/one").model_extra["trained_scales"] == [1, 4, 9, 36, 144]
    with pytest.raises(
        NotFoundError,
        match="there is no model 'third' here; this server has 'tiny', 'other/one', 'adapter'",
    ):
        openai.models.retrieve("third")


@pytest.mark.parametrize("name", ["tiny", "other/one", "adapter"])
def test_the_named_model_answers(client: TestClient, openai: OpenAI, name: str) -> None:
    options = {"model": name, "messages": ask(png()), "max_tokens": 4}
    answer = openai.chat.completions.create(**options)
    assert answer.model == name
    chunks = list(openai.chat.completions.create(**options, stream=True))
    assert {chunk.model for chunk in chunks} == {name}
    assert (
        "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        == answer.choices[0].message.content
    )
    labels = f'model="{name}",path="/v1/chat/completions",replica="0",status="200"'
    assert f"m3_http_responses_total{{{labels}}} 2.0" in client.get("/metrics").text


def test_an_adapter_s_answers_are_its_own(openai: OpenAI, folder: Path) -> None:
    said = []
    for name, lora in {"tiny": None, "adapter": folder / "adapter"}.items():
        conversation = Conversation(*load(folder / "tiny", device="cpu", lora=lora), Generation(12))
        conversation.show_image(png())
        said.append(conversation.ask("What is it?", 9).text)
        answer = openai.chat.completions.create(
            model=name,
            messages=ask(png()),
            max_tokens=12,
            extra_body={"matryoshka_vis_token_scale": 9},
        )
        assert answer.choices[0].message.content == said[-1]
    assert said[0] != said[1]


def test_a_model_that_is_not_there(openai: OpenAI) -> None:
    with pytest.raises(
        NotFoundError,
        match="there is no model 'third' here; this server has 'tiny', 'other/one', 'adapter'",
    ):
        openai.chat.completions.create(model="third", messages=ask())


@pytest.mark.parametrize(
    "body", [b"{", b"[" * 100_000, b'{"messages": []}', b'{"model": 7, "messages": []}', b"\xff"]
)
def test_a_body_without_a_model_is_told_what_is_wrong(client: TestClient, body: bytes) -> None:
    answer = client.post(
        "/v1/chat/completions", content=body, headers={"content-type": "application/json"}
    )
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_generate_without_a_model_is_the_first_one_s(client: TestClient) -> None:
    answer = client.post("/generate", json={"input_text": "What?", "max_new_tokens": 2})
    assert answer.content.endswith(b"\0")
    pages = client.get("/metrics").text
    assert (
        'm3_http_responses_total{model="tiny",path="/generate",replica="0",status="200"} 1.0'
        in pages
    )


def test_the_key_is_asked_for_in_front(client: TestClient) -> None:
    without: httpx.Response = client.get("/v1/models", headers={"Authorization": ""})
    assert without.status_code == 401
    assert client.get("/health", headers={"Authorization": ""}).json() == {
        "status": "ok",
        "models": ["tiny", "other/one", "adapter"],
    }
    assert "/v1/chat/completions" in client.get("/openapi.json").json()["paths"]


WRONG = {
    "models: []": "models is empty",
    "models: [{path: a/m3}, {path: b/m3}]": "two models have the name 'm3': give each a `name` of "
    "its own",
    "models: [{path: m3, replicas: 0}]": "replicas is 0; expected 1 or more",
    "models: [{path: m3, replicas: 3, max_replicas: 2}]": "max_replicas is 2, below replicas",
    "models: [{path: m3, gpus: -1}]": "gpus is -1.0; expected",
    "models: [{path: m3, replica: 2}]": "unknown key 'replica'. Did you mean 'replicas'",
    "{models: [{path: m3}], routers: 0}": "routers is 0",
}


@pytest.mark.parametrize("text", WRONG)
def test_fleets_that_cannot_be(text: str, tmp_path: Path) -> None:
    file = tmp_path / "fleet.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=WRONG[text].replace("[", r"\[")):
        config.load(file, Fleet)


def test_names_and_defaults(tmp_path: Path) -> None:
    file = tmp_path / "fleet.yaml"
    file.write_text(
        "models: [{path: some/m3}, {path: some/m3, lora: runs/charts}, {path: some/m3, name: mine}]"
    )
    fleet = config.load(file, Fleet)
    assert [model.id for model in fleet.models] == ["m3", "charts", "mine"]
    assert config.decode(dataclasses.asdict(fleet), Fleet) == fleet


def test_one_process_has_one_replica() -> None:
    with pytest.raises(
        ValueError, match="one process serves one replica of each model; more of them need Ray"
    ):
        create_local(Fleet(models=(Served(path="m3", replicas=2),)), Settings())


@pytest.mark.parametrize("name", ["tiny", "adapter"])
def test_completions_and_responses_pass_the_router(openai: OpenAI, name: str) -> None:
    text = openai.completions.create(model=name, prompt="The colour is", max_tokens=2)
    assert text.model == name and text.usage is not None and text.usage.completion_tokens == 2
    response = openai.responses.create(model=name, input="Why?", max_output_tokens=2)
    assert response.model == name
    assert response.usage is not None and response.usage.output_tokens <= 2


@pytest.mark.parametrize("name", ["other/one", "adapter"])
def test_a_budget_behind_the_name(client: TestClient, openai: OpenAI, name: str) -> None:
    answer = openai.chat.completions.create(model=f"{name}@9", messages=ask(png()), max_tokens=1)
    assert answer.model == name
    assert answer.usage is not None
    assert (answer.usage.model_extra or {})["visual_tokens"] == 9
    assert openai.models.retrieve(f"{name}@9").id == name
    with pytest.raises(NotFoundError, match=f"there is no model '{name}@x' here"):
        openai.chat.completions.create(model=f"{name}@x", messages=ask(png()))


def test_an_id_reaches_the_model_and_comes_back(client: TestClient) -> None:
    body = {"model": "tiny", "messages": ask(png()), "max_tokens": 1}
    for path in ("/v1/chat/completions", "/v1/chat/completions/"):
        answer = client.post(path, json=body, headers={"X-Request-Id": "mine"})
        assert answer.status_code == 200
        assert answer.headers.get_list("x-request-id") == ["mine"]
    assert client.head("/v1/models/").status_code == 200
