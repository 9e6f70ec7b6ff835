"""Hints: which job an ApiServerSource's event is about, whatever else is in it."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.contract.events import Event
from functions.dispatch.hint import TYPES, Hint, read
from tests.make import AT, JOB, TENANT

RUN = f"{JOB}-a2"
LABELS = {"cinevent.io/tenant": TENANT, "cinevent.io/job": JOB}
FOUND = Hint(job=JOB, run=RUN, tenant=TENANT)


def an_event_with(data: dict[str, Any], kind: str = "resource.update") -> Event:
    return Event(id="1", source="https://10.0.0.1:443", type=f"dev.knative.apiserver.{kind}", time=AT, data=data)


@pytest.mark.parametrize(
    ("data", "hint"),
    [
        ({"kind": "PyTorchJob", "metadata": {"name": RUN, "labels": LABELS}}, FOUND),
        ({"kind": "Pod", "metadata": {"name": f"{RUN}-master-0", "labels": LABELS}}, FOUND),
        ({"kind": "Pod", "metadata": {"name": f"{RUN}-1-x7k2p", "labels": LABELS}}, FOUND),
        (
            {"kind": "PyTorchJob", "name": RUN, "namespace": "video", "apiVersion": "kubeflow.org/v1"},
            Hint(job=JOB, run=RUN, tenant=""),
        ),
        ({"metadata": {"name": RUN, "labels": {"cinevent.io/tenant": "A.b"}}}, Hint(job=JOB, run=RUN, tenant="")),
        ({"metadata": {"name": "other-a1", "labels": LABELS}}, None),
        ({"metadata": {"name": JOB, "labels": LABELS}}, None),
        ({"metadata": {"name": f"{JOB}-b1"}}, None),
        ({"metadata": {"name": 7}}, None),
        ({"metadata": []}, None),
        ({}, None),
    ],
)
def test_an_event_names_a_run_or_nothing_of_ours(data: dict[str, Any], hint: Hint | None) -> None:
    assert read(an_event_with(data)) == hint


ODD = st.recursive(
    st.text() | st.none(),
    lambda inner: st.dictionaries(st.sampled_from(["name", "labels", "cinevent.io/tenant"]), inner),
)


@given(data=st.dictionaries(st.sampled_from(["metadata", "name"]), ODD))
def test_no_object_is_too_odd(data: dict[str, Any]) -> None:
    assert read(an_event_with(data)) is None


def test_both_modes_are_taken() -> None:
    assert {"dev.knative.apiserver.resource.update", "dev.knative.apiserver.ref.delete"} <= TYPES
    assert len(TYPES) == 6
