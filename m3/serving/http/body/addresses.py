"""`data:` addresses and base64 as the world writes them -> the bytes of a file.

In: text of a request. Out: bytes, or `Refused` with the place in the body. Taken beside the plain
form: white space and line ends inside (RFC 2045; Python's `encodebytes`, `base64` without -w0),
missing padding, the alphabet of addresses (`-_`), `%2B`, `%2F`, `%3D` and white space as browsers
escape them, parameters in any order (`;charset=utf-8;base64`), white space around. Refused: no
`data:` in front, anything behind the padding, every other character.
"""

import base64
import binascii

from m3.serving.engine.requests import Refused

WHITE_SPACE = " \t\n\r\f"
"""ASCII's, as of https://infra.spec.whatwg.org/#ascii-whitespace."""
ESCAPES = {"%2B": "+", "%2F": "/", "%3D": "=", "%0A": "", "%0D": "", "%20": ""}
"""In an address, as RFC 3986 escapes characters of base64."""
ALPHABET = str.maketrans("-_", "+/", WHITE_SPACE)
QUANTUM = 4
"""Characters of base64 for three bytes."""


def is_data_address(address: str) -> bool:
    """Tell whether it begins with `data:`."""
    return address[:5].lower() == "data:"


def read_data_address(address: str, max_bytes: int, field_path: str) -> bytes:
    """The content of `data:<type>;base64,<content>`."""
    head, comma, body = address.partition(",")
    parameters = [parameter.strip().lower() for parameter in head.split(";")[1:]]
    if not comma or "base64" not in parameters:
        raise Refused(
            f"{field_path}: expected 'data:<type>;base64,<content>', got {address[:40]!r}...",
            param=field_path,
        )
    return decode_base64(body, max_bytes, field_path)


def decode_base64(text: str, max_bytes: int, field_path: str) -> bytes:
    """Its length is looked at before anything is decoded."""
    if not text.isascii():
        raise Refused(
            f"{field_path}: the content is not valid base64 (it has characters beyond ASCII)",
            param=field_path,
        )
    text = text.translate(ALPHABET)
    if "%" in text:
        for escape, character in ESCAPES.items():
            text = text.replace(escape, character).replace(escape.lower(), character)
    size = len(text) * 3 // QUANTUM
    if len(text) > max_bytes * QUANTUM // 3 + QUANTUM:
        raise Refused(
            f"{field_path}: the file has about {size:,} bytes, more than this server's limit of "
            f"{max_bytes:,}",
            param=field_path,
        )
    if not text.endswith("="):
        text += "=" * (-len(text) % QUANTUM)
    try:
        content = base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise Refused(
            f"{field_path}: the content is not valid base64 ({error})", param=field_path
        ) from error
    if not content:
        raise Refused(f"{field_path}: the file is empty (0 bytes)", param=field_path)
    return content
