"""Answers of a form that the client says: valid JSON of its schema, an expression, a choice; what
cannot be followed is refused with its place, and free answers beside them stay as they are.
"""

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from enum import Enum

import jsonschema_rs
import pytest
import torch
from openai import BadRequestError, OpenAI
from pydantic import BaseModel, Field
from serving_files import ask, png
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from m3.inference import Generation
from m3.serving.engine.engine import Engine
from m3.serving.engine.grammar import KEPT, Grammars
from m3.serving.engine.json_schema import closed_schema
from m3.serving.engine.requests import AnswerFormat, Refused, Request, Turn, Visual
from m3.serving.engine.sampling import Choice, choose
from m3.serving.engine.vocabulary import Vocabulary
from m3.serving.settings import Queue, Settings

PLACE = "response_format.json_schema.schema"
SCHEMAS = {
    "object": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 5},
            "count": {"type": "integer", "minimum": 0, "maximum": 9},
            "colours": {"type": "array", "items": {"enum": ["red", "blue"]}, "maxItems": 2},
        },
        "required": ["name", "count", "colours"],
        "additionalProperties": False,
    },
    "union": {"anyOf": [{"const": 1}, {"const": "one"}, {"type": "null"}]},
    "definitions": {
        "$defs": {"leaf": {"type": "object", "properties": {"a": {"type": "boolean"}},
                           "required": ["a"], "additionalProperties": False}},
        "type": "array", "items": {"$ref": "#/$defs/leaf"}, "minItems": 2, "maxItems": 2,
    },
    "letters": {"type": "string", "pattern": "^[a-c]{2,4}ü$"},
    "tuple": {"type": "array", "prefixItems": [{"enum": ["x"]}, {"type": "boolean"}],
              "items": False, "minItems": 2},
}  # fmt: skip


OPEN = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
CLOSED = {**OPEN, "additionalProperties": False}
NAMED = {"type": "object", "properties": {"properties": OPEN, "b": {"enum": [OPEN]}}}


@pytest.mark.parametrize(
    ("schema", "closed"),
    [
        (OPEN, CLOSED),
        ({**OPEN, "additionalProperties": True}, {**OPEN, "additionalProperties": True}),
        ({**OPEN, "required": ["b"]}, {**OPEN, "required": ["b"]}),
        ({"type": "object"}, {"type": "object"}),
        ({"allOf": [OPEN]}, {"allOf": [OPEN]}),
        ({"$defs": {"x": OPEN}, "$ref": "#/$defs/x"}, {"$defs": {"x": CLOSED}, "$ref": "#/$defs/x"}),
        ({"anyOf": [OPEN, {"type": "null"}]}, {"anyOf": [CLOSED, {"type": "null"}]}),
        ({"type": "array", "items": OPEN}, {"type": "array", "items": CLOSED}),
        (NAMED, {**NAMED, "properties": {"properties": CLOSED, "b": {"enum": [OPEN]}},
                 "additionalProperties": False}),
    ],
)  # fmt: skip
def test_objects_are_closed_where_a_schema_leaves_them_open(schema: dict, closed: dict) -> None:
    assert closed_schema(schema) == closed


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Shape(BaseModel):
    colour: Colour
    sides: int = Field(ge=3, le=6)


class Picture(BaseModel):
    shapes: list[Shape] = Field(max_length=2)
    title: str | None = Field(max_length=4)


@pytest.fixture(scope="module")
def client(address: str) -> OpenAI:
    return OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)


@pytest.fixture
def busy_engine(loaded) -> Iterator[Engine]:
    engine = Engine(*loaded, Settings(name="tiny", queue=Queue(running=8, waiting=100)))
    yield engine
    engine.close()


def json_format(schema: object, place: str = PLACE) -> AnswerFormat:
    return AnswerFormat("json", json.dumps(schema), place)


def request(answer_format: AnswerFormat | None, **options) -> Request:
    turn = Turn("user", (Visual("image", png()), "What is it?"))
    return Request((turn,), 9, Generation(200), answer_format=answer_format, **options)


def response_format(schema: object) -> dict:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("name", SCHEMAS)
def test_json_follows_its_schema(engine: Engine, name: str, temperature: float) -> None:
    asked = request(json_format(SCHEMAS[name]), seed=1)
    answer = engine.answer(replace(asked, generation=Generation(400, temperature)))
    assert answer.reason == "stop"
    jsonschema_rs.validate(SCHEMAS[name], json.loads(answer.text))


@pytest.mark.parametrize(
    ("kind", "definition", "expected"),
    [
        ("regex", "(red|blue) [0-9]{2}", "(red|blue) [0-9]{2}"),
        ("choice", '["a red one", "\\"quoted\\" (b|c)", "\\u00e4\\n$"]', None),
        ("choice", '["the only one"]', "the only one"),
    ],
)
@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_expressions_and_choices(
    engine: Engine, kind, definition: str, expected: str | None, temperature: float
) -> None:
    asked = request(AnswerFormat(kind, definition, "guided"), seed=3)
    answer = engine.answer(replace(asked, generation=Generation(60, temperature)))
    assert answer.reason == "stop"
    if expected is None:
        assert answer.text in json.loads(definition)
    else:
        assert re.fullmatch(expected, answer.text)


