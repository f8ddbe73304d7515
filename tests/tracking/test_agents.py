"""Who fetches pixels and follows links."""

import pytest

from app.tracking.agents import Agent, recognise

CHROME = (
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/142.0.0.0 Safari/537.36"
)
IPHONE = "Mozilla/5.0 (iPhone; CPU iPhone OS 18_7 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Mobile/15E148"
PEOPLE = {
    CHROME: None,
    IPHONE: None,
    "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, like Gecko)": None,
    "Mozilla/5.0 (Linux; Android 10; CUBOT X20 PRO) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/120.0 Mobile": None,
    "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Thunderbird/140.4.0": "thunderbird",
    "Mozilla/4.0 (compatible; MSIE 7.0; Windows NT 10.0; Win64; x64; Trident/7.0; Microsoft Outlook 16.0.19127; "
    "ms-office; MSOffice 16)": "outlook",
    "Outlook-iOS/729.1.0.prod.iphone (4.2540.0)": "outlook",
    "Dalvik/2.1.0 (Linux; U; Android 15; Pixel 9 Build/BP1A)": None,
}
OTHERS = {
    "Mozilla/5.0 (Windows NT 5.1; rv:11.0) Gecko Firefox/11.0 (via ggpht.com GoogleImageProxy)": ("proxy", "gmail"),
    "YahooMailProxy; https://help.yahoo.com/kb/yahoo-mail-proxy-SLN28749.html": ("proxy", "yahoo"),
    "Mozilla/5.0": ("prefetch", "apple_mpp"),
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/42.0.2311.135 "
    "Safari/537.36 Edge/12.246 Mozilla/5.0": ("prefetch", "gmail"),
    "Microsoft Office Existence Discovery": ("prefetch", "office"),
    "Barracuda Sentinel (EE)": ("scanner", "barracuda"),
    "Mimecast-URL-Protect/1.0": ("scanner", "mimecast"),
    "Mozilla/5.0 (compatible; ProofPoint URL Defense)": ("scanner", "proofpoint"),
    "Symantec Email Security.cloud": ("scanner", "symantec"),
    "TrendMicro Email Inspector": ("scanner", "trend_micro"),
    "CiscoSecureEmail/15": ("scanner", "cisco"),
    "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)": ("crawler", None),
    "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) HeadlessChrome/142.0.0.0": (
        "crawler",
        None,
    ),
    "Slackbot-LinkExpanding 1.0 (+https://api.slack.com/robots)": ("crawler", None),
    "facebookexternalhit/1.1": ("crawler", None),
    "curl/8.16.0": ("crawler", None),
    "python-requests/2.32.5": ("crawler", None),
    "Go-http-client/2.0": ("crawler", None),
    "": ("unknown", None),
    "  ": ("unknown", None),
}


@pytest.mark.parametrize("user_agent", PEOPLE)
def test_people(user_agent: str) -> None:
    agent = recognise(user_agent)
    assert agent == Agent("person", PEOPLE[user_agent])
    assert not agent.is_bot


@pytest.mark.parametrize("user_agent", OTHERS)
def test_others(user_agent: str) -> None:
    agent = recognise(user_agent)
    assert agent == Agent(*OTHERS[user_agent])
    # Behind a proxy a person reads.
    assert agent.is_bot == (agent.kind != "proxy")


def test_no_mail_program_asks_by_head_and_a_prefetch_says_so() -> None:
    assert recognise(CHROME, is_head=True) == Agent("scanner")
    assert recognise("curl/8.16.0", is_head=True) == Agent("crawler")
    assert recognise(CHROME, is_prefetch=True) == Agent("prefetch")
