"""What is asked to be published, and what counts as published."""

import re
from datetime import UTC, datetime

import dns.zone
import pytest

from app.core.ids import new_id
from app.domains import records
from app.domains.models import DkimKey
from app.domains.records import Bimi, Check, Platform, Record
from app.mail import dkim

PLATFORM = Platform("bounces.postroad.test", "mail.postroad.test")
BIMI = Bimi("default", "https://example.com/logo.svg", "https://example.com/vmc.pem")


def key(selector: str = "pmta", algorithm: dkim.Algorithm = "rsa-sha256", status: str = "pending") -> DkimKey:
    _, public = dkim.generate(algorithm)
    return DkimKey(id=new_id(), selector=selector, algorithm=algorithm, public_key=public, status=status)


def planned(purpose: str, domain: str = "example.com", platform: Platform = PLATFORM) -> Record:
    (record,) = [one for one in records.plan(domain, [key()], platform, BIMI) if one.purpose == purpose]
    return record


def test_plan_names_every_record_and_requires_only_the_rsa_key() -> None:
    keys = [key("pmta-ed25519", "ed25519-sha256"), key("pmta"), key("old", status="retired")]
    plan = records.plan("example.com", keys, PLATFORM)
    assert [(one.type, one.name, one.required) for one in plan] == [
        ("TXT", "pmta._domainkey.example.com", True),
        ("TXT", "pmta-ed25519._domainkey.example.com", False),
        ("TXT", "example.com", False),
        ("TXT", "bounces.example.com", False),
        ("MX", "bounces.example.com", False),
        ("TXT", "_dmarc.example.com", False),
        ("CNAME", "links.example.com", False),
        ("TXT", "_smtp._tls.example.com", False),
        ("TXT", "old._domainkey.example.com", False),
    ]
    assert [one.action for one in plan] == ["publish"] * 8 + ["remove"]
    by_purpose = {one.purpose: one.value for one in plan}
    assert by_purpose["spf"] == "v=spf1 include:bounces.postroad.test ~all"
    assert by_purpose["return_path"] == "v=spf1 include:bounces.postroad.test -all"
    assert by_purpose["bounce_mx"] == "10 bounces.postroad.test"
    assert by_purpose["tracking"] == "mail.postroad.test"
    assert len({one.key for one in plan}) == len(plan)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "build.localdomain", "printer.local"])
def test_no_tracking_record_without_a_public_name(host: str) -> None:
    plan = records.plan("example.com", [], Platform("bounces.postroad.test", host))
    assert "tracking" not in {one.purpose for one in plan}


def test_the_platform_is_not_pointed_at_itself() -> None:
    own = Platform("bounces.example.com", "links.example.com")
    assert not {"return_path", "bounce_mx", "tracking"} & {one.purpose for one in records.plan("example.com", [], own)}
    assert "spf" not in {one.purpose for one in records.plan("bounces.example.com", [], own)}
    assert records.envelope_domain("example.com", {}, own) == "bounces.example.com"
    assert records.link_host("example.com", {}, own) is None


def test_zone_lines_are_ready_to_paste() -> None:
    record = planned("dkim")
    assert len(record.value) > 255
    name, ttl, class_, type_, data = record.zone_line.split(" ", 4)
    assert (name, ttl, class_, type_) == ("pmta._domainkey.example.com.", "3600", "IN", "TXT")
    strings = re.findall(r'"([^"]*)"', data)
    assert all(len(string) <= 255 for string in strings)
    assert "".join(strings) == record.value
    assert planned("bounce_mx").zone_line == "bounces.example.com. 3600 IN MX 10 bounces.postroad.test."
    assert planned("tracking").zone_line == "links.example.com. 3600 IN CNAME mail.postroad.test."
    quoted = Record("x", "TXT", "example.com", 'a"b\\c', "spf")
    assert quoted.zone_line == 'example.com. 3600 IN TXT "a\\"b\\\\c"'


def test_every_record_is_verified_by_its_own_value_and_missing_without() -> None:
    for record in records.plan("example.com", [key(), key("e", "ed25519-sha256")], PLATFORM, BIMI):
        assert records.judge(record, [record.value]) == Check("verified", record.value, (record.value,))
        assert records.judge(record, []) == Check("missing", record.value)


