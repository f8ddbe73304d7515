"""Lists as CSV: what an import takes and what it says of the rest; what an export writes."""

import csv
import io

import pytest

from app.suppressions import schemas, sheet
from app.suppressions.sheet import NoCsvError
from tests.accounts import helpers
from tests.suppressions.helpers import Keeper


def read(text: str, max_lines: int = 100) -> tuple[list[tuple[str, ...]], list[tuple[int, str]]]:
    found = sheet.read(text.encode(), max_lines=max_lines)
    rows = [(one.address, one.reason, one.tag or "", one.detail or "") for one in found.found]
    return rows, [(one.line, one.detail) for one in found.flaws]


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("a@example.com", [("a@example.com", "manual", "", "")]),
        ("\ufeffEmail\r\nA@Example.com\r\n", [("a@example.com", "manual", "", "")]),
        ("address,reason\na@example.com,Complaint\n\n  ,\n", [("a@example.com", "complaint", "", "")]),
        ('a@example.com,,"big, news","said ""no"""\n', [("a@example.com", "manual", "big, news", 'said "no"')]),
        ("a@bücher.example, hard_bounce ,t", [("a@xn--bcher-kva.example", "hard_bounce", "t", "")]),
        ("a@example.com,,,,more,and more", [("a@example.com", "manual", "", "")]),
        ("'+a@example.com,,'=t,''d", [("+a@example.com", "manual", "=t", "'d")]),
        ("'a@example.com,,'t", [("'a@example.com", "manual", "'t", "")]),
    ],
)
def test_lines_that_are_taken(text: str, rows: list[tuple[str, ...]]) -> None:
    assert read(text) == (rows, [])


def test_what_is_said_of_the_others() -> None:
    text = (
        "address\n"
        "nobody\n"
        "a@example.com\n"
        "b@example.com,boredom\n"
        '"c@example.com"x,manual\n'
        "\n"
        'd@example.com,,,"two\nlines"\n'
        "address\n"
        "e@example.com\x00\n"
        'f@example.com,,,"never closed\n'
        "g@example.com\n"
    )
    rows, flaws = read(text)
    assert rows == [("a@example.com", "manual", "", "")]
    assert [line for line, _ in flaws] == [2, 4, 5, 7, 9, 10, 11]
    said = dict(flaws)
    assert said[2] == "address: An address must have an @-sign."
    assert said[4].startswith("reason: ")
    assert said[5].startswith("The line is no CSV: ")
    assert said[7].startswith("detail: ")
    assert said[11].startswith("The line is no CSV: ")


@pytest.mark.parametrize("octets", [b"\xff\xfea", b"a@example.com\n" * 11, b"a@example.com\r" * 11])
def test_what_is_not_read_at_all(octets: bytes) -> None:
    with pytest.raises(NoCsvError):
        sheet.read(octets, max_lines=10)


async def test_a_thousand_lines(keeper: Keeper) -> None:
    await keeper.suppress("u7@example.com", reason="complaint")
    lines = [f"u{number}@example.com,unsubscribe" for number in range(1000)]
    data = await keeper.imported("\r\n".join(["Address,Reason", *lines, "u8@EXAMPLE.com", "nobody"]))
    assert (data["added"], data["already_suppressed"], data["rejected"]) == (999, 2, 1)
    assert data["errors"] == [{"line": 1003, "detail": "address: An address must have an @-sign."}]
    assert (await keeper.get(address="u7@example.com"))["suppressions"][0]["reason"] == "complaint"
    assert (await keeper.get(address="u8@example.com"))["suppressions"][0]["reason"] == "unsubscribe"


async def test_what_was_exported_can_be_imported(keeper: Keeper, stranger: Keeper) -> None:
    await keeper.suppress("+a=b@example.com", tag="=SUM(A1)", detail='@home, "quoted", \'')
    await keeper.suppress("'o@example.com", tag="'=x", reason="complaint")
    await keeper.suppress("ä@bücher.example", detail="-1")
    response = await keeper.ask("GET", "/export")
    assert response.headers["Content-Type"] == "text/csv; charset=utf-8"
    assert "suppressions.csv" in response.headers["Content-Disposition"]
    header, *rows = csv.reader(io.StringIO(response.text))
    assert header == ["address", "reason", "tag", "detail", "message_id", "created_at"]
    assert [row[:4] for row in rows] == [
        ["ä@xn--bcher-kva.example", "manual", "", "'-1"],
        ["''o@example.com", "complaint", "''=x", ""],
        ["'+a=b@example.com", "manual", "'=SUM(A1)", "'@home, \"quoted\", '"],
    ]
    assert (await stranger.imported(response.content))["added"] == 3
    kept = ("address", "tag", "reason", "detail")
    theirs, mine = [
        sorted([one[name] or "" for name in kept] for one in (await each.get())["suppressions"])
        for each in (stranger, keeper)
    ]
    assert theirs == mine


async def test_an_export_of_many_pages_and_of_some(keeper: Keeper) -> None:
    lines = [f"u{number}@example.com,,{'news' if number % 2 else ''}" for number in range(2001)]
    assert (await keeper.imported("\n".join(lines)))["added"] == 2001
    everyone = (await keeper.ask("GET", "/export")).text.splitlines()
    assert len(everyone) == 2002
    assert len(set(everyone)) == 2002
    some = (await keeper.ask("GET", "/export?tag=news&address_prefix=u1")).text.splitlines()[1:]
    assert {line.partition("@")[0] for line in some} == {f"u{n}" for n in range(1, 2001, 2) if str(n)[0] == "1"}


async def test_files_that_are_refused(keeper: Keeper) -> None:
    helpers.assert_problem(await keeper.send_csv("a@example.com", "application/json"), 422, "invalid_csv")
    helpers.assert_problem(await keeper.send_csv(b"\xe4@example.com"), 422, "invalid_csv")
    too_many = "a@example.com\n" * (schemas.MAX_LINES + 1)
    helpers.assert_problem(await keeper.send_csv(too_many), 422, "invalid_csv")
    helpers.assert_problem(await keeper.send_csv("x" * (2**20 + 1)), 413, "request_too_large")
    for empty in ("", "address,reason\n", "\ufeff"):
        helpers.assert_problem(await keeper.send_csv(empty), 422, "no_valid_line")
    response = await keeper.send_csv("nobody\nx@\n")
    helpers.assert_problem(response, 422, "no_valid_line")
    assert [line["line"] for line in response.json()["lines"]] == [1, 2]
    assert await keeper.addresses() == []
