"""The API's document is true: requests made from it are taken, ones that break it are refused, answers are as it says.

For each operation, Hypothesis makes requests from the document alone and sends them to a real server. Seen to fail:
- with `minLength` taken out of `requests.Term`, of `operations.QUERY` or of the plan's `devices`: an empty string is
  allowed by the document and refused by the daemon;
- with "text/csv" taken out of the export's media types;
- with a larger `maximum` in `operations.NATURAL`: 2^63 is allowed and refused;
- with a key of `answers.DeviceInfo` renamed: the answer has a key that the document doesn't;
- with `"extra": "forbid"` taken out of `requests.Request`: an unknown key is forbidden and taken.
"""

from __future__ import annotations

import copy
import http.client
import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import jsonschema_rs
import pytest
from control_server import GPU, LABELS, Running, populated
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from boundd.api.answers import CellStateName, DeviceStateName, MemoryCauseName
from boundd.api.operations import OPERATIONS, Operation
from boundd.api.requests import Empty
from boundd.control.openapi import openapi
from boundd.core.model.attempts import CellState
from boundd.core.model.devices import DeviceState
from boundd.core.model.outcomes import MemoryCause

DOCUMENT = openapi()
LONGEST_WAIT_S = 0.01
TEXT = st.text(st.characters(codec="utf-8"), max_size=12)
KNOWN = {
    "id": LABELS,
    "query": [*LABELS, "model=SDXL", "state=failed", "*"],
    "q": [*LABELS, "model=SDXL", "*"],
    "device": [GPU, "0"],
    "devices": ["4x24GiB", "24GiB,8GiB"],
    "text": ["ambiguous", "bad", "{}"],
}
"""Values of which something comes, by the name of the parameter or key; random ones are mostly not found."""
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One for all the requests of this file."""
    with populated(tmp_path_factory.mktemp("openapi")) as running:
        yield running


def values(schema: dict[str, Any], name: str = "") -> st.SearchStrategy[Any]:
    """Values that a schema allows, often at its bounds; `name` is of the parameter or key that it is of."""
    if "$ref" in schema:
        return values(DOCUMENT["components"]["schemas"][schema["$ref"].rsplit("/", 1)[1]], name)
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    if "anyOf" in schema:
        return st.one_of([values(each, name) for each in schema["anyOf"]])
    kind = schema["type"]
    if kind == "null":
        return st.none()
    if kind == "boolean":
        return st.booleans()
    if kind == "integer":
        low, high = schema.get("minimum"), schema.get("maximum")
        return st.integers(low, high) | st.sampled_from([bound for bound in (low, high) if bound is not None] or [0])
    if kind == "number":
        return st.floats(schema.get("minimum"), schema.get("maximum"), allow_nan=False)
    if kind == "string":
        shortest = schema.get("minLength", 0)
        made = st.text(st.characters(codec="utf-8"), min_size=shortest, max_size=min(schema.get("maxLength", 20), 20))
        return made | st.sampled_from(KNOWN[name]) if name in KNOWN else made
    if kind == "array":
        return st.lists(values(schema["items"], name), min_size=schema.get("minItems", 0), max_size=3)
    required = set(schema.get("required", ()))
    members = {key: values(each, key) for key, each in schema.get("properties", {}).items()}
    return st.fixed_dictionaries(
        {key: made for key, made in members.items() if key in required},
        optional={key: made for key, made in members.items() if key not in required},
    )


def bodies(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    """What the schema allows, that with something wrong in it, and any JSON."""

    def spoil(body: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
        return {**body, key: value}

    names = list(DOCUMENT["components"]["schemas"][schema["$ref"].rsplit("/", 1)[1]].get("properties", {}))
    keys = st.sampled_from(names) | TEXT if names else TEXT
    return values(schema) | st.builds(spoil, values(schema), keys, JSON_VALUES) | JSON_VALUES


def closed_schemas() -> dict[str, Any]:
    """The document's schemas, for which a key that an object doesn't list is wrong; only an error may say more."""
    schemas = copy.deepcopy(DOCUMENT["components"]["schemas"])
    for name, each in schemas.items():
        if name != "ErrorBody":
            each["additionalProperties"] = False
    return schemas


CLOSED_SCHEMAS = closed_schemas()


def validator(schema: dict[str, Any]) -> jsonschema_rs.Validator:
    """Checks against a schema."""
    return jsonschema_rs.Draft202012Validator({**schema, "components": {"schemas": CLOSED_SCHEMAS}})


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=30)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(30)
        self.sock.connect(str(self._path))


def exchange(server: Running, operation: Operation, target: str, body: bytes | None) -> dict[str, Any] | None:
    """Send a request and compare its answer with the document; the error that it is, or None."""
    connection = _Connection(server.socket)
    try:
        connection.request(operation.method, target, body, {"Content-Type": "application/json"} if body else {})
        response = connection.getresponse()
        documented = DOCUMENT["paths"][operation.path][operation.method.lower()]["responses"]
        assert str(response.status) in documented, f"{response.status} is not documented"
        media_type = response.getheader("content-type", "").split(";")[0]
        content = documented[str(response.status)]["content"]
        assert media_type in content, f"{response.status} as {media_type} is not documented"
        if media_type != "application/json":
            return None
        answer = json.loads(response.read())
        errors = [
            f"{error.instance_path}: {error.message}"
            for error in validator(content[media_type]["schema"]).iter_errors(answer)
        ]
        assert not errors, errors
        assert response.status < 500, answer
        if response.status < 400:
            return None
        error: dict[str, Any] = answer["error"]
        return error
    finally:
        connection.close()


def text_of(value: Any) -> Any:
    """A parameter's value as it stands in a query string."""
    if isinstance(value, bool):
        return str(value).lower()
    return [str(each) for each in value] if isinstance(value, list) else str(value)


