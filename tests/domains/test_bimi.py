"""BIMI through the API: logos and certificates fetched by real HTTPS, the record proven by a real DNS."""

import time
from dataclasses import replace
from uuid import uuid4

import httpx
import pytest

from app.core.fetch import Fetcher
from tests.accounts.helpers import assert_problem
from tests.certificates import Certificate, make_authority
from tests.domains import logos
from tests.domains.helpers import Tenant, publish, record_of, with_key
from tests.httpd import HttpServer, answer


@pytest.fixture(scope="module")
def authority() -> Certificate:
    return make_authority()


@pytest.fixture
async def web(authority, zone):
    async with HttpServer(authority.issue("logos.example", "xn--bcher-kva.example")) as server:
        server.put("/logo.svg", logos.svg(), "image/svg+xml")
        for name in ("logos.example", "xn--bcher-kva.example"):
            zone.add(name, "A", "127.0.0.1")
        yield server


@pytest.fixture
def fetcher(app, settings, resolver, authority, tmp_path):
    """The application's fetcher, allowed what the test's web host needs."""
    ca_file = tmp_path / "ca.pem"
    ca_file.write_bytes(authority.pem)
    allowed = settings.model_copy(update={"webhook_allow_private_networks": True, "outbound_tls_ca_file": ca_file})
    before = app.state.fetcher
    app.state.fetcher = Fetcher(allowed, resolver.address_list)
    yield app.state.fetcher
    app.state.fetcher = before


@pytest.fixture
async def domain(tenant, zone):
    created = await tenant.create("brand.example.com")
    publish(zone, created)
    return await tenant.verify(created["id"])


def url(web: HttpServer, path: str, host: str = "logos.example") -> str:
    return f"https://{host}:{web.port}{path}"


def accepted(response: httpx.Response) -> tuple[dict, list[str]]:
    assert response.status_code == 200, response.text
    data = response.json()["data"]
    return data["domain"], data["warnings"]


def about(warnings: list[str], *words: str) -> bool:
    return any(all(word in warning for word in words) for warning in warnings)


async def test_a_logo_gets_a_record_that_is_verified(tenant, zone, web, fetcher, domain):
    shown, warnings = accepted(await tenant.bimi(domain["id"], logo_url=url(web, "/logo.svg")))
    assert (shown["bimi"]["selector"], shown["bimi"]["logo_title"]) == ("default", "Acme & Söhne")
    assert shown["bimi"]["checked_at"].endswith("Z")
    record = record_of(shown, "bimi")
    assert (record["name"], record["type"]) == ("default._bimi.brand.example.com", "TXT")
    assert record["value"] == f"v=BIMI1; l={url(web, '/logo.svg')}; a="
    assert (record["required"], record["status"]) == (False, "pending")
    assert about(warnings, "p=none")
    assert about(warnings, "vmc_url")
    assert record["zone_line"] in await tenant.zone(domain["id"])

    assert record_of(await tenant.verify(domain["id"]), "bimi")["status"] == "missing"
    publish(zone, shown, "bimi")
    assert record_of(await tenant.verify(domain["id"]), "bimi")["status"] == "verified"


async def test_with_a_certificate_and_an_enforced_policy_there_is_nothing_to_warn_of(
    tenant, zone, web, fetcher, domain, authority
):
    web.put("/vmc.pem", logos.mark_certificate(authority, "brand.example.com"), "application/x-pem-file")
    zone.replace("_dmarc.brand.example.com", "TXT", "v=DMARC1; p=quarantine")
    wanted = {"logo_url": url(web, "/logo.svg"), "vmc_url": url(web, "/vmc.pem"), "selector": "V1"}
    shown, warnings = accepted(await tenant.bimi(domain["id"], **wanted))
    assert warnings == []
    assert (shown["bimi"]["vmc_subject"], shown["bimi"]["selector"]) == ("O=Acme", "v1")
    record = record_of(shown, "bimi")
    assert record["name"] == "v1._bimi.brand.example.com"
    assert record["value"] == f"v=BIMI1; l={url(web, '/logo.svg')}; a={url(web, '/vmc.pem')}"


