"""`filters` of captioned images: what each leaves out, how many, and what cannot be judged."""

import io
import json
from pathlib import Path

import pytest
from format_files import write_tar
from PIL import Image

from m3.config import decode
from m3.data.checking.check import check_data
from m3.data.checking.findings_table import findings_table
from m3.data.formats import FormatSamples
from m3.data.formats.settings import Filters
from m3.data.recipe import Data, Source, open_source

SIZES = {"square": (300, 300), "wide": (900, 290), "small": (200, 250), "narrow": (250, 1000)}


def encoded(size: tuple[int, int], form: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, "red").save(buffer, form, **options)
    return buffer.getvalue()


@pytest.fixture
def tar(tmp_path: Path) -> str:
    """Four samples, whose similarity rises from 0.1 to 0.4; the second calls it score."""
    members: dict[str, bytes] = {}
    for n, (name, size) in enumerate(SIZES.items(), start=1):
        members[f"{name}.png"] = encoded(size)
        key = "score" if n == 2 else "similarity"
        members[f"{name}.json"] = json.dumps({"caption": f"a {name} one", key: n / 10}).encode()
    return str(write_tar(tmp_path / "a.tar", members))


def captions(tar: str | Path, filters: Filters) -> FormatSamples:
    return open_source(Source(path=str(tar), format="caption_tar", filters=filters))


@pytest.mark.parametrize(
    ("filters", "kept", "left_out"),
    [
        (Filters(min_similarity=0.2), ["wide", "small", "narrow"], {"min_similarity": 1}),
        (Filters(min_resolution=250), ["square", "wide", "narrow"], {"min_resolution": 1}),
        (Filters(min_resolution=251), ["square", "wide"], {"min_resolution": 2}),
        (Filters(max_aspect_ratio=3.0), ["square", "small"], {"max_aspect_ratio": 2}),
        (Filters(max_aspect_ratio=4.0), list(SIZES), {}),
        (
            Filters(min_similarity=0.2, min_resolution=260, max_aspect_ratio=4.0),
            ["wide"],
            {"min_similarity": 1, "min_resolution": 2},
        ),
    ],
)
def test_what_fails_has_no_number(
    tar: str, filters: Filters, kept: list[str], left_out: dict[str, int]
) -> None:
    source = open_source(Source(path=tar, format="caption_tar", filters=filters))
    assert [source[n].id for n in range(len(source))] == kept
    assert dict(source.records.left_out) == left_out
    with pytest.raises(IndexError, match=f"record {len(kept)} of "):
        source[len(kept)]


def test_a_header_behind_a_long_profile_is_found(tmp_path: Path) -> None:
    picture = encoded((40, 400), "JPEG", icc_profile=bytes(150_000))
    tar = write_tar(
        tmp_path / "a.tar",
        {"a.jpg": picture, "a.txt": b"a", "b.png": encoded((40, 40)), "b.txt": b"b"},
    )
    source = captions(tar, Filters(max_aspect_ratio=2.0))
    assert (len(source), source[0].id) == (1, "b")


def test_what_cannot_be_judged_stays_and_is_refused_when_read(tmp_path: Path) -> None:
    tar = write_tar(
        tmp_path / "a.tar",
        {"a.png": encoded((9, 9)), "a.txt": b"a", "b.png": b"no picture", "b.txt": b"b"},
    )
    source = captions(tar, Filters(min_similarity=0.1))
    assert len(source) == 2
    with pytest.raises(
        ValueError,
        match=r"sample 'a': filters.min_similarity asks for a number under similarity "
        r"or score",
    ):
        source[0]
    source = captions(tar, Filters(min_resolution=9))
    assert source[0].id == "a"
    with pytest.raises(ValueError, match=r"a.tar, sample 'b': .*image"):
        source[1]


def test_filters_that_leave_nothing_are_refused(tar: str) -> None:
    with pytest.raises(
        ValueError,
        match=r"filters leave none of 4 samples \(4 min_similarity\); "
        r"lower them",
    ):
        captions(tar, Filters(min_similarity=0.9))


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        ({}, "give min_similarity, min_resolution or max_aspect_ratio, or leave filters out"),
        ({"min_resolution": 0}, "filters: min_resolution must be at least 1, got 0"),
        (
            {"max_aspect_ratio": 0.5},
            "filters.max_aspect_ratio must be at least 1 .a square. and finite, got 0.5",
        ),
        ({"min_similarty": 0.1}, "unknown key 'min_similarty'. Did you mean 'min_similarity'"),
    ],
)
def test_filters_are_strict(filters: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decode({"path": "a", "format": "caption_tar", "filters": filters}, Source)


def test_other_formats_have_no_filters() -> None:
    with pytest.raises(
        ValueError,
        match=r"format llava_tar does not read filters \(read by "
        r"caption_tar\)",
    ):
        open_source(Source(path="a", format="llava_tar", filters=Filters(min_resolution=9)))


def test_the_check_counts_them(tar: str, processor) -> None:
    source = Source(
        path=tar, format="caption_tar", filters=Filters(min_similarity=0.2, max_aspect_ratio=3.5)
    )
    findings = check_data(Data(sources=(source,), pack_length=None), processor, (1,))
    assert findings.sources[0].left_out == {"min_similarity": 1, "max_aspect_ratio": 1}
    assert not findings.failures
    shown = findings_table(findings).splitlines()
    assert shown[1].split()[1:] == ["2", "2", "2", "0"]
    assert (
        shown[2]
        == f"left out of caption_tar:{tar} by its filters: 1 min_similarity, 1 max_aspect_ratio"
    )
