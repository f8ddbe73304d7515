from pathlib import Path

import pytest

from app.delivery.shaping import GENERIC, Rate, Rule, Shaping, ShapingError, load

DEFAULT = load(None, site_connections=20)


def laid_over(tmp_path: Path, text: str, *, site_connections: int = 20) -> Shaping:
    file = tmp_path / "shaping.toml"
    file.write_text(text)
    return load(file, site_connections=site_connections)


@pytest.mark.parametrize(
    ("host", "provider"),
    [
        ("gmail-smtp-in.l.google.com", "gmail"),
        ("alt4.gmail-smtp-in.l.google.com.", "gmail"),
        ("ASPMX.L.GOOGLE.COM", "gmail"),
        ("aspmx2.googlemail.com", "gmail"),
        ("smtp.google.com", "gmail"),
        ("hotmail-com.olc.protection.outlook.com", "microsoft"),
        ("contoso-com.mail.protection.outlook.com", "microsoft"),
        ("contoso-com.a-v1.mx.microsoft", "microsoft"),
        ("mta7.am0.yahoodns.net", "yahoo"),
        ("mx-aol.mail.gm0.yahoodns.net", "yahoo"),
        ("mx01.mail.icloud.com", "apple"),
        ("mx1a1.comcast.net", "comcast"),
        ("smtp-in.orange.fr", "orange"),
        ("mx00.gmx.net", "gmx"),
        ("mx-ha03.web.de", "gmx"),
        ("mxs.mail.ru", "mailru"),
        ("mx.yandex.ru", "yandex"),
        ("mx3.qq.com", "qq"),
        ("mx.example.com", GENERIC),
        # Names that only look like theirs.
        ("google.com", GENERIC),
        ("notgoogle.com", GENERIC),
        ("aspmx.l.google.com.example.net", GENERIC),
        ("mx.notyahoodns.net", GENERIC),
        ("smtp-in.orange.fr.example.net", GENERIC),
        ("evil-smtp-in.orange.fr", GENERIC),
    ],
)
def test_providers_are_known_by_their_mail_hosts(host: str, provider: str):
    assert DEFAULT.provider_of([host, "mx.elsewhere.example"]) == provider


def test_only_the_best_host_tells_the_provider():
    assert DEFAULT.provider_of(["filter.example.com", "aspmx.l.google.com"]) == GENERIC


def test_what_postroad_brings():
    assert DEFAULT.rule(GENERIC, "example.com") == Rule(20, 100, None, "opportunistic")
    assert load(None, site_connections=7).rule(GENERIC, "example.com").connections == 7
    assert DEFAULT.rule("yahoo", "aol.com").messages_per_connection == 20
    # What a provider's entry does not say is as for all.
    assert DEFAULT.rule("yahoo", "aol.com").tls == "opportunistic"
    assert load(None, site_connections=7).rule("orange", "orange.fr").connections == 2
    assert set(DEFAULT.providers) >= {"gmail", "microsoft", "yahoo", "apple"}


def test_an_operators_file_is_laid_over(tmp_path: Path):
    shaping = laid_over(
        tmp_path,
        """
        [default]
        connections = 3
        tls = "required"

        [[provider]]
        name = "gmail"
        rate = "600/min"

        [[provider]]
        name = "acme"
        mx = ["*.acme.example", "aspmx.l.google.com"]
        rate = "10/s"

        [[provider]]
        name = "orange"
        mx = ["mx.orange.example"]

        [[domain]]
        name = "Bücher.example"
        connections = 1
        rate = "20000/hour"
        tls = "opportunistic"
        """,
    )
    assert shaping.rule(GENERIC, "example.com") == Rule(3, 100, None, "required")
    assert shaping.rule("gmail", "gmail.com") == Rule(20, 50, Rate(600, 60), "required")
    assert shaping.rule("acme", "acme.example") == Rule(3, 100, Rate(10, 1), "required")
    assert shaping.rule("yahoo", "yahoo.com").messages_per_connection == 20
    own = "xn--bcher-kva.example"
    assert shaping.rule(GENERIC, own) == Rule(1, 100, Rate(20_000, 3600), "opportunistic")
    assert shaping.rule("yahoo", own) == Rule(1, 20, Rate(20_000, 3600), "opportunistic")
    # The operator's patterns go first; a provider's hosts that are given anew replace the old ones.
    assert shaping.provider_of(["aspmx.l.google.com"]) == "acme"
    assert shaping.provider_of(["alt1.aspmx.l.google.com"]) == "gmail"
    assert shaping.provider_of(["mx.orange.example"]) == "orange"
    assert shaping.provider_of(["smtp-in.orange.fr"]) == GENERIC
    # A domain with limits of its own is a site of its own.
    assert shaping.site_of(["mta7.am0.yahoodns.net"], own) == own
    assert shaping.site_of(["mta7.am0.yahoodns.net"], "example.com") == "yahoo"


