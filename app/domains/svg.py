"""The check of a logo against SVG Tiny Portable/Secure (draft-svg-tiny-ps-abrotman), the profile that BIMI asks for.

Nothing is rendered and nothing is resolved: the text is read by a parser that refuses DTDs, entities and external
references, within bounds of size, depth and number, and compared with a list of what is allowed.
"""

import io
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from xml.etree.ElementTree import Element, ParseError

from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import iterparse

MAX_BYTES = 32 * 1024
MAX_DEPTH = 32
MAX_ELEMENTS = 2000
# With every `use` replaced by what it draws: a few levels of ten references each would be millions.
MAX_DRAWN = 10_000
MAX_CANVAS = 4096
MAX_TITLE_CHARACTERS = 64
MAX_FLAWS = 20
_MAX_NUMBERS_CHARACTERS = 200

_SVG = "{http://www.w3.org/2000/svg}"
_XLINK = "{http://www.w3.org/1999/xlink}"
_XML = "{http://www.w3.org/XML/1998/namespace}"
# SVG Tiny 1.2 without what moves, links, loads, embeds or runs.
_ELEMENTS = frozenset(
    re.findall(
        r"\w+",
        """
        circle defs desc ellipse g line linearGradient metadata path polygon polyline radialGradient rect solidColor
        stop svg tbreak text textArea title tspan use
        """,
    )
)
_FOREIGN_ATTRIBUTES = frozenset(
    {f"{_XLINK}href", f"{_XLINK}title", f"{_XLINK}type", f"{_XML}id", f"{_XML}lang", f"{_XML}space"}
)
_ATTRIBUTES_REFUSED = frozenset({"style", "externalResourcesRequired", "focusable", "editable"})
_REFERRING = frozenset({"use", "linearGradient", "radialGradient"})
_FUNCTIONS = frozenset({"matrix", "translate", "scale", "rotate", "skewx", "skewy", "ref", "rgb"})
_FRAGMENT = re.compile(r"#[^\s\"'()]+")
# A paint server and, after it, a colour for when there is none.
_LOCAL_URL = re.compile(r"url\(\s*#[^\s\"'()]+\s*\)(?:\s+#?\w+)?")
_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,3})?"
_VIEW_BOX = re.compile(rf"\s*({_NUMBER})[\s,]+({_NUMBER})[\s,]+({_NUMBER})[\s,]+({_NUMBER})\s*")
_LENGTH = re.compile(rf"\s*({_NUMBER})(?:px)?\s*")
_DECLARATION = re.compile(rb"(?:\xef\xbb\xbf)?<\?xml\s[^>]{0,200}\?>")
_ENCODING = re.compile(rb"encoding\s*=\s*[\"']([^\"']*)", re.IGNORECASE)


class SvgError(Exception):
    """The file is no logo that receivers would show; `flaws` are sentences, at least one."""

    def __init__(self, *flaws: str) -> None:
        super().__init__(" ".join(flaws))
        self.flaws = flaws


@dataclass(frozen=True, slots=True)
class Logo:
    """What is worth knowing of a good one: its title, and the side of its square view box."""

    title: str
    side: float


def check(content: bytes) -> Logo:
    """Read a logo. Raises SvgError with up to MAX_FLAWS things that are wrong with it."""
    if len(content) > MAX_BYTES:
        raise SvgError(f"The logo is larger than {MAX_BYTES // 1024} KiB.")
    root = _parse(content)
    if root.tag != f"{_SVG}svg":
        raise SvgError("The root element is not <svg> of the SVG namespace.")
    flaws = [flaw for element in root.iter() for flaw in _element_flaws(element, root)]
    flaws += _root_flaws(root)
    flaws += _use_flaws(root)
    if flaws:
        raise SvgError(*dict.fromkeys(flaws[:MAX_FLAWS]))
    return Logo(_title(root), _view_box(root)[2])


def _parse(content: bytes) -> Element:
    declaration = _DECLARATION.match(content)
    encoding = _ENCODING.search(declaration[0]) if declaration else None
    # One encoding only, so that every reader sees the characters that were checked.
    if b"\0" in content or (encoding and encoding[1].lower() not in {b"utf-8", b"us-ascii"}):
        raise SvgError("The logo is not in UTF-8.")
    if b"<?" in content[declaration.end() if declaration else 0 :]:
        raise SvgError("Processing instructions, such as references to style sheets, are not allowed.")
    depth = count = 0
    root: Element | None = None
    try:
        for event, element in iterparse(io.BytesIO(content), events=("start", "end"), forbid_dtd=True):
            if event == "end":
                depth -= 1
                continue
            root = element if root is None else root
            depth, count = depth + 1, count + 1
            if depth > MAX_DEPTH:
                raise SvgError(f"Elements are nested more than {MAX_DEPTH} deep.")
            if count > MAX_ELEMENTS:
                raise SvgError(f"There are more than {MAX_ELEMENTS} elements.")
    except DefusedXmlException as error:
        raise SvgError("Document types, entities and external references are not allowed.") from error
    except (ParseError, ValueError) as error:
        raise SvgError("The logo is not well-formed XML.") from error
    if root is None:
        raise SvgError("The logo is not well-formed XML.")
    return root


