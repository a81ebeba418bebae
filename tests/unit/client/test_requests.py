"""Requests with an Idempotency-Key in the journal: no job of one is ever lost or bought twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from piecework.client.errors import RequestDiffers, RequestFollowed
from piecework.client.journal.records import JobStatus, Part, RequestKey
from piecework.client.journal.requests import REQUEST_LIFETIME_S
from piecework.client.journal.store import Store
from piecework_protocol.types import Timestamp
from tests.support.chain.fake_chain import DOMAIN
from tests.support.client.client_side import PAYER
from tests.unit.client.test_store import NOW, UNTIL, canvas, exactly, job_row, terms

KEY = RequestKey("", b"k" * 32)
BODY, OTHER = b"b" * 32, b"o" * 32
FIRST, SECOND = job_row(1, 100), job_row(2, 100)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "client.db"


@pytest.fixture
def store(file: Path) -> Store:
    store = Store(file, DOMAIN, PAYER.address)
    store.open_channel(terms())
    assert store.requests.open(KEY, BODY, NOW).jobs == {}
    return store


def test_a_job_is_found_by_its_request_from_the_moment_it_is_recorded(
    store: Store, file: Path
) -> None:
    store.admit(FIRST, None, exactly, UNTIL, part=Part(request=KEY))
    store.admit(SECOND, None, exactly, UNTIL, part=Part(request=KEY, number=1))
    store.close()
    again = Store(file, DOMAIN, PAYER.address)
    found = again.requests.open(KEY, BODY, Timestamp(NOW + 5))
    assert (found.created_at, found.jobs) == (NOW, {0: FIRST.id, 1: SECOND.id})
    again.close()


def test_the_next_workers_job_takes_the_place_of_a_declined_one(store: Store) -> None:
    part = Part(request=KEY)
    store.admit(FIRST, None, exactly, UNTIL, part=part)
    store.finish(FIRST.id, JobStatus.REFUSED)
    assert store.requests.open(KEY, BODY, NOW).jobs == {}
    store.admit(SECOND, None, exactly, UNTIL, part=part)
    assert store.requests.open(KEY, BODY, NOW).jobs == {0: SECOND.id}
    store.close()


@pytest.mark.parametrize(
    ("status", "paid", "is_forgotten"),
    [
        (JobStatus.LIVE, False, False),
        (JobStatus.REFUSED, False, True),
        (JobStatus.FAILED, False, True),
        (JobStatus.CANCELLED, False, True),
        (JobStatus.REFUSED, True, False),
        (JobStatus.FAILED, True, False),
        (JobStatus.BROKEN, True, False),
        (JobStatus.COMPLETE, True, False),
    ],
)
def test_only_what_costs_nothing_is_forgotten(
    store: Store, status: JobStatus, paid: bool, is_forgotten: bool
) -> None:
    store.admit(FIRST, None, exactly, UNTIL, part=Part(request=KEY))
    if paid:
        store.pay(canvas(FIRST, 0, 10), FIRST.channel_id, None)
    if status is not JobStatus.LIVE:
        store.finish(FIRST.id, status)
    assert store.requests.close(KEY) is is_forgotten
    # What was forgotten may come with any body.
    if is_forgotten:
        assert store.requests.open(KEY, OTHER, NOW).jobs == {}
    else:
        with pytest.raises(RequestDiffers):
            store.requests.open(KEY, OTHER, NOW)
    store.close()


def test_a_request_ends_after_a_day(store: Store) -> None:
    store.admit(FIRST, None, exactly, UNTIL, part=Part(request=KEY))
    last = Timestamp(NOW + REQUEST_LIFETIME_S - 1)
    assert store.requests.open(KEY, BODY, last).jobs == {0: FIRST.id}
    assert store.requests.open(KEY, OTHER, Timestamp(last + 1)).jobs == {}
    store.close()


def test_one_living_process_works_on_a_request(store: Store, file: Path) -> None:
    other = Store(file, DOMAIN, PAYER.address)
    with pytest.raises(RequestFollowed):
        other.requests.open(KEY, BODY, NOW)
    assert not other.requests.close(KEY)  # it is another's
    store.close()  # as at its death
    assert other.requests.open(KEY, BODY, NOW).jobs == {}
    third = Store(file, DOMAIN, PAYER.address)
    other.admit(FIRST, None, exactly, UNTIL, part=Part(request=KEY))
    assert not other.requests.close(KEY)  # its job may still be paid
    assert third.requests.open(KEY, BODY, NOW).jobs == {0: FIRST.id}
    other.close()
    third.close()
