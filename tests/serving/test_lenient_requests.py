"""Requests as clients of other servers write them are answered like those of the official one."""

import base64
import io
from typing import Any

import httpx2
import pytest
from openai import BadRequestError, OpenAI
from PIL import Image
from serving_files import PATIENCE, ask, data_address, png, serving

from m3.inference import Conversation, Generation
from m3.serving.engine.engine import Engine
from m3.serving.settings import Limits, Settings

CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def http(address: str):
    with httpx2.Client(base_url=address, timeout=PATIENCE) as client:
        yield client


@pytest.fixture(scope="module")
def client(address: str) -> OpenAI:
    return OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)


def answer(http: httpx2.Client, **changes: Any) -> dict[str, Any]:
    body = {"model": "tiny", "messages": ask(png()), "max_tokens": 4} | changes
    response = http.post(CHAT, json=body)
    assert response.status_code == 200, response.text
    return response.json()


def text_of(reply: dict[str, Any]) -> str:
    return reply["choices"][0]["message"]["content"]


# ---------------------------------------------------------------- what was not said
ASKS_FOR_NOTHING = {
    "logit_bias": {},
    "reasoning_effort": "none",
    "parallel_tool_calls": False,
    "tools": [],
    "tool_choice": "none",
    "functions": [],
    "function_call": "auto",
    "top_k": -1,
    "min_p": 0,
    "repetition_penalty": 1.0,
    "frequency_penalty": 0,
    "presence_penalty": 0.0,
    "best_of": 1,
    "n": 1,
    "ignore_eos": False,
    "skip_special_tokens": True,
    "spaces_between_special_tokens": True,
    "min_tokens": 0,
    "stop_token_ids": [],
    "stop": [],
    "bad_words": [],
    "length_penalty": 1.0,
    "use_beam_search": False,
    "echo": False,
    "modalities": ["text"],
    "chat_template_kwargs": {},
    "user": "me",
    "metadata": {"a": 1},
    "store": False,
    "moderation": None,
    "prompt_cache_key": "k",
    "prompt_cache_retention": "24h",
    "prompt_cache_options": {"ttl": 5},
    "service_tier": "auto",
    "verbosity": "medium",
    "unheard_of": None,
}


def test_fields_that_change_nothing_are_taken(http: httpx2.Client) -> None:
    expected = text_of(answer(http))
    for field, value in ASKS_FOR_NOTHING.items():
        assert text_of(answer(http, **{field: value})) == expected, field
    assert text_of(answer(http, **ASKS_FOR_NOTHING)) == expected


OF_OTHERS = (
    {"tool_calls": None},
    {"tool_calls": []},
    {"function_call": None},
    {"audio": None},
    {"annotations": None},
    {"annotations": []},
    {"refusal": None},
    {"refusal": "no"},
    {"reasoning": None},
    {"reasoning_content": None},
    {"reasoning_content": "hm"},
    {"id": "msg_1"},
    {"name": "m3"},
    {"prefix": False},
    {"provider_specific_fields": {"refusal": None}},
    {"cache_control": {"type": "ephemeral"}},
)


@pytest.mark.parametrize("fields", OF_OTHERS, ids=str)
def test_an_earlier_answer_comes_back_with_all_its_fields(
    http: httpx2.Client, fields: dict[str, Any]
) -> None:
    def conversation(**more: Any) -> list[dict[str, Any]]:
        earlier = {"role": "assistant", "content": "red"} | more
        return [*ask(png()), earlier, {"role": "user", "content": "Sure?"}]

    expected = answer(http, messages=conversation())
    assert text_of(answer(http, messages=conversation(**fields))) == text_of(expected)


@pytest.mark.parametrize("content", [{}, {"content": None}, {"content": []}], ids=str)
def test_an_earlier_answer_without_a_text_is_empty(
    http: httpx2.Client, content: dict[str, Any]
) -> None:
    turns = [
        [*ask(png()), {"role": "assistant"} | said, *ask()] for said in (content, {"content": ""})
    ]
    replies = [answer(http, messages=messages) for messages in turns]
    assert replies[0]["usage"] == replies[1]["usage"]
    assert text_of(replies[0]) == text_of(replies[1])


def test_null_is_not_said_in_parts_too(http: httpx2.Client) -> None:
    (message,) = ask(png())
    image, text = message["content"]
    image |= {"text": None, "cache_control": None, "matryoshka_vis_token_scale": None}
    image["image_url"] |= {"detail": None, "format": "image/png"}
    text |= {"image_url": None, "cache_control": {"type": "ephemeral"}}
    reply = answer(http, messages=[message | {"content": [image, text], "name": None}])
    assert text_of(reply) == text_of(answer(http))