def test_free_answers_beside_are_what_they_are_alone(busy_engine: Engine) -> None:
    """In one batch of mixed rows, sampled and greedy; and forms keep to their own rows."""
    free = [
        replace(request(None, seed=n, top_count=3), generation=Generation(20 + n, float(n % 2)))
        for n in range(12)
    ]
    alone = [busy_engine.answer(one) for one in free]
    schemas = list(SCHEMAS.values())
    held = [request(json_format(schemas[n % len(schemas)])) for n in range(12)]
    mixed = [one for pair in zip(free, held, strict=True) for one in pair]
    with ThreadPoolExecutor(24) as threads:
        answers = list(threads.map(busy_engine.answer, mixed))
    assert [answer.text for answer in answers[::2]] == [answer.text for answer in alone]
    for n, answer in enumerate(answers[1::2]):
        jsonschema_rs.validate(schemas[n % len(schemas)], json.loads(answer.text))


def test_rows_without_a_form_are_not_touched(loaded) -> None:
    """The same logits, to the last digit, give free rows the same tokens with and without others."""
    model, processor = loaded
    size = model.config.text_config.vocab_size
    (guide,) = Grammars(Vocabulary(processor.tokenizer, size, {2})).guides(
        json_format({"type": "integer"}), 1
    )
    logits = torch.randn(3, size, generator=torch.Generator().manual_seed(0))
    before = logits.clone()
    asked = Request((), generation=Generation(1, 1.0), seed=4)
    alone = choose(logits[[0, 2]], [Choice.make(asked), Choice.make(asked)])
    rows = [Choice.make(asked), Choice.make(asked, guide=guide), Choice.make(asked)]
    tokens = choose(logits, rows)
    assert torch.equal(tokens[[0, 2]], alone)
    assert torch.equal(logits, before)
    assert processor.tokenizer.decode(tokens[1]) in set("-0123456789")


def test_a_cut_answer_says_so(engine: Engine) -> None:
    asked = request(json_format({"type": "string", "minLength": 100}))
    answer = engine.answer(replace(asked, generation=Generation(5)))
    assert answer.reason == "length"
    with pytest.raises(json.JSONDecodeError):
        json.loads(answer.text)


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "array", "uniqueItems": True}, 'Unimplemented keys: ["uniqueItems"]'),
        ({"not": {"type": "string"}}, 'Unimplemented keys: ["not"]'),
        ({"type": "array", "uniqueItems": True, "x-guidance": {"lenient": True}}, "uniqueItems"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "oneOf"),
        ({"type": "text"}, "Invalid type: text"),
        ({"type": "string", "pattern": "(a"}, "unclosed group"),
        ({"$ref": "https://example.org/schema.json"}, "not present in a registry"),
        ({"$ref": "#"}, "cannot follow"),
        ({"type": "object", "properties": {"a": False}, "required": ["a"]}, "Unsatisfiable"),
        ({"enum": ["word" * 200 + str(n) for n in range(200)]}, "more than this server's limit"),
    ],
)  # fmt: skip
def test_a_schema_that_cannot_be_followed(client: OpenAI, schema: dict, words: str) -> None:
    with pytest.raises(BadRequestError) as raised:
        client.chat.completions.create(
            model="tiny", messages=ask(), response_format=response_format(schema)
        )
    assert raised.value.param == PLACE
    assert raised.value.message.count(PLACE)
    assert words in raised.value.message