@pytest.mark.parametrize(
    ("records", "sentence"),
    [
        ({"_dmarc.brand.example.com": "v=DMARC1; p=none"}, "p=none"),
        ({"_dmarc.brand.example.com": "v=DMARC1; p=reject; pct=50"}, "pct"),
        ({"_dmarc.example.com": "v=DMARC1; p=reject; sp=none"}, "p=none"),
        ({"_dmarc.example.com": "v=DMARC1; p=reject"}, None),
        ({"_dmarc.brand.example.com": "hello", "_dmarc.example.com": "v=DMARC1;p=quarantine"}, None),
        ({}, "there is no DMARC record"),
    ],
)
async def test_warnings_about_dmarc(tenant, zone, web, fetcher, domain, records, sentence):
    zone.remove("_dmarc.brand.example.com")
    for name, value in records.items():
        zone.add(name, "TXT", value)
    _, warnings = accepted(await tenant.bimi(domain["id"], logo_url=url(web, "/logo.svg")))
    assert about(warnings, sentence) if sentence else not about(warnings, "DMARC")


async def test_a_dmarc_policy_that_nobody_can_tell_is_a_warning(tenant, zone, web, fetcher, domain):
    zone.fail("_dmarc.brand.example.com")
    _, warnings = accepted(await tenant.bimi(domain["id"], logo_url=url(web, "/logo.svg")))
    assert about(warnings, "could not be looked up")


async def test_it_is_replaced_and_removed(tenant, web, fetcher, domain):
    accepted(await tenant.bimi(domain["id"], logo_url=url(web, "/logo.svg")))
    web.put("/new.svg", logos.svg(), "image/svg+xml")
    shown, _ = accepted(await tenant.bimi(domain["id"], logo_url=url(web, "/new.svg"), selector="new"))
    assert [one["name"].split(".")[0] for one in shown["dns_records"] if one["purpose"] == "bimi"] == ["new"]
    shown, warnings = accepted(await tenant.bimi(domain["id"], enabled=False))
    assert (shown["bimi"], warnings) == (None, [])
    assert "bimi" not in {one["purpose"] for one in shown["dns_records"]}
    assert await tenant.get(domain["id"]) == shown


async def test_international_hosts_stand_in_the_record_in_a_labels(tenant, web, fetcher, zone):
    domain = await tenant.create("bücher.example")
    shown, _ = accepted(await tenant.bimi(domain["id"], logo_url=url(web, "/logo.svg", "bücher.example")))
    record = record_of(shown, "bimi")
    assert record["name"] == "default._bimi.xn--bcher-kva.example"
    assert record["value"] == f"v=BIMI1; l={url(web, '/logo.svg', 'xn--bcher-kva.example')}; a="
    publish(zone, shown, "bimi")
    assert record_of(await tenant.verify(domain["id"]), "bimi")["status"] == "verified"


@pytest.mark.parametrize(
    ("served", "sentence"),
    [
        (logos.svg(logos.TITLE + "<script>alert(1)</script>"), "<script> is not allowed"),
        (logos.svg(before='<!DOCTYPE svg [<!ENTITY x SYSTEM "file:///etc/passwd">]>'), "Document types"),
        (logos.svg(logos.TITLE + '<use xlink:href="http://127.0.0.1/x#y"/>'), "must lead to a place in the logo"),
        (logos.svg(width="10000", height="10000"), "at most 4096"),
        (b"<html></html>", "root element"),
    ],
)
async def test_bad_logos(tenant, web, fetcher, domain, served, sentence):
    web.put("/logo.svg", served, "image/svg+xml")
    started = time.monotonic()
    refused = await tenant.bimi(domain["id"], logo_url=url(web, "/logo.svg"))
    assert time.monotonic() - started < 2
    assert_problem(refused, 422, "logo_not_svg_tiny_ps")
    assert {flaw["pointer"] for flaw in refused.json()["errors"]} == {"/logo_url"}
    assert sentence in refused.text
    assert (await tenant.get(domain["id"]))["bimi"] is None