def test_a_second_turn_of_the_official_client(client: OpenAI, loaded) -> None:
    """`model_dump()` of an answer goes back into the conversation, nulls and all."""
    conversation = Conversation(*loaded, Generation(4))
    conversation.show_image(png())
    expected = [conversation.ask(question, 36).text for question in ("What is it?", "Sure?")]
    messages: list[Any] = ask(png())
    for question, said in zip(("Sure?", ""), expected, strict=True):
        reply = client.chat.completions.create(
            model="tiny@36", messages=messages, max_tokens=4, extra_body={}
        )
        assert reply.choices[0].message.content == said
        messages += [reply.choices[0].message.model_dump(), {"role": "user", "content": question}]


# ---------------------------------------------------------------- lengths
@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
def test_more_tokens_than_the_limit_are_the_limit(loaded, field: str) -> None:
    settings = Settings(name="tiny", limits=Limits(new_tokens=3))
    with serving(Engine(*loaded, settings), settings) as address:
        body = {"model": "tiny", "messages": ask(png()), field: 2048}
        reply = httpx2.post(f"{address}{CHAT}", json=body, timeout=PATIENCE).json()
    assert reply["choices"][0]["finish_reason"] == "length"
    assert reply["usage"]["completion_tokens"] == 3


# ---------------------------------------------------------------- base64 and addresses
def forms(content: bytes) -> dict[str, str]:
    plain = base64.b64encode(content).decode()
    wrapped = base64.encodebytes(content).decode()
    url_safe = base64.urlsafe_b64encode(content).decode()
    escaped = plain.replace("+", "%2B").replace("/", "%2f").replace("=", "%3D")
    return {
        "line ends": f"data:image/png;base64,{wrapped}",
        "CR LF": "data:image/png;base64," + wrapped.replace("\n", "\r\n"),
        "tabs and spaces": "data:image/png;base64, " + wrapped.replace("\n", " \t"),
        "no padding": f"data:image/png;base64,{plain.rstrip('=')}",
        "url-safe": f"data:image/png;base64,{url_safe}",
        "percent": f"data:image/png;base64,{escaped}",
        "charset behind": f"data:image/png;base64;charset=utf-8,{plain}",
        "charset in front": f"data:image/png;charset=utf-8;base64,{plain}",
        "space before base64": f"data:image/png; base64,{plain}",
        "leading space": f"  data:image/png;base64,{plain}",
        "trailing newline": f"data:image/png;base64,{plain}\n",
        "upper case": f"DATA:IMAGE/PNG;BASE64,{plain}",
        "no type": f"data:;base64,{plain}",
    }


PADDED = next(file for file in (png(size=(60, n)) for n in range(40, 60)) if len(file) % 3 == 1)


@pytest.mark.parametrize("form", list(forms(PADDED)))
@pytest.mark.parametrize("bare", [False, True])
def test_base64_as_the_world_writes_it(http: httpx2.Client, form: str, bare: bool) -> None:
    text = forms(PADDED)[form]
    part = {"type": "image_url", "image_url": text if bare else {"url": text}}
    messages = [{"role": "user", "content": [part, {"type": "text", "text": "What is it?"}]}]
    assert text_of(answer(http, messages=messages)) == text_of(answer(http, messages=ask(PADDED)))


def test_a_bare_address_of_a_video(http: httpx2.Client) -> None:
    file = io.BytesIO()
    Image.new("RGB", (60, 40), "red").save(file, "GIF")
    gif = data_address(file.getvalue(), "image/gif")
    replies = [
        answer(
            http, messages=[{"role": "user", "content": [{"type": "video_url", "video_url": url}]}]
        )
        for url in (gif, {"url": gif})
    ]
    assert text_of(replies[0]) == text_of(replies[1])


@pytest.mark.parametrize(
    "text", ["{0}=", "{0}====x", "data:image/png;base64,{0}", "{0}é", "{0}%41", "{0}!"]
)
def test_base64_that_is_refused(http: httpx2.Client, text: str) -> None:
    plain = base64.b64encode(PADDED).decode()
    url = "data:image/png;base64," + text.format(plain)
    part = {"type": "image_url", "image_url": {"url": url}}
    body = {"model": "tiny", "messages": [{"role": "user", "content": [part]}]}
    response = http.post(CHAT, json=body)
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == "messages.0.content.0"
    assert "messages.0.content.0: the content is not valid base64" in error["message"]


def test_base64_of_mllm_npu(http: httpx2.Client) -> None:
    plain = base64.b64encode(PADDED).decode()
    texts = [plain, base64.encodebytes(PADDED).decode(), data_address(PADDED)]
    bodies = [{"input_text": "What is it?", "image": text, "max_new_tokens": 4} for text in texts]
    replies = [http.post("/generate", json=body) for body in bodies]
    assert {reply.status_code for reply in replies} == {200}
    assert len({reply.content for reply in replies}) == 1


