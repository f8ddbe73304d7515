import sys
from collections.abc import Callable

import html5lib
import pytest

from app.mail.rewrite import MAX_LINKS, MAX_URL_CHARACTERS, rewrite_html, rewrite_text

X = "https://x.example/"


def seen(markup: str) -> list[str]:
    """The URLs that `link` is asked for; the markup stays as it is when it answers with its argument."""
    urls: list[str] = []

    def link(url: str) -> str:
        urls.append(url)
        return url

    assert rewrite_html(markup, link, None) == markup
    return urls


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (f'<a href="{X}">', '<a href="T">'),
        (f"<a href='{X}'>", "<a href='T'>"),
        (f"<a href={X}>", '<a href="T">'),
        (f"<A\n\tHREF\r\n=\f'{X}' >", "<A\n\tHREF\r\n=\f'T' >"),
        (f"<a/href={X} class=x>", '<a/href="T" class=x>'),
        (f'<a class="x"href="{X}"id=y />', '<a class="x"href="T"id=y />'),
        (f'<area shape=rect href="{X}"/>', '<area shape=rect href="T"/>'),
        (f'<p>a < b <a href=" {X} ">é</p>', '<p>a < b <a href="T">é</p>'),
        (f'<!--[if mso]><a href={X}><![endif]-->', '<!--[if mso]><a href="T"><![endif]-->'),
        (f'<!--[IF mso 9]><V:RoundRect href="{X}"/><![endif]-->', '<!--[IF mso 9]><V:RoundRect href="T"/><![endif]-->'),
    ],
)  # fmt: skip
def test_only_the_value_changes(before: str, after: str) -> None:
    assert rewrite_html(before, lambda url: "T" if url == X else "wrong", None) == after


@pytest.mark.parametrize("quote", ['"', "'", ""])
@pytest.mark.parametrize(
    "target", ['"><script>alert(1)</script>', "' onclick='x", "a b=c>", "--><!--", "&quot;&amp", "`"]
)
def test_what_link_returns_is_escaped(quote: str, target: str) -> None:
    for before, after in (("", ""), ("<!--[if mso]>", "<![endif]-->")):
        written = rewrite_html(f"{before}<a href={quote}{X}{quote} id=i>x</a>{after}", lambda url: target, None)
        inside = written.removeprefix(before).removesuffix(after)
        assert "-->" not in inside
        (anchor,) = html5lib.parseFragment(inside, treebuilder="etree", namespaceHTMLElements=False)
        assert anchor.tag == "a"
        assert anchor.attrib == {"href": target, "id": "i"}
        assert anchor.text == "x"


def test_the_pixel_is_escaped() -> None:
    written = rewrite_html("", str, '"><script>&amp;')
    (image,) = html5lib.parseFragment(written, treebuilder="etree", namespaceHTMLElements=False)
    assert image.get("src") == '"><script>&amp;'
    assert written.startswith('<img src="&quot;&gt;&lt;script&gt;&amp;amp;" width="1" height="1" alt="" style="')


@pytest.mark.parametrize(
    "markup",
    [
        "<body>x|</body></html>",
        "<body>x</body>y|</BODY\n></html>",
        "<p>x|</html>",
        "<p>x</html>y|</html >",
        "<p>x|",
        "|",
        "<body>x|</body><!-- </body> -->",
        "<body>x|</body><script>'</body>'</script><style></body></style><p title='</body>'></bodyx></ body>",
        "<!-- </html> --><p>x|",
        "<svg><desc></body></desc></svg>x|</body>",
        "<body>x|</body a='>'>",
        "x|<!-- never closed </body>",
        "x|<p class='never closed </body>",
        "x|<textarea>never closed </body>",
        "x|<plaintext></body>",
        "x|<!--[if mso]> never closed </body>",
        "<body>x|</body><!-- never closed",
        "<!--[if mso]></body><![endif]-->x|",
    ],
)
def test_where_the_pixel_stands(markup: str) -> None:
    written = rewrite_html(markup.replace("|", ""), str, "P")
    before, after = markup.split("|")
    assert written.startswith(before + '<img src="P" ')
    assert written.endswith('">' + after)
    assert len(written) == len(rewrite_html("", str, "P")) + len(before + after)