def test_a_limit_can_be_lifted(tmp_path: Path):
    text = '[default]\nrate = "10/s"\n[[provider]]\nname = "gmail"\nrate = ""\n'
    shaping = laid_over(tmp_path, text)
    assert shaping.rule("gmail", "gmail.com").rate is None
    assert shaping.rule("apple", "me.com").rate == Rate(10, 1)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[default", "Expected ']'"),
        ("[defaults]", "'defaults' is unknown"),
        ("default = 1", r"default is a table, written \[default\]"),
        ("[provider]", r"provider is a list of tables, each written \[\[provider\]\]"),
        ("[default]\nconections = 1", "'conections' is unknown; there are connections"),
        ("[default]\nmx = ['*.example.com']", "'mx' is unknown"),
        ("[default]\nconnections = 0", r"\[default\]: connections is a whole number from 1 to 1000"),
        ("[default]\nconnections = true", "connections is a whole number"),
        ("[default]\nconnections = 1001", "connections is a whole number"),
        ("[default]\nmessages_per_connection = 0", "messages_per_connection is a whole number from 1 to 10000"),
        ("[default]\ntls = 'always'", 'tls is "opportunistic" or "required"'),
        ("[default]\ntls = ['required']", 'tls is "opportunistic" or "required"'),
        ("[default]\nrate = 600", "rate is mails in a time"),
        ("[default]\nrate = '600/day'", "rate is mails in a time"),
        ("[default]\nrate = '0/min'", "rate is mails in a time"),
        ("[default]\nrate = '10001/s'", "at most 10000 a second"),
        ("[[provider]]\nconnections = 1", r"each \[\[provider\]\] needs a name"),
        ("[[provider]]\nname = 'acme'", "provider acme: a new provider needs mx"),
        ("[[provider]]\nname = 'generic'\nmx = ['a.b']", "provider generic: a name is words"),
        ("[[provider]]\nname = 'mx.example.com'\nmx = ['a.b']", "a name is words"),
        ("[[provider]]\nname = 'acme'\nmx = 'mx.example.com'", "provider acme: mx is a list of host names"),
        ("[[provider]]\nname = 'acme'\nmx = ['*example.com']", "provider acme: mx is a list of host names"),
        ("[[provider]]\nname = 'acme'\nmx = ['*']", "provider acme: mx is a list of host names"),
        ("[[provider]]\nname = 'gmail'\n[[provider]]\nname = 'gmail'", "two entries for provider gmail"),
        ("[[domain]]\nname = 'no domain'\nconnections = 1", "domain no domain: The domain name is not valid"),
        ("[[domain]]\nname = 'example.com'\nrates = ''", "domain example.com: 'rates' is unknown"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_with_a_sentence(tmp_path: Path, text: str, sentence: str):
    with pytest.raises(ShapingError, match=sentence) as refusal:
        laid_over(tmp_path, text)
    assert str(refusal.value).startswith(f"SHAPING_FILE {tmp_path}/shaping.toml: ")


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path):
    with pytest.raises(ShapingError, match=r"missing\.toml: No such file"):
        load(tmp_path / "missing.toml", site_connections=20)
    (tmp_path / "shaping.toml").write_bytes(b"\xff")
    with pytest.raises(ShapingError, match="not UTF-8"):
        load(tmp_path / "shaping.toml", site_connections=20)
    with pytest.raises(ShapingError, match="more than"):
        laid_over(tmp_path, "#" * (2**20 + 1))


@pytest.mark.parametrize(
    ("hosts", "site"),
    [
        (["aspmx.l.google.com", "alt1.aspmx.l.google.com"], "gmail"),
        (["mx.example.com"], "mx.example.com"),
        (["MX.Example.com."], "mx.example.com"),
        (["mx2.example.com", "mx1.example.com", "mx2.example.com"], "mx1+mx2.example.com"),
        (["mx.a.com", "mx.b.net"], "mx.a.com+mx.b.net"),
        (["a.com", "b.com"], "a.com+b.com"),
        (["mx1.eu.example.com", "mx2.example.com"], "mx1.eu.example.com+mx2.example.com"),
        (["filter.example.com", "aspmx.l.google.com"], "aspmx.l.google.com+filter.example.com"),
    ],
)
def test_sites(hosts: list[str], site: str):
    assert DEFAULT.site_of(hosts) == site


def test_sites_do_not_depend_on_the_order_of_equal_hosts():
    hosts = [f"mx{number}.example.com" for number in range(5)]
    assert {DEFAULT.site_of(hosts[turn:] + hosts[:turn]) for turn in range(5)} == {DEFAULT.site_of(hosts)}


def test_hosts_of_others_do_not_read_as_a_site():
    # mx1.eu is somebody's domain: whoever has it must not share a site with hosts that are only written alike.
    theirs = DEFAULT.site_of(["mx1.eu.example.com", "mx2.example.com"])
    assert DEFAULT.site_of(["mx1.eu", "mx2.example.com"]) != theirs


def test_long_sites_end_in_a_digest():
    many = [f"mail-exchanger-{number}.example.com" for number in range(20)]
    site = DEFAULT.site_of(many)
    assert len(site) <= 120
    assert site.startswith("mail-exchanger-0+mail-exchanger-1+")
    assert site == DEFAULT.site_of(many[::-1])
    assert site != DEFAULT.site_of([*many, "other.example.com"])
