"""Requests drawn from the server's own description of its API: schemathesis makes them valid and
invalid.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import httpx2
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import Case, GenerationMode
from schemathesis.core.result import Ok
from serving_files import PATIENCE

from m3.serving.settings import Limits, Settings

EACH = {GenerationMode.POSITIVE: 70, GenerationMode.NEGATIVE: 200}
"""Requests of each operation. Where there are fewer different ones, all of them."""
DOCUMENTED = {200, 400, 401, 404, 405, 408, 413, 415, 429}


@pytest.fixture(scope="module")
def address(serve: Callable[[Settings], AbstractContextManager[str]]) -> Iterator[str]:
    """Answers are short here."""
    with serve(Settings(name="tiny", limits=Limits(new_tokens=2))) as address:
        yield address


@pytest.fixture(scope="module")
def schema(address: str):
    found = schemathesis.openapi.from_dict(
        httpx2.get(f"{address}/openapi.json", timeout=PATIENCE).json()
    )
    found.config.update(base_url=address)
    return found


def with_our_model(case: Case, ours: bool) -> Case:
    """Half of the bodies name the model there is, or all of them would be told that there is no
    other.
    """
    if ours and isinstance(case.body, dict) and "model" in case.body:
        case.body["model"] = "tiny"
    return case


@pytest.mark.slow
@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
def test_no_request_breaks_the_server(schema, address: str, mode: GenerationMode) -> None:
    statuses: Counter[int] = Counter()
    operations = [found.ok() for found in schema.get_all_operations() if isinstance(found, Ok)]
    assert len(operations) == 8
    for operation in operations:
        if mode is GenerationMode.NEGATIVE and not operation.body:
            continue  # there is nothing to be wrong
        drawn = operation.as_strategy(generation_mode=mode)

        @settings(
            max_examples=EACH[mode],
            deadline=None,
            database=None,
            derandomize=True,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=drawn, ours=st.booleans())
        def run(case: Case, ours: bool) -> None:
            response = with_our_model(case, ours).call(timeout=PATIENCE)
            statuses[response.status_code] += 1
            assert response.status_code in DOCUMENTED, response.text
            if response.status_code >= 400:
                assert len(response.json()["error"]["message"]) > 10

        run()
    assert statuses.total() > 100, statuses
    assert httpx2.get(f"{address}/health", timeout=PATIENCE).status_code == 200
