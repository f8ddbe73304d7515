"""TLSA records against certificate chains (RFC 7672 §3, RFC 7671)."""

import datetime
import hashlib

import pytest

from app.mail.dane import DANE_EE, DANE_TA, Mismatch, Tlsa, check, parse, usable
from tests.certificates import Certificate, make_authority, self_signed

NAMES = ("mx.test",)
ROOT = make_authority()
MIDDLE = ROOT.issue_authority("Middle")
LEAF = MIDDLE.issue("mx.test")
CHAIN = [LEAF.der, MIDDLE.der, ROOT.der]


def tlsa(usage: int, selector: int, matching: int, certificate: Certificate) -> str:
    data = certificate.der if selector == 0 else certificate.public_key_der
    digest = {0: bytes, 1: lambda octets: hashlib.sha256(octets).digest(), 2: lambda o: hashlib.sha512(o).digest()}
    return f"{usage} {selector} {matching} {digest[matching](data).hex()}"


def records(*texts: str) -> tuple[Tlsa, ...]:
    found = usable(texts)
    assert found
    return found


def test_records_are_read_in_zone_file_form() -> None:
    assert parse("3 1 1 " + "AB" * 32) == Tlsa(3, 1, 1, b"\xab" * 32)
    assert parse("3 1 1 " + "ab" * 16 + " " + "ab" * 16) == Tlsa(3, 1, 1, b"\xab" * 32)
    for text in ("", "3 1 1", "3 1 1 xyz", "3 1 1 abc", "a b c d", "-1 0 0 00", "³ 1 1 00", "9999 1 1 00"):
        assert parse(text) is None


@pytest.mark.parametrize(
    "text",
    [
        *(f"{usage} 1 1 {'ab' * 32}" for usage in (0, 1, 4, 255)),
        f"3 2 1 {'ab' * 32}",
        f"3 1 3 {'ab' * 32}",
        f"3 1 1 {'ab' * 31}",
        f"3 1 2 {'ab' * 32}",
        "2 0 0 0000",
        "nonsense",
    ],
)
def test_what_is_not_usable(text: str) -> None:
    assert usable([text]) == ()
    good = tlsa(DANE_EE, 1, 1, LEAF)
    assert usable([text, good]) == (parse(good),)


def test_the_strongest_digest_of_a_usage_counts() -> None:
    weak, strong, other = (tlsa(DANE_EE, 1, 1, LEAF), tlsa(DANE_EE, 1, 2, ROOT), tlsa(DANE_EE, 0, 1, ROOT))
    assert usable([weak, strong, other]) == (parse(strong), parse(other))
    with pytest.raises(Mismatch):
        check(CHAIN, usable([weak, strong]), NAMES)


@pytest.mark.parametrize("selector", [0, 1])
@pytest.mark.parametrize("matching", [0, 1, 2])
class TestMatching:
    def test_the_hosts_own_certificate(self, selector: int, matching: int) -> None:
        check(CHAIN, records(tlsa(DANE_EE, selector, matching, LEAF)), NAMES)
        check([LEAF.der], records(tlsa(DANE_EE, selector, matching, LEAF)), NAMES)
        for other in (ROOT, MIDDLE, MIDDLE.issue("mx.test")):
            with pytest.raises(Mismatch):
                check(CHAIN, records(tlsa(DANE_EE, selector, matching, other)), NAMES)

    def test_an_authority_that_is_sent_along(self, selector: int, matching: int) -> None:
        for anchor in (ROOT, MIDDLE):
            check(CHAIN, records(tlsa(DANE_TA, selector, matching, anchor)), NAMES)
        check(list(CHAIN[:2]), records(tlsa(DANE_TA, selector, matching, MIDDLE)), NAMES)

    def test_authorities_of_others(self, selector: int, matching: int) -> None:
        stranger = make_authority()  # of the same name as ours
        with pytest.raises(Mismatch):
            check(CHAIN, records(tlsa(DANE_TA, selector, matching, stranger)), NAMES)
        with pytest.raises(Mismatch):
            check([*CHAIN, stranger.der], records(tlsa(DANE_TA, selector, matching, stranger)), NAMES)
        impostor = stranger.issue("mx.test")
        with pytest.raises(Mismatch):
            check([impostor.der, ROOT.der], records(tlsa(DANE_TA, selector, matching, ROOT)), NAMES)

    def test_the_hosts_own_certificate_is_no_authority(self, selector: int, matching: int) -> None:
        for chain in (CHAIN, [LEAF.der, LEAF.der]):
            with pytest.raises(Mismatch):
                check(chain, records(tlsa(DANE_TA, selector, matching, LEAF)), NAMES)


def test_one_matching_record_of_many_is_enough() -> None:
    wrong = [tlsa(DANE_EE, 1, 1, ROOT), tlsa(DANE_TA, 1, 1, make_authority())]
    check(CHAIN, records(*wrong, tlsa(DANE_TA, 1, 1, ROOT)), NAMES)
    check(CHAIN, records(*wrong, tlsa(DANE_EE, 0, 1, LEAF)), NAMES)


def test_dane_ee_minds_neither_name_nor_date() -> None:
    for certificate in (self_signed("other.test"), self_signed("mx.test", expired=True), ROOT):
        check([certificate.der], records(tlsa(DANE_EE, 1, 1, certificate)), NAMES)


def test_dane_ta_minds_the_name() -> None:
    anchored = records(tlsa(DANE_TA, 0, 1, ROOT))
    check(CHAIN, anchored, ("alias.test", "mx.test"))
    check([ROOT.issue("*.test").der, ROOT.der], anchored, NAMES)
    for names in (("other.test",), ("test",), ("x.mx.test",), ("ü.test",), ("",), ()):
        with pytest.raises(Mismatch):
            check(CHAIN, anchored, names)


def test_dane_ta_minds_the_date() -> None:
    anchored = records(tlsa(DANE_TA, 0, 1, ROOT))
    late = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=30)
    with pytest.raises(Mismatch):
        check(CHAIN, anchored, NAMES, now=late)
    old = ROOT.issue_authority("Old", expired=True)
    for leaf, issuer in ((ROOT.issue("mx.test", expired=True), ROOT), (old.issue("mx.test"), old)):
        with pytest.raises(Mismatch):
            check([leaf.der, issuer.der, ROOT.der], anchored, NAMES)


def test_dane_ta_minds_who_may_issue() -> None:
    anchored = records(tlsa(DANE_TA, 0, 1, ROOT))
    neighbour = ROOT.issue("neighbour.test")
    forged = neighbour.issue("mx.test")
    with pytest.raises(Mismatch):
        check([forged.der, neighbour.der, ROOT.der], anchored, NAMES)


def test_an_authority_held_by_the_record_need_not_be_sent() -> None:
    check([ROOT.issue("mx.test").der], records(tlsa(DANE_TA, 0, 0, ROOT)), NAMES)
    with pytest.raises(Mismatch):
        check([make_authority().issue("mx.test").der], records(tlsa(DANE_TA, 0, 0, ROOT)), NAMES)


def test_broken_chains() -> None:
    anchored = records(tlsa(DANE_TA, 0, 1, ROOT))
    for chain in ([], [b"garbage"], [LEAF.der, b"garbage", ROOT.der], [LEAF.der, ROOT.der], [LEAF.der]):
        with pytest.raises(Mismatch):
            check(chain, anchored, NAMES)
    with pytest.raises(Mismatch):
        check([LEAF.der, *(MIDDLE.issue_authority("X").der for _ in range(20)), MIDDLE.der, ROOT.der], anchored, NAMES)
