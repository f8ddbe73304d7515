"""html5lib as the independent reader of what `rewrite_html` changed: the same document but for its links."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote, unquote
from xml.etree.ElementTree import Comment, Element

import html5lib

CORPUS = {
    path.stem: path.read_bytes().decode() for path in sorted(Path(__file__).with_name("rewrite_corpus").iterdir())
}
PIXEL = "https://t.example/open/1?a=\"'<>&amp;b"

_TRACKED = "https://t.example/click?\"'&copy;--#"
_XHTML = "{http://www.w3.org/1999/xhtml}"
_CONDITIONAL = re.compile(r"(\[if[^>]*>)(.*)", re.DOTALL | re.IGNORECASE)


def track(url: str) -> str:
    """A `link` that `tracked` undoes, with characters in it that an attribute could trip over."""
    return _TRACKED + quote(url)


def tracked(target: str) -> str:
    """The URL of which `track` made the target."""
    assert target.startswith(_TRACKED)
    return unquote(target.removeprefix(_TRACKED))


def links(html: str) -> list[str]:
    """The URLs that are to be tracked, by the rules and html5lib's reading."""
    urls: list[str] = []
    list(_events(_document(html), lambda url: urls.append(url) or url))
    return urls


def assert_same_but_links(before: str, after: str) -> None:
    """Assert that `after` differs from `before` in its tracked links only."""
    assert list(_events(_document(after))) == list(_events(_document(before), track))


def assert_same_but_links_and_pixel(before: str, after: str) -> None:
    """Assert that `after` differs from `before` in its tracked links and in one pixel only."""
    document = _document(after)
    ((parent, pixel),) = _pixels(document)
    assert (pixel.tag, pixel.get("width"), pixel.get("height"), pixel.get("alt")) == (_XHTML + "img", "1", "1", "")
    _remove(parent, pixel)
    assert list(_events(document)) == list(_events(_document(before), track))


def pixels(html: str) -> int:
    """How many pixels a reader finds."""
    return len(_pixels(_document(html)))


def _document(html: str) -> Element:
    return html5lib.parse(html, treebuilder="etree")


def _events(element: Element, link: Callable[[str], str] = str, *, conditional: bool = False) -> Iterator[object]:
    """Everything in a tree in its order, with `link` applied where the rules want it."""
    if element.tag is Comment:
        found = None if conditional else _CONDITIONAL.fullmatch(element.text or "")
        if found is None:
            yield ("comment", element.text or "", element.tail or "")
            return
        yield ("conditional", found[1], element.tail or "")
        yield from _events(html5lib.parseFragment(found[2], treebuilder="etree"), link, conditional=True)
        return
    attributes = dict(element.attrib)
    url = _url(element)
    if url is not None and (target := link(url)) != url:
        attributes["href"] = target
    yield (element.tag, attributes, element.text or "", element.tail or "")
    for child in element:
        yield from _events(child, link, conditional=conditional)
    yield ("end", element.tag)


def _url(element: Element) -> str | None:
    name = str(element.tag).removeprefix(_XHTML)
    if name not in {"a", "area"} and not name.startswith("v:"):
        return None
    if "off" in {element.get("data-postroad-track", "").lower(), element.get("clicktracking", "").lower()}:
        return None
    href = element.get("href", "")
    url = "".join(c for c in href.strip("".join(map(chr, range(33)))) if c not in "\t\r\n")
    scheme, separator, rest = url.partition("://")
    if scheme.lower() not in {"http", "https"} or not separator or not rest or rest[0] in "/?#\\ ":
        return None
    if len(url) > 2000 or any(c < " " or c in "<>\x7f" for c in url):
        return None
    return None if any(mark in url for mark in ("{{", "{%", "%%", "*|")) else url


def _pixels(document: Element) -> list[tuple[Element, Element]]:
    return [(parent, child) for parent in document.iter() for child in parent if child.get("src") == PIXEL]


def _remove(parent: Element, child: Element) -> None:
    index = list(parent).index(child)
    if index:
        parent[index - 1].tail = (parent[index - 1].tail or "") + (child.tail or "")
    else:
        parent.text = (parent.text or "") + (child.tail or "")
    parent.remove(child)