def nested(depth: int) -> dict:
    schema: dict = {"type": "null"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


@pytest.mark.parametrize(
    ("schema", "is_refused"),
    [
        (nested(300), True),
        ({"anyOf": [{"type": "object", "properties": {f"p{n}": {"type": "string"} for n in range(20)}}
                    for _ in range(100)]}, True),
        ({"type": "string", "pattern": "^((((a{100}){100}){100}){100}){100}$"}, True),
        ({"type": "string", "pattern": "^(.*a){40}.{40}$"}, False),
        ({"type": "array", "minItems": 1_000_000, "items": {"type": "integer"}}, False),
    ],
    ids=["deep", "wide", "repeats", "states", "long"],
)  # fmt: skip
def test_a_hostile_schema(client: OpenAI, schema: dict, is_refused: bool) -> None:
    """Refused, or answered as far as its tokens go; within the time of this test in any case."""
    options = {"model": "tiny", "messages": ask(), "max_tokens": 5}
    form = response_format(schema)
    if is_refused:
        with pytest.raises(BadRequestError) as raised:
            client.chat.completions.create(**options, response_format=form)
        assert raised.value.param == PLACE
    else:
        answer = client.chat.completions.create(**options, response_format=form)
        assert answer.choices[0].finish_reason == "length"


def test_a_grammar_that_fails_on_the_way_ends_its_answer_alone(engine: Engine) -> None:
    """The first letters are easy, what follows needs more states than any answer may have."""
    asked = request(AnswerFormat("regex", "abc ((x{100}){100}){100}", "guided_regex"))
    with ThreadPoolExecutor(2) as threads:
        beside = threads.submit(engine.answer, request(None))
        with pytest.raises(Refused, match="guided_regex: this server cannot follow it"):
            engine.answer(asked)
        assert beside.result().reason in ("stop", "length")
    assert engine.is_alive


def test_grammars_are_kept_and_bounded(loaded) -> None:
    model, processor = loaded
    size = model.config.text_config.vocab_size
    grammars = Grammars(Vocabulary(processor.tokenizer, size, {2}))
    for n in range(KEPT + 10):
        grammars.guides(AnswerFormat("regex", f"a{{{n + 1}}}", "guided_regex"), 2)
    assert len(grammars) == KEPT


def llama_like(characters: str) -> PreTrainedTokenizerFast:
    """Pieces and a `▁` for spaces, as sentencepiece makes them; no bytes."""
    pieces = ["<s>", "</s>", "<unk>", *sorted(set(characters)), "▁red", "▁{"]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    backend = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def test_a_tokenizer_of_pieces() -> None:
    printable = "".join(map(chr, range(33, 127))) + "▁"
    tokenizer = llama_like(printable)
    grammars = Grammars(Vocabulary(tokenizer, len(tokenizer) + 6, {1}))
    (guide,) = grammars.guides(json_format({"enum": ["a b"]}), 1)
    written = []
    while not guide.is_complete:
        assert len(written) < 10 and not guide.failure
        token = int(guide.allowed(len(tokenizer) + 6).nonzero()[0])
        guide.take(token)
        written.append(token)
    assert tokenizer.decode(written) == '"a b"'


def test_a_tokenizer_without_the_characters() -> None:
    tokenizer = llama_like("abcdefghij▁")
    grammars = Grammars(Vocabulary(tokenizer, len(tokenizer), {1}))
    with pytest.raises(Refused, match=f"{re.escape(PLACE)}: this model cannot write it.*no token"):
        grammars.guides(json_format({"type": "object"}), 1)
    with pytest.raises(Refused, match="guided_choice: this model cannot write it.*b'xyz'"):
        grammars.guides(AnswerFormat("choice", '["a", "zyx"]', "guided_choice"), 1)
    assert grammars.guides(AnswerFormat("choice", '["a", "bad"]', "guided_choice"), 1)


@pytest.mark.parametrize(
    "extra",
    [
        {"guided_json": SCHEMAS["union"]},
        {"guided_json": json.dumps(SCHEMAS["union"])},
        {"structured_outputs": {"json": SCHEMAS["union"]}},
    ],
)
def test_the_names_of_vllm(client: OpenAI, extra: dict) -> None:
    answer = client.chat.completions.create(model="tiny", messages=ask(png()), extra_body=extra)
    assert json.loads(answer.choices[0].message.content or "") in (1, "one", None)


@pytest.mark.parametrize(
    "extra",
    [
        {"guided_choice": ["red", "blue"]},
        {"guided_regex": "red|blue"},
        {"structured_outputs": {"choice": ["red", "blue"]}},
        {"structured_outputs": {"regex": "red|blue"}},
    ],
)
def test_choices_streamed(client: OpenAI, extra: dict) -> None:
    chunks = list(
        client.chat.completions.create(
            model="tiny", messages=ask(png()), stream=True, extra_body=extra
        )
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text in ("red", "blue")
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_a_json_object(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model="tiny", messages=ask(png()), response_format={"type": "json_object"}
    )
    assert answer.choices[0].finish_reason in ("stop", "length")
    content = answer.choices[0].message.content or ""
    assert content.startswith("{")
    if answer.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(content), dict)


def test_parse_gives_objects_of_pydantic(client: OpenAI) -> None:
    answer = client.chat.completions.parse(
        model="tiny", messages=ask(png()), response_format=Picture, n=2, seed=1, temperature=1
    )
    pictures = [choice.message.parsed for choice in answer.choices]
    assert all(isinstance(picture, Picture) for picture in pictures)


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ({"guided_regex": "a", "guided_choice": ["b"]}, "guided_regex and guided_choice"),
        ({"guided_json": "{"}, "guided_json: this is no JSON"),
        ({"guided_json": "[1]"}, "guided_json: expected a JSON schema, an object"),
        ({"guided_choice": []}, "guided_choice: "),
        ({"guided_regex": "(?=a)b"}, "guided_regex: .*look-around"),
    ],
)
def test_forms_that_are_refused(client: OpenAI, extra: dict, words: str) -> None:
    with pytest.raises(BadRequestError, match=words):
        client.chat.completions.create(model="tiny", messages=ask(), extra_body=extra)
