"""Form of an answer as clients ask for it: OpenAI's `response_format`, vLLM's `guided_*` and
`structured_outputs`.

In: these fields of a body. Out: an `AnswerFormat` of the engine (m3/serving/engine/grammar.py), or none.
"""

import json
from typing import Annotated, Literal

from pydantic import Field, Tag

from m3.serving.engine.requests import AnswerFormat, Refused
from m3.serving.http.body.fields import Strict, Text, by_field, tag

JsonObject = dict[str, object]
SchemaField = JsonObject | Text
"""A JSON schema, or the text of one."""
Choices = Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1)]
ANY_OBJECT = '{"type": "object"}'


class TextFormat(Strict):
    type: Literal["text"]


class JsonFormat(Strict):
    type: Literal["json_object"]


class JsonSchema(Strict):
    """A schema and its name, which changes nothing; every schema is followed strictly."""

    name: str | None = Field(None, description="ignored")
    description: str | None = Field(None, description="ignored")
    definition: JsonObject | None = Field(None, alias="schema")
    strict: bool | None = Field(None, description="ignored: every schema is followed")


class JsonSchemaFormat(Strict):
    type: Literal["json_schema"]
    json_schema: JsonSchema


class StructuredOutputs(Strict):
    """vLLM's: one of these."""

    choice: Choices | None = None
    json_: SchemaField | None = Field(None, alias="json")
    regex: Text | None = None


class FormFields(Strict):
    """Fields of a request that say what form its answer must have; one of them at most."""

    response_format: (
        Annotated[
            Annotated[TextFormat, Tag(tag("text"))]
            | Annotated[JsonFormat, Tag(tag("json_object"))]
            | Annotated[JsonSchemaFormat, Tag(tag("json_schema"))],
            by_field("type", "text", "json_object", "json_schema"),
        ]
        | None
    ) = None
    guided_choice: Choices | None = Field(None, description="vLLM's: the answer is one of these")
    guided_json: SchemaField | None = Field(None, description="vLLM's: a JSON schema")
    guided_regex: Text | None = Field(None, description="vLLM's: a regular expression")
    structured_outputs: StructuredOutputs | None = Field(None, description="vLLM's newer name")


def answer_format(body: FormFields) -> AnswerFormat | None:
    """The form that a body asks for.

    Raises:
        Refused: two forms at once, or a text that is no JSON.
    """
    formats = []
    if body.response_format is not None:
        formats += _response_format(body.response_format)
    formats += _vllm_formats(body.guided_json, body.guided_regex, body.guided_choice, "guided_{}")
    outputs = body.structured_outputs
    if outputs is not None:
        formats += _vllm_formats(
            outputs.json_, outputs.regex, outputs.choice, "structured_outputs.{}"
        )
    if len(formats) > 1:
        field_paths = " and ".join(form.field_path for form in formats)
        raise Refused(
            f"an answer has one form, and {field_paths} ask for one each: leave one of them out",
            param=formats[1].field_path,
        )
    return formats[0] if formats else None


def _response_format(
    response_format: TextFormat | JsonFormat | JsonSchemaFormat,
) -> list[AnswerFormat]:
    if isinstance(response_format, TextFormat):
        return []
    if isinstance(response_format, JsonFormat):
        return [AnswerFormat("json", ANY_OBJECT, "response_format")]
    schema = response_format.json_schema.definition
    return [json_format({} if schema is None else schema, "response_format.json_schema.schema")]


def _vllm_formats(
    schema: SchemaField | None, expression: str | None, choices: list[str] | None, field_path: str
) -> list[AnswerFormat]:
    """`field_path`: the path of the field, with braces where its last word stands."""
    formats = []
    if schema is not None:
        formats.append(json_format(schema, field_path.format("json")))
    if expression is not None:
        formats.append(AnswerFormat("regex", expression, field_path.format("regex")))
    if choices is not None:
        formats.append(AnswerFormat("choice", json.dumps(choices), field_path.format("choice")))
    return formats


def json_format(schema: SchemaField, field_path: str) -> AnswerFormat:
    """The form of JSON that follows a schema.

    Raises:
        Refused: a text that is no JSON object, or one that is nested too deeply.
    """
    try:
        content = json.loads(schema) if isinstance(schema, str) else schema
        if not isinstance(content, dict):
            raise Refused(f"{field_path}: expected a JSON schema, an object", param=field_path)
        return AnswerFormat("json", json.dumps(content), field_path)
    except RecursionError as error:
        raise Refused(f"{field_path}: the schema is nested too deeply", param=field_path) from error
    except json.JSONDecodeError as error:
        raise Refused(f"{field_path}: this is no JSON ({error})", param=field_path) from error