def _element_flaws(element: Element, root: Element) -> Iterator[str]:
    name = str(element.tag)
    local = name.removeprefix(_SVG)
    if not name.startswith(_SVG) or local not in _ELEMENTS or (local == "svg" and element is not root):
        yield f"<{_short(local)}> is not allowed."
    for attribute, value in element.attrib.items():
        yield from _attribute_flaws(local, attribute, value)


def _attribute_flaws(element: str, attribute: str, value: str) -> Iterator[str]:
    shown = _short(attribute.rpartition("}")[2])
    is_foreign = attribute.startswith("{") and attribute not in _FOREIGN_ATTRIBUTES
    if is_foreign or attribute in _ATTRIBUTES_REFUSED or attribute.lower().startswith("on"):
        yield f"The attribute {shown} of <{_short(element)}> is not allowed."
    elif shown == "href":
        if element not in _REFERRING or not _FRAGMENT.fullmatch(value.strip()):
            yield f"The reference of <{_short(element)}> must lead to a place in the logo itself (#name)."
    elif "script:" in value.lower() or not _functions(value) <= _FUNCTIONS:
        yield f"The attribute {shown} of <{_short(element)}> leads out of the logo."


def _functions(value: str) -> set[str]:
    """The names before the parentheses of a value; "url" only for one that leads out of the logo.

    Without a regular expression that would try a long value at each of its places.
    """
    if "(" not in value or _LOCAL_URL.fullmatch(value.strip()):
        return set()
    before = (part.replace(",", " ").replace(")", " ").split() for part in value.split("(")[:-1])
    return {words[-1].lower() if words else "" for words in before}


def _root_flaws(root: Element) -> Iterator[str]:
    if root.get("version") != "1.2":
        yield 'The attribute version of <svg> must be "1.2".'
    if root.get("baseProfile") != "tiny-ps":
        yield 'The attribute baseProfile of <svg> must be "tiny-ps".'
    if "x" in root.attrib or "y" in root.attrib:
        yield "<svg> must not have the attributes x and y."
    title = _title(root)
    if not title:
        yield "There must be a <title> right inside of <svg>."
    elif len(title) > MAX_TITLE_CHARACTERS:
        yield f"The <title> is longer than {MAX_TITLE_CHARACTERS} characters."
    yield from _canvas_flaws(root)


def _canvas_flaws(root: Element) -> Iterator[str]:
    _, _, width, height = _view_box(root)
    if not 0 < width == height:
        yield "<svg> must have a square viewBox."
    elif width > MAX_CANVAS:
        yield f"The viewBox is wider than {MAX_CANVAS}."
    sides = [root.get(name) for name in ("width", "height")]
    lengths = [_length(side) for side in sides if side is not None]
    if any(not 0 < length <= MAX_CANVAS for length in lengths):
        yield f"The width and height of <svg> must be pixels, at most {MAX_CANVAS}."
    elif len(set(lengths)) > 1:
        yield "The width and height of <svg> must be equal."


def _use_flaws(root: Element) -> list[str]:
    """Whether references go in circles, or draw far more than the file holds."""
    named = {element.get("id") or element.get(f"{_XML}id"): element for element in root.iter()}
    drawn: dict[int, int] = {}

    def count(element: Element, path: frozenset[int]) -> int:
        key = id(element)
        if key in path or len(path) > 2 * MAX_DEPTH:
            raise SvgError("References among <use> elements go in circles, or too deep.")
        if key not in drawn:
            inside = path | {key}
            total = 1 + sum(count(child, inside) for child in element)
            target = named.get((_href(element) or "#")[1:]) if element.tag == f"{_SVG}use" else None
            drawn[key] = total if target is None else total + count(target, inside)
        return drawn[key]

    try:
        total = count(root, frozenset())
    except SvgError as error:
        return list(error.flaws)
    return [f"The references among <use> elements draw more than {MAX_DRAWN} elements."] if total > MAX_DRAWN else []


def _href(element: Element) -> str | None:
    found = element.get(f"{_XLINK}href") or element.get("href")
    return found.strip() if found else None


def _title(root: Element) -> str:
    title = root.find(f"{_SVG}title")
    return " ".join("".join(title.itertext()).split()) if title is not None else ""


def _view_box(root: Element) -> tuple[float, float, float, float]:
    """(x, y, width, height); zeros when it is missing or no view box."""
    text = root.get("viewBox", "")
    found = _VIEW_BOX.fullmatch(text) if len(text) <= _MAX_NUMBERS_CHARACTERS else None
    if found is None:
        return 0.0, 0.0, 0.0, 0.0
    x, y, width, height = (_finite(number) for number in found.groups())
    return x, y, width, height


def _length(text: str) -> float:
    found = _LENGTH.fullmatch(text) if len(text) <= _MAX_NUMBERS_CHARACTERS else None
    return _finite(found[1]) if found else 0.0


def _finite(number: str) -> float:
    value = float(number)
    return value if math.isfinite(value) else 0.0


def _short(text: str) -> str:
    return "".join(character if character.isprintable() else "\ufffd" for character in text[:60])