@pytest.mark.parametrize(
    ("purpose", "values", "status"),
    [
        ("dkim", ["v=DKIM1; k=rsa; p="], "mismatch"),
        ("dkim", ["hello"], "mismatch"),
        ("spf", ["v=spf1 mx include:BOUNCES.postroad.test include:other.test -all"], "verified"),
        ("spf", ["google-site-verification=x", "v=spf1 +include:bounces.postroad.test -all"], "verified"),
        ("spf", ["v=spf1 mx -all"], "mismatch"),
        ("spf", ["v=spf1 include:bounces.postroad.test.evil -all"], "mismatch"),
        ("spf", ["v=spf1 -include:bounces.postroad.test -all"], "mismatch"),
        ("spf", ["v=spf1 include:bounces.postroad.test -all", "v=spf1 mx -all"], "mismatch"),
        ("spf", ["google-site-verification=x", "v=spf10 include:bounces.postroad.test"], "missing"),
        ("return_path", ["v=spf1 include:bounces.postroad.test ~all"], "verified"),
        ("return_path", ["v=spf1 -all"], "mismatch"),
        ("return_path", ["hello"], "missing"),
        ("bounce_mx", ["20 Bounces.Postroad.test."], "verified"),
        ("bounce_mx", ["10 bounces.other.test"], "mismatch"),
        ("bounce_mx", ["10 bounces.postroad.test", "20 backup.other.test"], "mismatch"),
        ("tracking", ["Mail.Postroad.test."], "verified"),
        ("tracking", ["mail.other.test."], "mismatch"),
        ("bimi", ["v=BIMI1;a=https://example.com/vmc.pem;l=https://example.com/logo.svg"], "verified"),
        ("bimi", ["v=BIMI1; l=https://example.com/logo.svg"], "mismatch"),
        ("bimi", ["v=BIMI1; l=; a="], "mismatch"),
        ("bimi", ["hello"], "mismatch"),
        ("dmarc", ["v=DMARC1;p=reject;rua=mailto:d@example.com"], "verified"),
        ("dmarc", ["v=DMARC1; rua=mailto:d@example.com"], "verified"),
        ("dmarc", ["unrelated", "v=DMARC1; p=quarantine"], "verified"),
        ("dmarc", ["v=DMARC1"], "mismatch"),
        ("dmarc", ["p=none; v=DMARC1"], "mismatch"),
        ("dmarc", ["v=DMARC1; p=none", "v=DMARC1; p=reject"], "mismatch"),
        ("tls_rpt", ["v=TLSRPTv1;rua=https://reports.example.com/"], "verified"),
        ("tls_rpt", ["v=TLSRPTv1"], "mismatch"),
        ("tls_rpt", [";;="], "mismatch"),
    ],
)
def test_judgement(purpose: str, values: list[str], status: str) -> None:
    assert records.judge(planned(purpose), values).status == status


def test_two_dkim_records_under_one_selector_are_a_mismatch_that_shows_both() -> None:
    record = planned("dkim")
    other = dkim.record("rsa-sha256", key().public_key)
    check = records.judge(record, [record.value, other])
    assert (check.status, check.found) == ("mismatch", (record.value, other))


def test_what_strangers_publish_is_shown_bounded_and_printable() -> None:
    check = records.judge(planned("dkim"), ["a\x00b\udc80", "x" * 5000, *["y"] * 40])
    assert check.found[0] == "a\ufffdb\ufffd"
    assert len(check.found) == 10
    assert max(map(len, check.found)) == 1025


def test_a_failed_look_up_keeps_only_what_was_good() -> None:
    record = planned("dkim")
    good = records.judge(record, [record.value])
    assert records.keep(good, "SERVFAIL") == Check("verified", record.value, (record.value,), "SERVFAIL")
    bad = records.judge(record, ["hello"])
    assert records.keep(bad, "SERVFAIL") == Check("unknown", record.value, ("hello",), "SERVFAIL")


def test_a_check_counts_only_for_the_value_that_it_was_made_for() -> None:
    checks = {}
    for purpose in ("return_path", "bounce_mx"):
        # Neither of the two is enough.
        assert records.envelope_domain("example.com", checks, PLATFORM) == "bounces.postroad.test"
        record = planned(purpose)
        checks[record.key] = records.judge(record, [record.value]).stored()
        assert record.last_check(checks).status == "verified"
    assert records.envelope_domain("example.com", checks, PLATFORM) == "bounces.example.com"
    moved = Platform("bounces.elsewhere.test", "mail.postroad.test")
    assert planned("return_path", platform=moved).last_check(checks).status == "pending"
    assert records.envelope_domain("example.com", checks, moved) == "bounces.elsewhere.test"


def test_links_begin_with_ones_own_name_once_it_leads_here() -> None:
    record = planned("tracking")
    checks = {record.key: records.judge(record, ["elsewhere.example."]).stored()}
    assert records.link_host("example.com", checks, PLATFORM) is None
    checks = {record.key: records.judge(record, [record.value]).stored()}
    assert records.link_host("example.com", checks, PLATFORM) == "links.example.com"
    moved = Platform("bounces.postroad.test", "elsewhere.postroad.test")
    assert records.link_host("example.com", checks, moved) is None


def test_all_records_together_are_a_legal_zone() -> None:
    keys = [key(), key("e", "ed25519-sha256"), key("old", status="retiring"), key("older", status="retired")]
    plan = records.plan("example.com", keys, PLATFORM, BIMI)
    text = "\n".join(["@ 3600 IN SOA ns hostmaster 1 1 1 1 1", "@ 3600 IN NS ns", "ns 3600 IN A 192.0.2.1"])
    zone = dns.zone.from_text(f"{text}\n" + "\n".join(one.zone_line for one in plan), origin="example.com.")
    for record in plan:
        found = zone.find_rdataset(record.name + ".", record.type)
        assert record.type == "CNAME" or zone.get_rdataset(record.name + ".", "CNAME") is None
        assert len(found) == 1


def test_the_stages_of_a_key_show_in_its_record() -> None:
    until = datetime(2027, 1, 31, 12, tzinfo=UTC)
    old, retired, new = key("old", status="retiring"), key("older", status="retired"), key("new")
    old.retire_at = retired.retire_at = until
    plan = {
        one.name.split(".")[0]: one
        for one in records.plan("example.com", [retired, old, key("now", status="active"), new], PLATFORM)
    }
    shown = {
        name: (plan[name].action, plan[name].required, plan[name].keep_until) for name in ("older", "old", "now", "new")
    }
    assert shown == {
        "older": ("remove", False, None),
        "old": ("keep", True, until),
        "now": ("publish", True, None),
        "new": ("publish", False, None),
    }
    assert "2027-01-31" in (plan["old"].note or "")
