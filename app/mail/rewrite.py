"""Tracked links and the open pixel: the few places of a mail's body that tracking changes, and no character beside.

HTML is read as browsers read it (the tokenizer of the HTML Standard, section 13.2.5), never parsed and written
again. One pattern passes over all that is of no interest; the code sees only links, elements whose content is no
markup, conditional comments and the ends of the document. Where something has no end, reading stops, because there
browsers stop reading markup too, and nothing is tried twice: time grows with the length of what is read.

What is a link, and handed to the caller's `link`, when it is an absolute http(s) URL:

- the `href` of `<a>` and `<area>`, the first one where there are several;
- the `href` of VML (`<v:roundrect>`, ...), and links in Outlook's conditional comments
  (`<!--[if mso]>...<![endif]-->`): there stands the button that readers of Outlook for Windows see and press, in
  place of the `<a>` that all others see. Other comments stay.

What stays, beside other schemes, relative links and `//host` (whose scheme only the reader's program knows):

- links with `data-postroad-track="off"` or, as users of SendGrid write it, `clicktracking="off"`;
- links in which a template's placeholder was left (`{{x}}`, `{% x %}`, `%%x%%`, `*|x|*`): they lead nowhere;
- links with `<`, `>`, a control character or a lone surrogate: mostly the accident of a missing quote;
- links over 2,000 characters and those after the first 1,000; anything after a tag of more than 256 attributes;
- `<svg>` and `<math>` as a whole: other rules of reading hold in them, and few mail programs show them;
- the content of `<script>` (up to the first `</script>`, even where it writes scripts itself), `<style>`, `<title>`,
  `<textarea>` and their like. `<noscript>` is read, for mail programs run no scripts.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from html import escape, unescape
from html.entities import html5
from itertools import islice
from typing import Final
from unicodedata import category

MAX_LINKS: Final = 1000
# The URL that replaces it may carry it inside and is longer still; not every program takes all of that.
MAX_URL_CHARACTERS: Final = 2000

_URL = re.compile(r"[hH][tT][tT][pP][sS]?://[^\x00-\x20\x7f<>/?#\\][^\x00-\x1f\x7f<>\ud800-\udfff]*+")
# Most of them: what `_is_fit` would say the same of, but later.
_USUAL_URL = re.compile(r"https?://[A-Za-z0-9][A-Za-z0-9._~:/?#@!$'()+,;=&%-]{0,1980}+")
_PLACEHOLDER = re.compile(r"\{[{%]|%%|\*\|")
_C0_AND_SPACE = "".join(map(chr, range(0x21)))
# A name without semicolon is none when a letter, a digit or "=" follows: "?a=1&copy=2" has no © (section 13.2.5.73).
_REFERENCE = re.compile(r"&(?:#(?:[0-9]{1,12}+|[xX][0-9A-Fa-f]{1,12}+);?|([A-Za-z0-9]++(?:;|(?!=))))")
_FOREIGN = ("svg", "math")
_OFF = ("data-postroad-track", "clicktracking")


def _any_of(*words: str) -> str:
    """A pattern for one of the words in any case: a trie, for the name of every tag is held against it."""
    rests: dict[str, list[str]] = {}
    for word in filter(None, words):
        rests.setdefault(word[0], []).append(word[1:])
    branches = [f"[{first}{first.upper()}]{_any_of(*rest)}" for first, rest in rests.items()]
    return f"(?:{'|'.join(branches)}{'|' if '' in words else ''})" if branches else ""


def _up_to(times: int, pattern: str) -> str:
    """A pattern for up to so many of these, never given back.

    Not `(?:...)*+`, which Python before 3.11.5 matches wrongly (gh-106052). The bound keeps the memory small that
    a repeated group takes.
    """
    return f"(?>(?:{pattern}){{0,{times}}})"


_BLANKS = r"[\t\n\f\r ]*+"
_SLASHES = r"[\t\n\f\r /]*+"
_NAME_ENDS = r"(?=[\t\n\f\r />])"
_NAME = r"[^\t\n\f\r />][^\t\n\f\r />=]*+"
_EQUALS = f"{_BLANKS}={_BLANKS}"
_VALUE = r"""(?:"[^"]*+"|'[^']*+'|(?!["'])[^\t\n\f\r >]*+)"""
_ATTRIBUTE = f"{_SLASHES}{_NAME}(?:{_EQUALS}{_VALUE}|(?!{_BLANKS}=))"
# The first alternative is the second in its most usual spelling, which reads faster alone.
_USUAL_ATTRIBUTE = '[ ][A-Za-z-]++="[^"]*+"'
_ATTRIBUTES_OF_TAG = _up_to(256, f"{_USUAL_ATTRIBUTE}|{_ATTRIBUTE}")
_REST_OF_ANY_TAG = f"{_ATTRIBUTES_OF_TAG}{_SLASHES}>"
# No more than one or two usual attributes, or none: read faster alone than by the general pattern.
_REST_OF_TAG = f"(?:>|{_USUAL_ATTRIBUTE}(?:>|{_USUAL_ATTRIBUTE}>)|{_REST_OF_ANY_TAG})"

