"""The OpenAPI document holds: examples run, and nothing that it allows makes the server fail."""

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx2
import pytest
import schemathesis
from fake_engine import CARDS, FakeEngine
from hypothesis import HealthCheck, Phase, settings
from live_server import serving

from taskfit.serve.app import create_app
from taskfit.serve.documentation import document
from taskfit.serve.limits import Limits
from taskfit.serve.wires import EXAMPLES

PATHS = {
    "/v1/systemone", "/v1/decisions", "/classify", "/v1/classify", "/predict",
    "/v1/chat/completions", "/v1/completions", "/v1/models", "/v1/models/{model}",
    "/v1/taskfit/models", "/v1/taskfit/explain", "/health", "/readyz", "/metrics",
}  # fmt: skip


def test_every_address_is_documented_and_every_example_runs(live: httpx2.Client) -> None:
    found = live.get("/openapi.json").json()
    assert set(found["paths"]) == PATHS
    sent = set()
    for path, operations in found["paths"].items():
        if "post" in operations:
            content = operations["post"]["requestBody"]["content"]["application/json"]
            response = live.post(path, json=content["example"])
            assert response.status_code == 200, (path, response.text)
            sent.add(path)
    assert sent == set(EXAMPLES)


def test_examples_are_only_of_what_is_served() -> None:
    app = create_app(FakeEngine, Limits())
    for cards in ((), *((card,) for card in CARDS)):
        for path, operations in document(app, cards)["paths"].items():
            for operation in operations.values():
                content = operation.get("requestBody", {}).get("content", {})
                example = content.get("application/json", {}).get("example")
                name = None if example is None else example["model"].split("/")[0]
                assert name in (None, *(card.name for card in cards)), path


def test_the_documentation_page_loads_nothing_from_elsewhere(live: httpx2.Client) -> None:
    page = live.get("/docs")
    assert page.status_code == 200
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert not re.findall(r"(?:src|href)=[\"']?(?:https?:)?//", page.text)
    for path in PATHS:
        assert path.split("{")[0] in page.text


# One model that does all, so that requests without a name reach it.
ALL = replace(CARDS[0], generates=True)
schema = schemathesis.openapi.from_dict(document(create_app(FakeEngine, Limits()), (ALL,)))


@pytest.fixture(scope="module")
def one_model() -> Iterator[httpx2.Client]:
    with serving(FakeEngine(cards=(ALL,))) as client:
        yield client


# 422 and 404 for a body of the right shape are no mistakes: which models, questions and columns
# there are is not in a schema.
SKIPPED = (schemathesis.checks.CHECKS.get_one("positive_data_acceptance"),)


@schema.parametrize()
@settings(
    max_examples=8,
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_nothing_that_the_document_allows_makes_the_server_fail(
    case: Any, one_model: httpx2.Client
) -> None:
    case.call_and_validate(base_url=str(one_model.base_url), excluded_checks=list(SKIPPED))
