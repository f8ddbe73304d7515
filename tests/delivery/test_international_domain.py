"""A sender domain in another script: A-labels wherever mail and DNS want them."""

import dkim
import httpx

from app.core.config import Settings
from app.delivery.engine import Engine
from tests.accounts import helpers
from tests.dnsd import DnsServer
from tests.factories.senders import new_domain, publish
from tests.smtpd import SmtpServer


async def test_mail_from_an_international_domain(
    client: httpx.AsyncClient, engine: Engine, mx: SmtpServer, site: str, dns: DnsServer, settings: Settings
):
    account = await helpers.register(client)
    name = new_domain("bücher")
    created = await client.post("/api/v1/domains", json={"domain": name}, headers=account.headers)
    domain = created.json()["data"]["domain"]
    assert domain["domain_unicode"] == name
    assert domain["domain"].startswith("xn--")
    publish(dns, domain)
    await client.post(f"/api/v1/domains/{domain['id']}/verify", headers=account.headers)

    for spelling in (name, domain["domain"], name.upper()):
        body = {"from": f"Zoë <hallo@{spelling}>", "to": f"leser@{site}", "subject": "Grüße", "text": "Guten Tag"}
        sent = await client.post("/api/v1/messages/send", json=body, headers=account.headers)
        assert sent.status_code == 202, sent.text
        engine.ring()
    for mail in await mx.mails_expected(3):
        assert mail.mail_from.endswith(f"@bounces.{domain['domain']}")
        head = mail.content.partition(b"\r\n\r\n")[0]
        assert head.isascii()
        assert f"<hallo@{domain['domain']}>".encode() in head
        assert f"d={domain['domain']};".encode() in head
        records = {one["name"]: one["value"].encode() for one in domain["dns_records"]}
        for index in range(2):
            assert dkim.DKIM(mail.content).verify(
                index, dnsfunc=lambda name, timeout=0, records=records: records.get(name.decode().rstrip("."))
            )
