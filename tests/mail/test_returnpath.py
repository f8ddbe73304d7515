import uuid

import pytest

from app.mail import returnpath

KEY = b"k" * 32
ORG, DELIVERY = uuid.UUID(int=1), uuid.UUID("ffffffff-ffff-7fff-bfff-ffffffffffff")


def test_round_trip_in_any_case_and_within_64_octets() -> None:
    for _ in range(200):
        org, delivery = uuid.uuid4(), uuid.uuid4()
        local = returnpath.encode(org, delivery, key=KEY)
        assert len(local) == returnpath.LOCAL_CHARACTERS <= 64
        assert local.isalnum()
        assert local == local.lower()
        assert returnpath.decode(local, key=KEY) == (org, delivery)
        assert returnpath.decode(local.upper(), key=KEY) == (org, delivery)
        assert returnpath.decode(local.swapcase().title(), key=KEY) == (org, delivery)


def test_it_is_the_same_every_time_and_differs_by_key() -> None:
    local = returnpath.encode(ORG, DELIVERY, key=KEY)
    assert local == returnpath.encode(ORG, DELIVERY, key=KEY)
    assert local != returnpath.encode(ORG, DELIVERY, key=b"other")
    assert returnpath.decode(local, key=b"other") is None


def test_changing_any_one_character_is_noticed() -> None:
    local = returnpath.encode(ORG, DELIVERY, key=KEY)
    for index, character in enumerate(local):
        for other in "abcdefghijklmnopqrstuvwxyz234567":
            if other != character:
                assert returnpath.decode(local[:index] + other + local[index + 1 :], key=KEY) is None


@pytest.mark.parametrize(
    "local",
    [
        "",
        "b",
        "bounce",
        "b" * 61,
        "b" * 62,
        "b" * 63,
        "b" + "1" * 61,
        "b" + "=" * 61,
        "b" + "a" * 60 + "İ",
        "\x00" * 62,
    ],
)
def test_strangers_are_none(local: str) -> None:
    assert returnpath.decode(local, key=KEY) is None
