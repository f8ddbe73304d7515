"""The table of transitions, and the sum of a message's copies."""

import itertools

import pytest

from app.messages.status import PRECEDENCE, TRANSITIONS, Status, aggregate, sources

ENDS = {Status.DELIVERED, Status.HARD_BOUNCED, Status.FAILED, Status.CANCELLED, Status.SUPPRESSED, Status.COMPLAINED}
WAITING = {Status.PENDING, Status.QUEUED, Status.DEFERRED, Status.SOFT_BOUNCED, Status.HELD}


def test_every_state_has_its_place():
    assert set(PRECEDENCE) == set(Status)
    assert len(PRECEDENCE) == len(Status)
    # `sending` is a lease and is never stored.
    assert set(TRANSITIONS) == set(Status) - {Status.SENDING}
    assert not any(Status.SENDING in targets for targets in TRANSITIONS.values())
    assert set(TRANSITIONS) == ENDS | WAITING


def reachable(state: Status) -> set[Status]:
    found, new = set(), {state}
    while new:
        found |= new
        new = set().union(*(TRANSITIONS[one] for one in new)) - found
    return found


@pytest.mark.parametrize("state", sorted(ENDS))
def test_what_has_ended_never_waits_again(state: Status):
    assert not reachable(state) & WAITING


@pytest.mark.parametrize("state", sorted(WAITING))
def test_what_waits_can_end_and_be_cancelled(state: Status):
    assert Status.CANCELLED in TRANSITIONS[state]
    assert {Status.DELIVERED, Status.HARD_BOUNCED, Status.FAILED, Status.SUPPRESSED} <= reachable(state)


def test_what_is_suppressed_was_never_sent():
    assert set(sources(Status.SUPPRESSED)) == WAITING - {Status.HELD}


def test_late_events():
    # A complaint or a bounce that arrives by mail comes after the host took the message, and only then.
    assert TRANSITIONS[Status.DELIVERED] == {Status.COMPLAINED, Status.HARD_BOUNCED}
    assert sources(Status.COMPLAINED) == [Status.DELIVERED]
    for end in (Status.HARD_BOUNCED, Status.FAILED, Status.CANCELLED, Status.SUPPRESSED, Status.COMPLAINED):
        assert not TRANSITIONS[end]


def test_an_end_absorbs_its_own_repetition():
    assert not any(end in TRANSITIONS[end] for end in ENDS)
    assert Status.DEFERRED in TRANSITIONS[Status.DEFERRED]


@pytest.mark.parametrize("target", sorted(Status))
def test_sources_are_the_table_read_backwards(target: Status):
    assert set(sources(target)) == {state for state in TRANSITIONS if target in TRANSITIONS[state]}


@pytest.mark.parametrize("state", sorted(Status))
def test_copies_in_one_state_make_a_message_in_that_state(state: Status):
    assert aggregate([state]) == aggregate([state, state]) == state


@pytest.mark.parametrize(
    ("statuses", "expected"),
    [
        ("delivered queued", "queued"),
        ("delivered sending queued", "sending"),
        ("delivered deferred", "deferred"),
        ("hard_bounced deferred", "deferred"),
        ("delivered pending", "pending"),
        ("delivered hard_bounced", "hard_bounced"),
        ("delivered failed", "failed"),
        ("delivered complained", "complained"),
        ("delivered suppressed", "delivered"),
        ("delivered cancelled", "delivered"),
        ("suppressed cancelled", "suppressed"),
    ],
)
def test_the_sum_of_copies(statuses: str, expected: str):
    for order in itertools.permutations(map(Status, statuses.split())):
        assert aggregate(order) == expected


def test_whatever_is_under_way_comes_before_every_end():
    under_way = {Status.SENDING, *WAITING}
    for one, other in itertools.product(under_way, ENDS):
        assert aggregate([one, other]) == one
