"""Every error in OpenAI's format, with a message that says what to do and no trace.

In: what routes and validation raise. Out: JSON `{"error": {"message", "type", "param", "code"}}`
    with HTTP's status.
"""

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from m3.serving.engine.requests import Busy, Refused

TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}
HTTP_MESSAGES = {
    400: "the body is not JSON that can be read",
    404: "there is nothing at this path; /openapi.json says what there is",
    405: "this path takes another method; /openapi.json says which",
}
"""In place of HTTP's own words."""
SHOWN = 5
"""Mistakes of one body that are told."""
LONGEST = 300
"""Characters of one of them: a client's own words may be part of it."""


def error_response(
    status: int,
    message: str,
    code: str | None = None,
    param: str | None = None,
    headers: dict[str, str] | None = None,
) -> JSONResponse:
    return JSONResponse(error_body(status, message, code, param), status, headers)


def error_body(
    status: int, message: str, code: str | None = None, param: str | None = None
) -> dict[str, dict[str, str | None]]:
    error_type = TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    param = None if param is None else _cut(param)
    return {"error": {"message": message, "type": error_type, "param": param, "code": code}}


def refused_response(refused: Refused) -> JSONResponse:
    headers = {"Retry-After": str(refused.retry_after_seconds)} if isinstance(refused, Busy) else {}
    if refused.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return error_response(refused.status, str(refused), refused.code, refused.param, headers)


def add_error_handlers(app: FastAPI) -> None:
    """For whatever a route may raise."""
    app.add_exception_handler(Refused, _on_refused)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(Exception, _on_bug)


async def _on_refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    return refused_response(error)


async def _on_invalid(_: Request, error: Exception) -> Response:
    """Pydantic's findings: the place and the reason, never the value, which may be an image."""
    assert isinstance(error, RequestValidationError)
    invalid_fields = error.errors()
    field_paths = [
        ".".join(str(path_step) for path_step in invalid_field["loc"] if path_step != "body")
        for invalid_field in invalid_fields
    ]
    field_messages = [
        f"{_cut(field_path)}: {_reason(invalid_field['type'], invalid_field['msg'])}"
        if field_path
        else _reason(invalid_field["type"], invalid_field["msg"])
        for field_path, invalid_field in zip(field_paths[:SHOWN], invalid_fields, strict=False)
    ]
    more_note = f" (and {len(invalid_fields) - SHOWN} more)" if len(invalid_fields) > SHOWN else ""
    return error_response(
        400, "; ".join(field_messages) + more_note, "invalid_request", field_paths[0] or None
    )


def _reason(kind: str, message: str) -> str:
    if kind == "extra_forbidden":
        return "this server does not know this field"
    if kind == "none_required":
        return "this server cannot do what this field asks for: leave it out"
    if kind == "literal_error":
        return f"{_cut(message)}: this server can do nothing else"
    return _cut(message)


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


async def _on_http(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    error_text = HTTP_MESSAGES.get(error.status_code, str(error.detail))
    return error_response(error.status_code, error_text, headers=dict(error.headers or {}))


async def _on_bug(_: Request, error: Exception) -> Response:
    """Starlette logs the trace; the client is told nothing of it."""
    return error_response(
        500, "the server failed on its own account; its log says why", "internal_error"
    )
