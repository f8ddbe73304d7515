"""Reading MTA-STS records and policies (RFC 8461 §3)."""

import pytest

from app.mail.mta_sts import MAX_AGE_SECONDS, MAX_MX, MAX_POLICY_BYTES, BadPolicy, StsPolicy, matches, parse_policy
from app.mail.mta_sts import parse_record as record

POLICY = b"version: STSv1\r\nmode: enforce\r\nmx: mail.example.com\r\nmx: *.example.net\r\nmax_age: 604800\r\n"


@pytest.mark.parametrize(
    ("texts", "policy_id"),
    [
        (["v=STSv1; id=20160831085700Z;"], "20160831085700Z"),
        (["v=STSv1; id=1"], "1"),
        (["v=STSv1;id=abcDEF123"], "abcDEF123"),
        (["v=STSv1 ; id=1 ; ext=whatever;"], "1"),
        (["v=STSv1; a=b; id=1;"], "1"),
        (["v=spf1 -all", "v=STSv1; id=1;", "other"], "1"),
        (["v=STSv10; id=2;", "v=STSv1; id=1;"], "1"),
        ([], None),
        (["v=STSv1"], None),
        (["v=STSv1;"], None),
        (["v=STSv1; id="], None),
        (["v=STSv1; id=with-dash;"], None),
        (["v=STSv1; id=" + "a" * 33], None),
        (["v=STSv1; id=1; id=2;"], None),
        (["V=STSv1; id=1;"], None),
        ([" v=STSv2; id=1;"], None),
        (["id=1; v=STSv1;"], None),
        (["v=STSv1; id=1;", "v=STSv1; id=1;"], None),
        (["v=STSv1; id=é;"], None),
    ],
)
def test_the_record(texts: list[str], policy_id: str | None) -> None:
    assert record(texts) == policy_id


def test_a_policy() -> None:
    expected = StsPolicy("enforce", ("mail.example.com", "*.example.net"), 604_800)
    assert parse_policy(POLICY) == expected
    assert parse_policy(POLICY.replace(b"\r\n", b"\n")) == expected
    assert parse_policy(POLICY.rstrip()) == expected
    assert parse_policy(POLICY.replace(b": ", b":  \t").replace(b"\r\n", b" \r\n")) == expected
    assert parse_policy(POLICY.replace(b"mail.example.com", b"MAIL.Example.com.")) == expected
    assert (
        parse_policy(b"\r\n".join(reversed(POLICY.split(b"\r\n"))) + b"\r\nnew_field: \xc3\xa9\r\n").mode == "enforce"
    )
    assert parse_policy(POLICY + b"mode: none\r\nmax_age: 1\r\nversion: STSv2\r\n") == expected


def test_testing_and_none() -> None:
    assert parse_policy(POLICY.replace(b"enforce", b"testing")).mode == "testing"
    assert parse_policy(b"version: STSv1\nmode: none\nmax_age: 0\n") == StsPolicy("none", (), 0)


def test_max_age_is_bounded() -> None:
    assert parse_policy(POLICY.replace(b"604800", b"9999999999")).max_age_seconds == MAX_AGE_SECONDS


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"<html>not found</html>",
        b"\xff" + POLICY,
        POLICY.replace(b"STSv1", b"STSv2"),
        POLICY.replace(b"version: STSv1\r\n", b""),
        POLICY.replace(b"enforce", b"Enforce"),
        POLICY.replace(b"enforce", b""),
        POLICY.replace(b"mx: ", b"xm: "),
        POLICY.replace(b"max_age", b"age"),
        *(POLICY.replace(b"604800", age) for age in (b"", b"-1", b"1e3", b"1.5", b"12345678901", "١".encode())),
        *(
            POLICY.replace(b"*.example.net", mx)
            for mx in (b"", b"*", b"*.", b"*example.net", b"a.*.net", b"*.*.net", b"a b.net", b"127.0.0.1/8", b"-a.net")
        ),
        POLICY.replace(b"*.example.net", b"a." * 130 + b"net"),
        POLICY + b"no colon here\r\n",
        POLICY + b"".join(b"mx: mx%d.example.com\r\n" % number for number in range(MAX_MX)),
        POLICY + b"x: " + b"y" * MAX_POLICY_BYTES,
    ],
)
def test_what_is_no_policy(content: bytes) -> None:
    with pytest.raises(BadPolicy):
        parse_policy(content)


@pytest.mark.parametrize(
    ("host", "matched"),
    [
        ("mail.example.com", True),
        ("MAIL.example.com.", True),
        ("mx1.example.net", True),
        ("a-b.Example.NET", True),
        ("example.net", False),
        ("a.b.example.net", False),
        ("x.mail.example.com", False),
        ("mailxexample.com", False),
        ("mail.example.com.evil.test", False),
        ("evil.test", False),
        ("net", False),
        ("", False),
    ],
)
def test_hosts_of_a_policy(host: str, matched: bool) -> None:
    assert matches(host, parse_policy(POLICY).mx) is matched
