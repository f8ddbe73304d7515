"""Pages of a real list, forth and back, at their exact ends."""

from typing import Any

import httpx
import pytest

from tests.accounts import helpers

URL = "/api/v1/api-keys"


class Keys:
    """An organization with some API keys; pages of their names."""

    def __init__(self, client: httpx.AsyncClient, headers: dict[str, str]) -> None:
        self.client = client
        self.headers = headers

    async def add(self, name: str) -> None:
        await helpers.mint(self.client, self.headers, name=name, scopes=["send"])

    async def page(self, **params: Any) -> tuple[str, dict[str, Any]]:
        response = await self.client.get(URL, headers=self.headers, params=params)
        assert response.status_code == 200, response.text
        data = response.json()["data"]
        return "".join(key["name"] for key in data["api_keys"]), data["pagination"]


@pytest.fixture
async def keys(client: httpx.AsyncClient) -> Keys:
    """Seven keys; the newest, and so the first of every list, is a."""
    found = Keys(client, (await helpers.register(client)).headers)
    for name in "gfedcba":
        await found.add(name)
    return found


async def walk(keys: Keys, direction: str, page: tuple[str, dict[str, Any]], limit: int) -> list[str]:
    """The names on each page from this one on."""
    cursor = {"next": "after", "previous": "before"}[direction]
    found = [page[0]]
    while page[1][direction] is not None:
        page = await keys.page(limit=limit, **{cursor: page[1][direction]})
        found.append(page[0])
    return found


@pytest.mark.parametrize(
    ("limit", "pages"),
    [
        (1, ["a", "b", "c", "d", "e", "f", "g"]),
        (2, ["ab", "cd", "ef", "g"]),
        (3, ["abc", "def", "g"]),
        (6, ["abcdef", "g"]),
        (7, ["abcdefg"]),
        (8, ["abcdefg"]),
        (100, ["abcdefg"]),
    ],
)
async def test_forth(keys: Keys, limit: int, pages: list[str]):
    first = await keys.page(limit=limit)
    assert first[1]["previous"] is None
    assert (first[1]["limit"], first[1]["has_more"]) == (limit, len(pages) > 1)
    assert await walk(keys, "next", first, limit) == pages


@pytest.mark.parametrize(
    ("limit", "pages"), [(1, [*"gfedcba"]), (2, ["g", "ef", "cd", "ab"]), (3, ["g", "def", "abc"])]
)
async def test_there_and_back(keys: Keys, limit: int, pages: list[str]):
    page = await keys.page(limit=limit)
    while page[1]["next"] is not None:
        page = await keys.page(limit=limit, after=page[1]["next"])
    assert page[1]["has_more"] is False
    assert await walk(keys, "previous", page, limit) == pages


async def test_back_at_the_first_page_nothing_is_before_it(keys: Keys):
    second = await keys.page(limit=3, after=(await keys.page(limit=3))[1]["next"])
    names, pagination = await keys.page(limit=3, before=second[1]["previous"])
    assert (names, pagination["has_more"], pagination["previous"]) == ("abc", False, None)
    assert (await keys.page(limit=3, after=pagination["next"]))[0] == "def"


async def test_a_short_page_back(keys: Keys):
    """Going back by more than there is gives what there is, still newest first."""
    second = await keys.page(limit=2, after=(await keys.page(limit=2))[1]["next"])
    names, pagination = await keys.page(limit=100, before=second[1]["previous"])
    assert (names, pagination["has_more"]) == ("ab", False)


async def test_new_items_shift_no_page(keys: Keys):
    first = await keys.page(limit=3)
    await keys.add("z")
    assert (await keys.page(limit=3, after=first[1]["next"]))[0] == "def"
    second = await keys.page(limit=3, after=first[1]["next"])
    assert (await keys.page(limit=3, before=second[1]["previous"]))[0] == "abc"
    assert (await keys.page(limit=3))[0] == "zab"


async def test_deleted_items_break_no_cursor(keys: Keys, client: httpx.AsyncClient):
    response = await client.get(URL, headers=keys.headers, params={"limit": 3})
    third = response.json()["data"]["api_keys"][2]
    await client.delete(f"{URL}/{third['id']}", headers=keys.headers)
    cursor = response.json()["data"]["pagination"]["next"]
    assert (await keys.page(limit=3, after=cursor))[0] == "def"


async def test_an_empty_list(client: httpx.AsyncClient):
    keys = Keys(client, (await helpers.register(client)).headers)
    names, pagination = await keys.page()
    assert (names, pagination) == ("", {"limit": 25, "has_more": False, "next": None, "previous": None})


async def test_past_the_end(keys: Keys):
    last = await keys.page(limit=7)
    assert last[1]["next"] is None
    sixth = await keys.page(limit=6)
    seventh = await keys.page(limit=1, after=sixth[1]["next"])
    assert (seventh[0], seventh[1]["next"], seventh[1]["has_more"]) == ("g", None, False)


async def test_a_cursor_tells_nothing_of_another_organization(keys: Keys, client: httpx.AsyncClient):
    other = Keys(client, (await helpers.register(client)).headers)
    cursor = (await keys.page(limit=3))[1]["next"]
    assert (await other.page(after=cursor))[0] == ""