_RAW = ("script", "style", "title", "textarea", "xmp", "iframe", "noembed", "noframes", "plaintext", "svg", "math")
_RAW_NAME = _any_of(*_RAW) + _NAME_ENDS
_VML_NAME = r"[vV]:[^\t\n\f\r />]*+"
_LINK_NAME = f"(?:{_any_of('a', 'area')}|{_VML_NAME}){_NAME_ENDS}"
_END_NAME = _any_of("body", "html") + _NAME_ENDS
_HREF = _any_of("href")
_NO_HREF = rf"(?!{_SLASHES}{_HREF}[\t\n\f\r />=]){_ATTRIBUTE}"
# The first three alternatives are usual tags of which the fourth would say the same, but later.
_USUAL_NAME = _any_of("td", "tr", "th", "table", "tbody", "p", "span", "strong", "img", "i", "small") + _NAME_ENDS
_PASSED_OVER = rf"""
    [^<]*+<(?:
        /[ac-gi-zAC-GI-Z][^\t\n\f\r />]*+>
      | [b-hj-loqruwyzB-HJ-LOQRUWYZ][^\t\n\f\r />]*+{_REST_OF_TAG}
      | {_USUAL_NAME}{_REST_OF_TAG}
      | (?:/(?!{_END_NAME})|(?!{_any_of("a", "area", *_RAW)}{_NAME_ENDS}|{_VML_NAME}))[A-Za-z]
        [^\t\n\f\r />]*+{_REST_OF_TAG}
      | (?![A-Za-z/!?])
      | !--(?!\[[iI][fF])(?:-?>|(?s:.*?)--!?>)
      | (?:!(?!--)|\?|/(?![A-Za-z]))[^>]*+>
    )
"""
# The last group that took part tells what was found; none when only the first part matched.
_NEXT = re.compile(
    rf"""
    {_up_to(1000, _PASSED_OVER)}[^<]*+
    (?:
        (?P<link>)<{_LINK_NAME}{_up_to(256, _NO_HREF)}{_SLASHES}{_HREF}{_EQUALS}
        (?:"(?P<double>[^"]*+)"|'(?P<single>[^']*+)'|(?!["'])(?P<bare>[^\t\n\f\r >]++)){_REST_OF_TAG}
      | <{_LINK_NAME}{_REST_OF_TAG}(?P<no_link>)
      | (?P<element>)<(?P<raw>{_RAW_NAME}){_REST_OF_TAG}
      | (?P<conditional><!--\[[iI][fF][^>]*+>)
      | (?P<body></{_any_of("body")}{_NAME_ENDS}{_REST_OF_TAG})
      | (?P<html></{_any_of("html")}{_NAME_ENDS}{_REST_OF_TAG})
    )?
    """,
    re.VERBOSE,
)
_ATTRIBUTES = re.compile(rf"{_SLASHES}({_NAME})(?:{_EQUALS}({_VALUE})|(?!{_BLANKS}=))")
_RAW_END = {name: re.compile(f"</{_any_of(name)}{_NAME_ENDS}") for name in _RAW}
_COMMENT_END = re.compile("--!?>")

