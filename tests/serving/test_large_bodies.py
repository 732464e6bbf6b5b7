"""Bodies of tens of megabytes are refused or read without holding up other clients."""

import base64
import json
import statistics

import httpx2
import pytest
from serving_files import PATIENCE, ask, bystander, png, wait_until

from m3.serving.engine.requests import Refused
from m3.serving.http.middleware import MOST_ESCAPES, MOST_QUOTES, MOST_VALUES, check_json_size

MB = 1_000_000
CHAT = "/v1/chat/completions"
HEAVY = {
    "strings": b'",' * (23 * MB),
    "empty strings": b'"",' * (15 * MB),
    "escaped quotes": b'"\\",' * (11 * MB),
    "backslashes": b'"' + b"\\" * (46 * MB) + b'"',
    "escapes": b'{"model": "' + b"\\u0041" * (7 * MB) + b'"}',
    "one escaped quote after another": b'{"model": "' + b'\\"' * (20 * MB) + b'"}',
    "brackets": b"[" * (46 * MB),
    "braces": b'{"a":' * (9 * MB),
    "commas": b"," * (46 * MB),
    "spaces": b" " * (46 * MB),
    "digits": b"[" + b"1" * (46 * MB) + b"]",
    "short strings": (b'{"a": "' + b"x" * 4000 + b'",') * 11_000,
}


@pytest.mark.parametrize("body", HEAVY.values(), ids=HEAVY.keys())
def test_what_would_hold_a_parser_up_is_refused_before_it_is_parsed(body: bytes) -> None:
    with pytest.raises(
        Refused, match="the body has more than [0-9,]+ (values|escape|bytes outside)"
    ) as refused:
        check_json_size(body)
    assert (refused.value.status, refused.value.code) == (413, "request_too_large")


def test_what_people_send_passes() -> None:
    image = base64.b64encode(bytes(30 * MB)).replace(b"A", b"\\/", MOST_ESCAPES).decode()
    texts = [
        'a "quoted" word, and [brackets], {braces}' * 1000,
        "C:\\\\path\\" * 1000,
        "\\",
        '\\"',
        "",
    ]
    for text in texts:
        check_json_size(
            json.dumps({"messages": [{"role": "user", "content": text}] * 20}, indent=8).encode()
        )
    check_json_size(b'{"image": "' + image.encode() + b'"}')
    check_json_size(json.dumps([0] * (MOST_VALUES - 10)).encode())
    check_json_size(b'"' + b'\\"' * (MOST_QUOTES - 1) + b'"')
    check_json_size(b"")


@pytest.mark.slow
def test_others_are_answered_while_large_bodies_come(address: str) -> None:
    """No time is asserted but that nobody waits for a body as long as the worst one takes;
    figures: docs/serving.md.
    """
    whole = {"model": "tiny", "messages": ask(png() + bytes(12 * MB)), "max_tokens": 1}
    bodies = HEAVY | {"a picture with 12 MB behind it": json.dumps(whole).encode()}
    with httpx2.Client(base_url=address, timeout=PATIENCE) as client, bystander(address) as seconds:
        for name, body in bodies.items():
            before = len(seconds)
            status = client.post(
                CHAT, content=body, headers={"Content-Type": "application/json"}
            ).status_code
            assert status == (413 if name in HEAVY else 200), name
            wait_until(lambda before=before: len(seconds) > before)
    print(
        f"others: median {statistics.median(seconds):.3f} s, worst {max(seconds):.3f} s of "
        f"{len(seconds)}"
    )  # pytest -s