@pytest.mark.parametrize(
    "markup",
    [
        f"<!-- <a href='{X}'> -->",
        f"<!-- [if mso]> <a href='{X}'> <![endif]-->",
        f"<!--[if mso]> --!> <!-- <a href='{X}'>",
        f"<script><a href='{X}'></scripts></script>",
        f"<STYLE><a href='{X}'></style >",
        f"<title><a href='{X}'></TITLE>",
        f"<textarea><a href='{X}'></textarea/>",
        f"<svg><a href='{X}' xlink:href='{X}'></svg>",
        f"<link href='{X}'><img src='{X}'><base href='{X}'><form action='{X}'><abbr href='{X}'><a-b href='{X}'>",
        f"<a xhref='{X}' href-x='{X}' data-href={X}>",
        f"</a href='{X}'>< a href='{X}'><?a href='{X}'><!a href='{X}'>",
        f"<a href='#' href='{X}'>",
        f"<a href='{X}",
        f"<a href='{X}' title=\"",
        f"<a href='{X}<b>'>",
        f"<a href='{X}&#10;&#1;x'>",
        f"<a href='{X}\udc80'>",
        f"<a href='{X}{{{{id}}}}'>",
        f"<a href='{X}%%id%%'>",
        f"<a clicktracking=off href='{X}'>",
        f"<a href='{X}' DATA-POSTROAD-TRACK=' off' data-postroad-track=off clicktracking = \"OFF\">",
        "<a href='//x.example/'><a href='https:x.example'><a href='https:/x.example'><a href='http://'><a href='https:///x'>",
        "<a href='javascript:\"https://x.example/\"'><a href='mailto:x@y.example'><a href='cid:a@b'><a href='xhttps://x/'>",
    ],
)
def test_what_is_no_link(markup: str) -> None:
    assert seen(markup) == []


@pytest.mark.parametrize(
    ("value", "url"),
    [
        ("&amp;", "&"),
        ("&copy=1&copy1&copy", "&copy=1&copy1©"),
        ("&copy;&notit;&not;", "©&notit;¬"),
        ("&#38;&#x26;&#X26&#38", "&&&&"),
        ("&#x1F600;&#128;&#xD800;", "😀€\ufffd"),
        ("&#0;&#99999999999999999999;", "\ufffd\ufffd99999999;"),
        ("\n\t a\r\n b \n", " a b"),
        ("&", "&"),
        ("&;&#;&#x;&# 38;", "&;&#;&#x;&# 38;"),
    ],
)
def test_references(value: str, url: str) -> None:
    assert seen(f"<a href='{X}{value}'>") == [X + url]


def test_an_attribute_that_only_resembles_the_one_that_turns_tracking_off() -> None:
    assert seen(f"<a clicktracking=on clicktracking=off href={X}1 title='clicktracking=off'>") == [X + "1"]
    assert seen(f"<a href={X}track data-clicktracking=off><a href={X}2 clicktracking>") == [X + "track", X + "2"]


def test_bounds() -> None:
    many = f"<a href='{X}'>" * (MAX_LINKS + 10)
    assert len(seen(many)) == MAX_LINKS
    written = rewrite_html(many, lambda url: "T", "P")
    assert written.startswith("<a href='T'>" * MAX_LINKS + f"<a href='{X}'>" * 10 + "<img ")
    longest = X + "x" * (MAX_URL_CHARACTERS - len(X))
    assert seen(f"<a href='{longest}'><a href={longest}x>") == [longest]
    attributes = "".join(f" a{i}=b" for i in range(256))
    assert seen(f"<p{attributes}><a{attributes} href={X}{attributes}>") == [X]
    too_many = f"<p{attributes} c=d><a href={X}>"
    assert seen(too_many) == []
    assert rewrite_html(too_many, str, "P").endswith('">' + too_many)


HOSTILE: dict[str, Callable[[int], str]] = {
    "angle brackets": lambda n: "<" * n,
    "open tags": lambda n: "<a " * n,
    "open values": lambda n: "<a href='" * n,
    "quotes in turn": lambda n: "<a b=\"'" * n,
    "attributes": lambda n: "<a" + " b" * n + ">",
    "slashes": lambda n: "<a" + "/" * n + f" href={X}>",
    "equals": lambda n: "<a " + "=" * n,
    "blanks": lambda n: "<a href" + " " * n + "=" + " " * n,
    "comments": lambda n: "<!--" * n,
    "dashes": lambda n: "<!--" + "-" * n,
    "almost ended": lambda n: "<!--" + "--!" * n,
    "conditionals": lambda n: "<!--[if mso]>" * n,
    "short conditionals": lambda n: "<!--[if mso]-->" * n,
    "bogus": lambda n: "<!" * n + "</" * n + "<?" * n,
    "raw": lambda n: "<title>" * n,
    "raw ends": lambda n: "<style></styl" * n,
    "svg": lambda n: "<svg><svg/>" * n,
    "svg ended": lambda n: "<svg></svg>" * n,
    "ends": lambda n: "</body></html>" * n,
    "no href": lambda n: "<a name=x>" * n,
    "links": lambda n: f"<a href={X}>" * n,
    "unfit links": lambda n: f"<a href={X}{{{{>" * n,
    "blanks in a link": lambda n: f"<a href='{' ' * n}{X}{chr(10) * n}'>",
    "references": lambda n: f"<a href='{X}{'&#' * n}{'&amp' * n}&{'a' * n}=&#{'1' * n}'>",
    "tracking": lambda n: "<a track " + " ".join(f"a{i}" for i in range(200)) + f" href={X}{'&' * n}>",
    "words": lambda n: "word " * n,
}