# "http://" and "https://" by what does not vary in them, which is found fastest; nothing may stand before the scheme
# that makes it a part of something else: "git+https://x", "mailto:a@b.example?body=https://x", "ftp://x/http://y".
_IN_TEXT = re.compile(
    rf"://(?:(?<={_any_of('https')}://)(?<![\w.+@?&=/%#~$-].{{5}}://)(?P<https>)"
    rf"|(?<={_any_of('http')}://)(?<![\w.+@?&=/%#~$-].{{4}}://))",
    re.ASCII | re.DOTALL,
)
_ANGLED = re.compile(rf"(?:(?<=<)|(?<=<{_any_of('url')}:))[^\s<>]{{1,{MAX_URL_CHARACTERS}}}+(?=>)")
_BEYOND = re.compile(r"[^!#-;=?-_a-~]")  # all but printable ASCII without quotes, grave accents, angle brackets
_RFC3986 = re.compile(r"[A-Za-z0-9\-._~:/?#\[\]@!$&'()*+,;=%]++")
_BRACKET = re.compile(r"[()\[\]{}]")
_PARTNERS = {")": "(", "]": "[", "}": "{"}
_AFTER_URL = ".,;:!?'*|([{"
_ENDED = re.compile(r"[\])}.,;:!?'*|]*+(?:[(\[{]|\Z)")

_PIXEL = '<img src="{}" width="1" height="1" alt="" style="display:block;width:1px;height:1px;border:0">'


def rewrite_html(html: str, link: Callable[[str], str], pixel_url: str | None) -> str:
    """Return `html` with each link's URL replaced by what `link` makes of it, and the pixel put in.

    `link` gets the URL as a browser would follow it: character references decoded, blanks around it and line breaks
    in it removed. It may return its argument, and the link stays as it was spelled; anything else is escaped for
    the attribute. It is asked at most MAX_LINKS times, in the order of the links. Never raises of itself.

    The pixel, a picture of 1x1 with `pixel_url` as its source, stands before the last `</body>`, else before the
    last `</html>`, else at the end, or before whatever there has no end (an open comment would swallow it).
    """
    reading = _Reading(html, link)
    place = reading.read(0, len(html))
    edits = reading.edits
    if pixel_url is not None:
        edits.append((place, place, _PIXEL.format(escape(pixel_url))))
        edits.sort()
    return _edited(html, edits)


def rewrite_text(text: str, link: Callable[[str], str]) -> str:
    r"""Return plain text with its http(s) URLs replaced by what `link` makes of them (it may return its argument).

    A URL is ASCII (RFC 3986) and ends before white space, quotes, angle brackets, an unopened closing bracket and
    closing punctuation; in `<URL>` and `<URL:URL>` (its appendix C) it may have any script and ends at ">".
    What could end elsewhere for the reader's program stays as it is, so that no link breaks: URLs with letters of
    other scripts, with `{}|\^`, with more text after a bracket, or as part of something longer. So do placeholders
    and what is beyond MAX_LINKS and MAX_URL_CHARACTERS, as in `rewrite_html`.
    """
    urls = islice(_urls(text), MAX_LINKS)
    return _edited(text, [(start, start + len(url), link(url)) for start, url in urls])


@dataclass(slots=True)
class _Reading:
    """One pass over a document: collects (start, stop, replacement) of the links in their order."""

    html: str
    link: Callable[[str], str]
    edits: list[tuple[int, int, str]] = field(default_factory=list)
    left: int = MAX_LINKS

    def read(self, position: int, end: int) -> int:
        """Read the markup between two places; return the place for a pixel."""
        html = self.html
        body = root = None
        while (found := _NEXT.match(html, position, end)) and found.end() > position:
            position = found.end()
            match found.lastgroup:
                case "double" | "single" | "bare" as quoting:
                    self._replace(found, quoting)
                case "raw":
                    name = found["raw"].lower()
                    if name in _FOREIGN and html[position - 2] == "/":
                        continue
                    closing = _RAW_END[name].search(html, position, end)
                    if closing is None:
                        position = found.start("element")
                        break
                    position = closing.start()
                case "conditional":
                    closing = _COMMENT_END.search(html, found.start("conditional") + len("<!--"), end)
                    if closing is None:
                        position = found.start("conditional")
                        break
                    self.read(position, closing.start())
                    position = closing.end()
                case "body":
                    body = found.start("body")
                case "html":
                    root = found.start("html")
        return next(place for place in (body, root, position) if place is not None)

    def _replace(self, found: re.Match[str], quoting: str) -> None:
        if not self.left:
            return
        start, stop = found.span(quoting)
        url = _followed(self.html[start:stop])
        if url is None or _is_off(self.html[found.start("link") : found.end()]):
            return
        self.left -= 1
        target = self.link(url)
        if target != url:
            if _has_to_be_escaped(target):
                target = escape(target)
            self.edits.append((start, stop, f'"{target}"' if quoting == "bare" else target))


