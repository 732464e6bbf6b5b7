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
from m3.serving.http.body.findings import LONGEST_PLACE, clean, cut, find_mistakes
from m3.serving.http.envelope import ID_HEADER, request_id

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
    param = None if param is None else clean(cut(param, LONGEST_PLACE))
    return {"error": {"message": clean(message), "type": error_type, "param": param, "code": code}}


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


async def _on_invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    findings = find_mistakes(error.errors(), error.body, request.url.path)
    first_finding = findings.first_findings[0]
    return error_response(400, str(findings), first_finding.code, first_finding.field_path or None)


async def _on_http(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    error_text = HTTP_MESSAGES.get(error.status_code, str(error.detail))
    return error_response(error.status_code, error_text, headers=dict(error.headers or {}))


async def _on_bug(request: Request, error: Exception) -> Response:
    """Starlette logs the trace; the client is told nothing of it. No middleware sees this answer."""
    return error_response(
        500,
        "the server failed on its own account; its log says why",
        "internal_error",
        headers={ID_HEADER: request_id(request.scope)},
    )
