"""The worker's environment: read, written, refused by name."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from boundd.protocol import environment
from boundd.protocol.environment import WorkerEnvironment

_objects = st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), st.integers(-9, 9))
_sizes = st.integers(1, 2**63 - 1)


@given(
    st.builds(
        WorkerEnvironment,
        cell=st.none() | _objects,
        attempt=st.none() | st.just("12"),
        results=st.none() | st.just(Path("/a/results.jsonl")),
        memory_cap_bytes=st.none() | _sizes,
        batch_size=st.none() | _sizes,
        lease_folder=st.none() | st.just(Path("/b")),
        model=st.none() | _objects,
        scorer=st.none() | _objects,
        earlier_results=st.sampled_from([(), (Path("/a/1"), Path("/a/2"))]),
        visible_devices=st.none() | st.sampled_from(["", "GPU-1"]),
    )
)
def test_what_is_given_is_read_back(given_environment: WorkerEnvironment) -> None:
    """to_environ and from_environ are each other's inverse, an empty CUDA_VISIBLE_DEVICES included."""
    assert WorkerEnvironment.from_environ(given_environment.to_environ()) == given_environment


def test_nothing_set_is_a_worker_of_its_own() -> None:
    """All variables are optional, and an empty one counts as not set."""
    assert WorkerEnvironment.from_environ({}) == WorkerEnvironment()
    empty = {name: "" for name in environment.VARIABLES if name != environment.CUDA_VISIBLE_DEVICES}
    assert WorkerEnvironment.from_environ(empty) == WorkerEnvironment()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (environment.CELL, "{"),
        (environment.CELL, "[]"),
        (environment.CELL, '{"a": NaN}'),
        (environment.MODEL, '"x"'),
        (environment.SCORER, "1"),
        (environment.MEMORY_CAP_BYTES, "12MiB"),
        (environment.MEMORY_CAP_BYTES, "0"),
        (environment.MEMORY_CAP_BYTES, "-1"),
        (environment.MEMORY_CAP_BYTES, "9" * 30),
        (environment.BATCH_SIZE, "4.0"),
        (environment.BATCH_SIZE, "1_0"),
        (environment.BATCH_SIZE, "٤"),
        (environment.RESULTS, "results.jsonl"),
        (environment.LEASE, "lease"),
        (environment.EARLIER_RESULTS, "/a"),
        (environment.EARLIER_RESULTS, '["a"]'),
        (environment.EARLIER_RESULTS, "[1]"),
    ],
)
def test_a_bad_value_names_its_variable(name: str, value: str) -> None:
    """The error begins with the variable at fault."""
    with pytest.raises(ValueError, match=f"^{name}: "):
        WorkerEnvironment.from_environ({name: value})


def test_devices_come_with_their_order() -> None:
    """Naming a device fixes the order CUDA counts in."""
    variables = WorkerEnvironment(visible_devices="GPU-1").to_environ()
    assert variables == {"CUDA_VISIBLE_DEVICES": "GPU-1", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
