from datetime import UTC, datetime, timedelta
from uuid import RFC_4122, UUID

import pytest

from app.core import ids


def test_ids_are_uuids_of_version_7_that_sort_by_time():
    before = datetime.now(UTC) - timedelta(milliseconds=1)
    made = [ids.new_id() for _ in range(20_000)]
    assert all((one.version, one.variant) == (7, RFC_4122) for one in made[:100])
    assert made == sorted(made)
    assert len(set(made)) == len(made)
    assert all(type(one) is UUID for one in made[:10])
    # A generator that is asked very often may borrow from the milliseconds to come.
    assert before <= ids.time_of(made[0]) <= ids.time_of(made[-1]) <= datetime.now(UTC) + timedelta(seconds=1)


def test_the_floor_of_a_moment_is_below_its_ids_and_above_all_before():
    one = ids.new_id()
    moment = ids.time_of(one)
    assert ids.floor(moment) <= one < ids.floor(moment + timedelta(milliseconds=1))
    assert ids.time_of(ids.floor(moment)) == moment


@pytest.mark.parametrize("moment", [datetime(1970, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, tzinfo=UTC)])
def test_the_ends_of_time(moment: datetime):
    assert ids.time_of(ids.floor(moment)) == moment


@pytest.mark.parametrize("count", [0, 1, 2, 500])
def test_siblings_are_of_the_same_millisecond_and_ascend(count: int):
    one = ids.new_id()
    found = ids.siblings(one, count)
    assert len(set(found) | {one}) == count + 1
    assert found == sorted(found)
    assert all((sibling.version, sibling.variant) == (7, RFC_4122) for sibling in found)
    assert {ids.time_of(sibling) for sibling in found} <= {ids.time_of(one)}