@pytest.mark.parametrize(
    "said",
    [
        answer(logos.svg(), "text/plain"),
        answer(logos.svg() + b" " * 40_000, "image/svg+xml"),
        answer(b"", status="302 Found", headers={"Location": "/logo2.svg"}),
        answer(b"", status="404 Not Found"),
        b"",
    ],
)
async def test_logos_that_do_not_come(tenant, web, fetcher, domain, said):
    web.put("/logo2.svg", logos.svg(), "image/svg+xml")
    web.answers["/logo.svg"] = said
    refused = await tenant.bimi(domain["id"], logo_url=url(web, "/logo.svg"))
    assert_problem(refused, 422, "logo_not_fetched")
    assert refused.json()["errors"][0]["pointer"] == "/logo_url"
    assert len(web.requests) == 1


async def test_bad_certificates(tenant, web, fetcher, domain, authority):
    wanted = {"logo_url": url(web, "/logo.svg"), "vmc_url": url(web, "/vmc.pem")}
    assert_problem(await tenant.bimi(domain["id"], **wanted), 422, "vmc_not_fetched")
    for served in (b"hello", logos.mark_certificate(authority, "other.example")):
        web.put("/vmc.pem", served, "application/x-pem-file")
        refused = await tenant.bimi(domain["id"], **wanted)
        assert_problem(refused, 422, "vmc_invalid")
        assert refused.json()["errors"][0]["pointer"] == "/vmc_url"


async def test_with_the_default_settings_nothing_leads_inside(tenant, zone, web, domain):
    zone.add("inside.example", "A", "127.0.0.1")
    zone.add("metadata.example", "A", "169.254.169.254")
    for host in (
        "127.0.0.1",
        "[::1]",
        "localhost",
        "inside.example",
        "metadata.example",
        "2130706433",
        "logos.example",
    ):
        refused = await tenant.bimi(domain["id"], logo_url=url(web, "/logo.svg", host))
        assert_problem(refused, 422, "logo_not_fetched")
    assert web.connections == 0


@pytest.mark.parametrize(
    "logo_url",
    [
        *("http://logos.example/a.svg", "https://", "https://u:p@logos.example/a.svg", "https://logos.example/a.svg#x"),
        *("https://logos.example/a,b.svg", "https://logos.example/a;b.svg", "javascript:alert(1)", "", "x" * 2000, 7),
        *("https://logos.example/" + "ü" * 400, "https://logos.example/a\r\nb", "https://xn--a/", None),
    ],
)
async def test_refused_urls(empty, logo_url):
    response = await empty.bimi(str(uuid4()), logo_url=logo_url)
    assert response.status_code == 422, response.text


@pytest.mark.parametrize("selector", ["", "a.b", "-a", "_bimi", "a" * 64, "ä", None])
async def test_refused_selectors(empty, selector):
    response = await empty.bimi(str(uuid4()), logo_url="https://logos.example/a.svg", selector=selector)
    assert response.status_code == 422, response.text
    assert response.json()["errors"][0]["pointer"] == "/selector"


async def test_others_and_restricted_keys_set_nothing_and_fetch_nothing(tenant, stranger, web, fetcher, domain):
    wanted = {"logo_url": url(web, "/logo.svg")}
    assert_problem(await stranger.bimi(domain["id"], **wanted), 404, "domain_not_found")
    limited = await with_key(tenant, scopes=["domains"], domains=["else.example.com"])
    assert_problem(await limited.bimi(domain["id"], **wanted), 404, "domain_not_found")
    sender: Tenant = await with_key(tenant, scopes=["send"])
    assert_problem(await sender.bimi(domain["id"], **wanted), 403, "insufficient_scope")
    nobody = replace(tenant, headers={})
    assert (await nobody.bimi(domain["id"], **wanted)).status_code == 401
    assert web.connections == 0