def _has_to_be_escaped(url: str) -> bool:
    # Seldom, and this finds it sooner than a pattern or replacing what is not there.
    return "&" in url or "<" in url or ">" in url or '"' in url or "'" in url


def _edited(text: str, edits: list[tuple[int, int, str]]) -> str:
    pieces: list[str] = []
    last = 0
    for start, stop, replacement in edits:
        pieces += text[last:start], replacement
        last = stop
    return "".join((*pieces, text[last:]))


def _followed(value: str) -> str | None:
    """The URL that a browser follows for the value of an attribute (HTML Standard 13.2.5.72, URL Standard 4.4); None
    for what is not fit for tracking.
    """
    if "&" in value:
        if value.count("&") == value.count("&amp;"):
            value = value.replace("&amp;", "&")
        else:
            value = _REFERENCE.sub(_character, value)
    if _USUAL_URL.fullmatch(value) and "%%" not in value:
        return value
    value = value.strip(_C0_AND_SPACE).replace("\t", "").replace("\n", "").replace("\r", "")
    return value if _is_fit(value) else None


def _character(reference: re.Match[str]) -> str:
    name = reference[1]
    if name is None:
        return unescape(reference[0]) or "\0"  # the library drops the controls that browsers keep
    return html5.get(name, reference[0])


def _is_fit(url: str) -> bool:
    return len(url) <= MAX_URL_CHARACTERS and bool(_URL.fullmatch(url)) and not _PLACEHOLDER.search(url)


def _is_off(tag: str) -> bool:
    """Whether the tag asks not to be tracked."""
    if "track" not in tag.lower():
        return False
    first: dict[str, str] = {}
    for name, value in _ATTRIBUTES.findall(tag):
        first.setdefault(name.lower(), value[1:-1] if value.startswith(('"', "'")) else value)
    return any(first.get(name, "").lower() == "off" for name in _OFF)


def _urls(text: str) -> Iterator[tuple[int, str]]:
    """The URLs of a plain text that are fit for tracking, each with its place."""
    position = 0
    while found := _IN_TEXT.search(text, position):
        start = found.start() - len("http" if found["https"] is None else "https")
        if angled := _ANGLED.match(text, start):
            url, position = angled[0], angled.end()
        else:
            beyond = _BEYOND.search(text, start)
            position = beyond.start() if beyond else len(text)
            doubtful = position - start > MAX_URL_CHARACTERS or (beyond and _may_go_on(beyond[0]))
            url = "" if doubtful else _ended(text[start:position])
        if _is_fit(url):
            position = start + len(url)
            yield start, url


def _may_go_on(character: str) -> bool:
    """Whether some programs would read the URL on with this character: letters, digits, symbols of other scripts."""
    return not character.isascii() and category(character)[0] in "LNMS"


def _ended(run: str) -> str:
    """The URL with which an unbroken run of characters begins, empty where programs would end it in several ways."""
    opened: list[str] = []
    for bracket in _BRACKET.finditer(run):
        partner = _PARTNERS.get(bracket[0])
        if partner is None:
            opened.append(bracket[0])
        elif not opened or opened.pop() != partner:
            url = run[: bracket.start()].rstrip(_AFTER_URL)
            break
    else:
        url = run.rstrip(_AFTER_URL)
    return url if _RFC3986.fullmatch(url) and _ENDED.match(run, len(url)) else ""