@pytest.mark.parametrize("shape", HOSTILE)
def test_hostile_markup_takes_linear_time(shape: str) -> None:
    """Calls are counted; what happens within one is bounded by size: quadratic patterns would not come back."""
    rewrite_html(HOSTILE[shape](50_000), str, "P")
    few, many = (_calls(lambda n=n: rewrite_html(HOSTILE[shape](n), str, "P")) for n in (5_000, 10_000))
    assert many <= 2 * few + 10


TEXT_HOSTILE: dict[str, Callable[[int], str]] = {
    "schemes": lambda n: "https://" * n,
    "separators": lambda n: "://" * n,
    "angles": lambda n: "<https://" * n,
    "open angles": lambda n: "<https://" + "x" * n,
    "brackets": lambda n: "https://x" + "(" * n + ")" * n,
    "closed at once": lambda n: "http://a)[" * n,
    "closed at once, unfit": lambda n: "http://%%)[" * n,
    "dots": lambda n: "https://x" + "." * n,
    "words": lambda n: "http" * n,
    "blanks": lambda n: "http://a " * n,
}


@pytest.mark.parametrize("shape", TEXT_HOSTILE)
def test_hostile_text_takes_linear_time(shape: str) -> None:
    rewrite_text(TEXT_HOSTILE[shape](50_000), str)
    few, many = (_calls(lambda n=n: rewrite_text(TEXT_HOSTILE[shape](n), str)) for n in (5_000, 10_000))
    assert many <= 2 * few + 10


def _calls(work: Callable[[], object]) -> int:
    count = 0

    def profile(frame: object, event: str, argument: object) -> None:
        nonlocal count
        count += event in {"call", "c_call"}

    sys.setprofile(profile)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.parametrize(
    "text",
    [
        "See «https://x.example/a».",
        "See «https://x.example/a»! «http://x.example»? «https://x.example/a_(b)», «https://x.example/a;b=c»;",
        "(«https://x.example/a») [«https://x.example/b»] («https://x.example/c(d)e»).",
        "[here](«https://x.example/a»)[there](«https://x.example/b»). *«https://x.example/c»* '«https://x.example/d»'",
        "<«https://x.example/a,b.»> <URL:«https://x.example/c)»> <url:«HTTPS://x.example»>",
        "<«https://bücher.example/größe»> <«https://x.example/日本語»>",
        '<a href="«https://x.example/?a=b&amp;c»">',
        "`«https://x.example/code»` «https://x.example/a»| «https://x.example/b» <«https://x.example/open» angle",
        "Link:«https://x.example/»\r\n«https://x.example:8443/~u/?a=b&c=%20#d-_»\r\n> «https://x.example/quoted»",
        "見て«https://x.example/a»。「«https://x.example/b»」 «https://x.example/c»… «https://x.example/d»—so",
        "«http://[2001:db8::1]/a[0]=1» «https://192.0.2.1/»",
        "«https://web.archive.example/web/https://x.example/»",
        # doubtful ends, parts of something longer, not http(s), placeholders, addresses
        "https://bücher.example/ https://x.example/größe https://x.exampleをご覧 https://x.example/🍎",
        "(https://x.example/a)b https://x.example/{id} https://x.example/a|b https://x.example/a^b",
        "git+https://x.example/ xhttps://x.example/ mailto:a@b.example?body=https://x.example/ ftp://x/?u=https://y",
        "https://x.example/{{id}} https://x.example/%%id%% https://x.example/*|ID|* <https://x.example/{{id}}>",
        "a.https@x.example http:x https:/x https:// http://. ://x joe@https://x.example/ www.x.example ftp://x.example",
    ],
)
def test_urls_in_text(text: str) -> None:
    plain = text.replace("«", "").replace("»", "")
    assert rewrite_text(plain, lambda url: f"«{url}»") == text
    assert rewrite_text(plain, str) == plain


def test_bounds_of_text() -> None:
    longest = X + "x" * (MAX_URL_CHARACTERS - len(X))
    text = f"{longest} <{longest}> {longest}x <{longest}x> {longest}("
    expected = f"T <T> {longest}x <{longest}x> {longest}("
    assert rewrite_text(text, lambda url: "T") == expected
    many = (X + "\n") * (MAX_LINKS + 5)
    assert rewrite_text(many, lambda url: "T") == "T\n" * MAX_LINKS + (X + "\n") * 5


def test_text_is_not_escaped() -> None:
    assert rewrite_text(f"<{X}>", lambda url: url + "?a=b&c") == f"<{X}?a=b&c>"