# ---------------------------------------------------------------- going on with an answer
def test_an_answer_goes_on_with_the_last_message(http: httpx2.Client, loaded) -> None:
    """Cut in two, the answer is what it is in one piece, white space between its parts included."""
    processor = loaded[1]
    whole = text_of(answer(http, max_tokens=12))
    ids = processor.tokenizer(whole, add_special_tokens=False)["input_ids"]
    beginning = processor.tokenizer.decode(ids[:4]).rstrip()
    messages = [*ask(png()), {"role": "assistant", "content": beginning}]
    for fields in ({}, {"add_generation_prompt": False}):
        rest = answer(http, messages=messages, max_tokens=8, continue_final_message=True, **fields)
        text = processor.apply_chat_template(
            [{"role": "user", "content": f"{processor.image_token}\nWhat is it?"}],
            tokenize=False,
            add_generation_prompt=True,
        )
        prompt = processor.tokenizer(text + beginning, add_special_tokens=False)["input_ids"]
        assert rest["usage"]["prompt_tokens"] == len(prompt) - 1 + 144
    new_turn = answer(http, messages=messages, add_generation_prompt=False)
    again = answer(http, messages=messages)
    assert new_turn["usage"]["prompt_tokens"] < again["usage"]["prompt_tokens"]
    assert rest["usage"]["prompt_tokens"] < new_turn["usage"]["prompt_tokens"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"continue_final_message": True, "add_generation_prompt": True}, "add_generation_prompt"),
        ({"continue_final_message": True, "messages": ask(png())}, "continue_final_message"),
    ],
)
def test_what_cannot_go_on(http: httpx2.Client, fields: dict[str, Any], param: str) -> None:
    messages = [*ask(png()), {"role": "assistant", "content": "It is"}]
    response = http.post(CHAT, json={"model": "tiny", "messages": messages} | fields)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param


# ---------------------------------------------------------------- budgets without our field
@pytest.mark.parametrize(
    ("fields", "scale"),
    [
        ({"model": "tiny@9"}, 9),
        ({"model": "tiny@36@24"}, "36@24"),
        ({"mm_processor_kwargs": {"matryoshka_vis_token_scale": 4}}, 4),
        ({"mm_processor_kwargs": {"matryoshka_vis_token_scale": 4}, "model": "tiny@9"}, 4),
        ({"matryoshka_vis_token_scale": 1, "model": "tiny@9"}, 1),
        (
            {
                "matryoshka_vis_token_scale": 1,
                "mm_processor_kwargs": {"matryoshka_vis_token_scale": 4},
            },
            1,
        ),
        ({"matryoshka_vis_token_scale": 9.0}, 9),
        ({"mm_processor_kwargs": {}}, 144),
    ],
    ids=str,
)
def test_a_budget_without_a_field_of_ours(
    http: httpx2.Client, fields: dict[str, Any], scale: int | str
) -> None:
    reply = answer(http, **fields)
    assert reply["usage"]["matryoshka_vis_token_scale_per_image"] == [scale]
    assert reply["model"] == "tiny"


@pytest.mark.parametrize(
    ("detail", "fields", "scale"),
    [
        ("low", {}, 9),
        ("high", {}, 144),
        ("original", {}, 144),
        ("auto", {}, 144),
        (None, {}, 144),
        ("low", {"model": "tiny@36"}, 36),
        ("low", {"matryoshka_vis_token_scale": 1}, 1),
        ("high", {"matryoshka_vis_token_scale": 1}, 1),
    ],
    ids=str,
)
def test_the_detail_of_an_image(
    http: httpx2.Client, detail: str | None, fields: dict[str, Any], scale: int
) -> None:
    messages = ask(png())
    messages[0]["content"][0]["image_url"]["detail"] = detail
    reply = answer(http, messages=messages, **fields)
    assert reply["usage"]["matryoshka_vis_token_scale_per_image"] == [scale]


def test_models_stay_those_there_are(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny@9").id == "tiny"
    with pytest.raises(BadRequestError, match="model: scale 7 cannot be reached"):
        client.chat.completions.create(model="tiny@7", messages=ask(png()))


def test_auto_behind_the_name(routed) -> None:
    settings = Settings(name="tiny")
    with serving(Engine(*routed, settings), settings) as address:
        bodies = [
            {"model": "tiny@auto:0.8", "messages": ask(png())},
            {"model": "tiny", "messages": ask(png()), "matryoshka_vis_token_scale": "auto:0.8"},
        ]
        usages = [
            httpx2.post(f"{address}{CHAT}", json=body | {"max_tokens": 1}, timeout=PATIENCE).json()[
                "usage"
            ]
            for body in bodies
        ]
    assert usages[0] == usages[1]