def targets(data: st.DataObject, operation: Operation) -> tuple[str, str]:
    """A target that the document allows; and its path alone."""
    path = operation.path
    if "{id}" in path:
        path = path.replace("{id}", quote(data.draw(values({"type": "string", "minLength": 1}, "id")), safe=""))
    given = {}
    for each in operation.parameters:
        if data.draw(st.booleans(), label=f"with {each.name}"):
            given[each.name] = text_of(data.draw(values(each.schema, each.name), label=each.name))
    if operation.name == "wait":
        given["timeout"] = str(min(float(given.get("timeout", "1")), LONGEST_WAIT_S))
    return f"{path}?{urlencode(given, doseq=True)}", path


def examples(operation: Operation) -> int:
    """How many requests of an operation are enough: those without anything to vary need few."""
    varied = operation.parameters or "{id}" in operation.path or operation.body not in (None, Empty)
    return 40 if varied else 3


SERVED = [each for each in OPERATIONS if each.name != "backup"]


@pytest.mark.parametrize("operation", SERVED, ids=lambda each: each.name)
def test_what_the_document_allows_is_taken(server: Running, operation: Operation) -> None:
    """A request that it allows is never called a bad one, and what comes is one of its answers.

    The backup, which the memory store here doesn't make, has tests/store/test_backup.py and tests/cli/test_backup.py.
    """

    @given(st.data())
    @settings(
        max_examples=examples(operation), deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
    )
    def send(data: st.DataObject) -> None:
        target, _ = targets(data, operation)
        body = None
        if operation.body is not None:
            schema = {"$ref": f"#/components/schemas/{operation.body.__name__}"}
            body = json.dumps(data.draw(values(schema), label="body")).encode()
        error = exchange(server, operation, target, body)
        assert error is None or error["type"] != "bad_request", error

    send()


@pytest.mark.parametrize("operation", [each for each in OPERATIONS if each.body], ids=lambda each: each.name)
def test_a_body_is_taken_just_where_the_document_allows_it(server: Running, operation: Operation) -> None:
    """Whatever JSON comes: a bad request where the document doesn't allow it, and none where it does."""
    assert operation.body is not None
    schema = {"$ref": f"#/components/schemas/{operation.body.__name__}"}
    allowed = validator(schema)

    @given(bodies(schema))
    @settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
    def send(body: Any) -> None:
        error = exchange(server, operation, operation.path, json.dumps(body).encode())
        is_bad = error is not None and error["type"] == "bad_request"
        assert is_bad is not allowed.is_valid(body), (error, body)

    send()


@pytest.mark.parametrize("operation", [each for each in OPERATIONS if each.parameters], ids=lambda each: each.name)
def test_a_parameter_that_the_document_forbids_is_refused(server: Running, operation: Operation) -> None:
    """Text for a number, a number out of its bounds, an unknown word, an empty string where there must be one."""

    @given(st.data())
    @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
    def send(data: st.DataObject) -> None:
        parameter = data.draw(st.sampled_from(operation.parameters))
        path = operation.path.replace("{id}", quote(LABELS[1], safe=""))
        wrong = data.draw(wrong_texts(parameter.schema))
        error = exchange(server, operation, f"{path}?{urlencode({parameter.name: wrong}, doseq=True)}", None)
        assert error is not None
        assert error["type"] in ("bad_request", "bad_query", "bad_value"), error

    send()


def wrong_texts(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    """What a parameter's schema forbids, as text."""
    if schema["type"] == "array":
        items = schema["items"]
        return st.just([""]) | st.just(["x" * (items["maxLength"] + 1)] if "maxLength" in items else [""])
    if "enum" in schema:
        return TEXT.filter(lambda text: text not in schema["enum"])
    if schema["type"] == "boolean":
        return TEXT.filter(lambda text: text.casefold() not in ("1", "true", "yes", "0", "false", "no"))
    past = [str(schema[bound] + step) for bound, step in (("minimum", -1), ("maximum", 1)) if bound in schema]
    no_number = TEXT.filter(lambda text: not re.fullmatch(r"\s*[-+]?[\d_.]+([eE][-+]?\d+)?\s*", text))
    return no_number | st.sampled_from(past)


def test_every_operation_is_documented(server: Running) -> None:
    """What is served and what is documented are one list, in docs/http.md too, and every reference resolves."""
    document = server.client.get("/openapi.json")
    assert document == json.loads(json.dumps(DOCUMENT))
    documented = {(method.upper(), path) for path, item in document["paths"].items() for method in item}
    assert documented == {(each.method, each.path) for each in OPERATIONS}
    schemas = document["components"]["schemas"]
    references = [part.split('"')[0] for part in json.dumps(document).split("#/components/schemas/")[1:]]
    assert references
    assert set(references) <= set(schemas)
    page = Path("docs/http.md").read_text()
    for _method, path in documented:
        assert f"`{_method} {path}`" in page, path


def test_names_of_states_are_those_of_the_core() -> None:
    """The description imports nothing of the core, so that its lists are compared here."""
    for names, states in ((CellStateName, CellState), (DeviceStateName, DeviceState), (MemoryCauseName, MemoryCause)):
        assert set(names.__args__) == {state.value for state in states}
