"""Logos that pass, and everything that a logo may not be: each refused within bounds of time and memory."""

import gzip
import re
import time
import tracemalloc
from collections.abc import Iterator

import pytest

from app.domains import svg
from tests.domains import logos
from tests.domains.logos import SHAPES, TITLE

LAUGHS = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 10))
USES = "".join(f'<g id="u{n}">{f"""<use xlink:href="#u{n - 1}"/>""" * 10}</g>' for n in range(1, 9))


@pytest.fixture(autouse=True)
def bounded() -> Iterator[None]:
    """Whatever is in a logo: a second and a few megabytes."""
    started = time.perf_counter()
    tracemalloc.start()
    yield
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 16 * 2**20
    assert time.perf_counter() - started < 2


def flaws(content: bytes) -> str:
    with pytest.raises(svg.SvgError) as refused:
        svg.check(content)
    assert 1 <= len(refused.value.flaws) <= svg.MAX_FLAWS
    return " ".join(refused.value.flaws)


@pytest.mark.parametrize(
    "content",
    [
        logos.svg(),
        logos.svg(before=""),
        b"\xef\xbb\xbf" + logos.svg(),
        logos.svg(before="<?xml version='1.0'?>\n<!-- made by hand -->\n"),
        logos.svg(TITLE + '<rect fill="url(#a) #fff" transform="matrix(1 0 0 1 0 0), scale(2)" stroke="rgb(1,2,3)"/>'),
        logos.svg(viewBox="-50,-50 100.0 1e2", width="96", height="96px"),
        logos.svg(f"{TITLE}<desc>A logo</desc>{SHAPES}", **{"xml:space": "preserve", "id": "logo"}),
        logos.svg(TITLE + "<g>" * 30 + "</g>" * 30),
    ],
)
def test_good_logos(content: bytes) -> None:
    logo = svg.check(content)
    assert (logo.title, logo.side) == ("Acme & Söhne", 100)


@pytest.mark.parametrize(
    ("inside", "sentence"),
    [
        (TITLE + "<script>alert(1)</script>", "<script> is not allowed"),
        (TITLE + '<script xlink:href="#a"/>', "<script> is not allowed"),
        (TITLE + '<g xmlns:h="http://www.w3.org/1999/xhtml"><h:script/></g>', "xhtml.*is not allowed"),
        (TITLE + '<rect onload="alert(1)"/>', "attribute onload"),
        (TITLE + '<rect ONCLICK="alert(1)"/>', "attribute ONCLICK"),
        (TITLE + '<a xlink:href="https://evil.example/"><rect/></a>', "<a> is not allowed"),
        (TITLE + '<image xlink:href="data:image/png;base64,iVBORw0KGgo="/>', "<image> is not allowed"),
        (TITLE + "<foreignObject><p/></foreignObject>", "<foreignObject> is not allowed"),
        (TITLE + '<rect><animate attributeName="x"/></rect>', "<animate> is not allowed"),
        (TITLE + '<rect><set attributeName="x"/></rect>', "<set> is not allowed"),
        (TITLE + "<style>@import url(https://evil.example/x.css);</style>", "<style> is not allowed"),
        (TITLE + '<rect style="fill:url(https://evil.example/)"/>', "attribute style"),
        (TITLE + '<rect fill="url(https://evil.example/a.svg#x)"/>', "attribute fill of <rect> leads out"),
        (TITLE + "<rect fill=\"URL( '//evil.example/' )\"/>", "leads out"),
        (TITLE + '<rect fill="url(\\68ttps://evil.example"/>', "leads out"),
        (TITLE + '<rect fill="\\75rl(https://evil.example/)"/>', "leads out"),
        (TITLE + '<rect fill="image(https://evil.example/)"/>', "leads out"),
        (TITLE + '<rect fill="url(#a) url(//evil.example)"/>', "leads out"),
        (TITLE + f'<rect fill="url({" " * 30_000}"/>', "leads out"),
        (TITLE + f'<rect fill="{"url(" * 8000}"/>', "leads out"),
        (TITLE + f'<rect fill="{"(" * 30_000}"/>', "leads out"),
        (TITLE + f'<rect fill="url(#a){" " * 30_000}!"/>', "leads out"),
        (TITLE + '<rect fill="javascript:alert(1)"/>', "leads out"),
        (TITLE + '<use xlink:href="https://evil.example/a.svg#x"/>', "must lead to a place in the logo"),
        (TITLE + '<use href="//evil.example/a.svg"/>', "must lead to a place in the logo"),
        (TITLE + '<use xlink:href="data:image/svg+xml,x"/>', "must lead to a place in the logo"),
        (TITLE + '<rect xlink:href="#dot"/>', "must lead to a place in the logo"),
        (TITLE + '<g xml:base="https://evil.example/"/>', "attribute base"),
        (TITLE + "<svg/>", "<svg> is not allowed"),
        (TITLE + '<filter id="f"><feImage/></filter>', "<filter> is not allowed"),
        (TITLE + "<video/><audio/><handler/><listener/><discard/>", "<video> is not allowed.*<audio>.*<handler>"),
        (TITLE + '<rect xmlns:i="urn:inkscape" i:label="x"/>', "attribute label"),
        (SHAPES, "must be a <title>"),
        ("<title> </title>", "must be a <title>"),
        (f"<g>{TITLE}</g>", "must be a <title>"),
        (f"<title>{'x' * 65}</title>", "longer than 64"),
        (TITLE + "<g>" * 40 + "</g>" * 40, "more than 32 deep"),
        (TITLE + "<g/>" * 2100, "more than 2000 elements"),
        (TITLE + '<g id="u0"><rect/></g>' + USES + '<use xlink:href="#u8"/>', "draw more than 10000"),
        (TITLE + '<g id="a"><use xlink:href="#b"/></g><g id="b"><use xlink:href="#a"/></g>', "in circles"),
        (TITLE + '<use id="a" xlink:href="#a"/>', "in circles"),
        (TITLE + "".join(f'<use id="c{n}" xlink:href="#c{n + 1}"/>' for n in range(900)), "in circles, or too deep"),
        ("x" * svg.MAX_BYTES, "larger than 32 KiB"),
    ],
)
def test_refused_contents(inside: str, sentence: str) -> None:
    found = flaws(logos.svg(inside))
    assert re.search(sentence, found), found


@pytest.mark.parametrize(
    ("attributes", "sentence"),
    [
        ({"version": "1.1"}, "version"),
        ({"version": None}, "version"),
        ({"baseProfile": "tiny"}, "baseProfile"),
        ({"baseProfile": None}, "baseProfile"),
        ({"x": "0"}, "attributes x and y"),
        ({"viewBox": None}, "square viewBox"),
        ({"viewBox": "0 0 100 50"}, "square viewBox"),
        ({"viewBox": "0 0 0 0"}, "square viewBox"),
        ({"viewBox": "0 0 -5 -5"}, "square viewBox"),
        ({"viewBox": "0 0 nan nan"}, "square viewBox"),
        ({"viewBox": "0 0 1e999 1e999"}, "square viewBox"),
        ({"viewBox": "0 0 1 1" + " " * 20_000 + "!"}, "square viewBox"),
        ({"viewBox": "0 0 " + "9" * 300 + " 1"}, "square viewBox"),
        ({"viewBox": "0 0 10000 10000"}, "wider than 4096"),
        ({"width": "10000", "height": "10000"}, "at most 4096"),
        ({"width": "10000px"}, "at most 4096"),
        ({"width": "1e9", "height": "1e9"}, "at most 4096"),
        ({"width": "100%", "height": "100%"}, "must be pixels"),
        ({"width": "100", "height": "50"}, "must be equal"),
        ({"xmlns": "urn:other"}, "root element"),
        ({"onload": "alert(1)"}, "attribute onload"),
    ],
)
def test_refused_roots(attributes: dict[str, str | None], sentence: str) -> None:
    assert sentence in flaws(logos.svg(**attributes))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (logos.svg(before=f'<!DOCTYPE svg [<!ENTITY l0 "ha">{LAUGHS}]>'), "Document types"),
        (logos.svg(TITLE + "&l9;", before=f'<!DOCTYPE svg [<!ENTITY l0 "ha">{LAUGHS}]>'), "Document types"),
        (logos.svg(TITLE + "&a;" * 5000, before=f'<!DOCTYPE svg [<!ENTITY a "{"a" * 10_000}">]>'), "Document types"),
        (logos.svg(TITLE + "&x;", before='<!DOCTYPE svg [<!ENTITY x SYSTEM "file:///etc/passwd">]>'), "Document types"),
        (logos.svg(before='<!DOCTYPE svg [<!ENTITY % p SYSTEM "http://127.0.0.1/x">%p;]>'), "Document types"),
        (logos.svg(before='<!DOCTYPE svg SYSTEM "http://127.0.0.1/x.dtd">'), "Document types"),
        (logos.svg(TITLE + "&undefined;"), "well-formed"),
        (logos.svg(before='<?xml version="1.0"?><?xml-stylesheet href="https://evil.example/x.css"?>'), "Processing"),
        (logos.svg(TITLE + "<?php evil() ?>"), "Processing"),
        (logos.svg().decode().replace("UTF-8", "UTF-16").encode("utf-16"), "UTF-8"),
        (logos.svg(before='<?xml version="1.0" encoding="UTF-7"?>'), "UTF-8"),
        (logos.svg(before='<?xml version="1.0" encoding="utf-32"?>'), "UTF-8"),
        (logos.svg("<title>\xff</title>").replace("ÿ".encode(), b"\xff"), "well-formed"),
        (logos.svg() + b"<svg/>", "well-formed"),
        (logos.svg()[:-8], "well-formed"),
        (gzip.compress(logos.svg()), ""),
        (b"", "well-formed"),
        (b"\0" * 100, "UTF-8"),
        (b"<" * svg.MAX_BYTES, "well-formed"),
        (b"<a>" * (svg.MAX_BYTES // 3), "deep"),
        (b"<a " + b"b='' " * 6000 + b"/>", "well-formed"),
        (b"<!--" + b"-" * 30_000, "well-formed"),
        (b"not xml", "well-formed"),
        (b"\x89PNG\r\n\x1a\n", ""),
    ],
    ids=range(24),
)
def test_refused_files(content: bytes, sentence: str) -> None:
    assert sentence in flaws(content)


def test_what_it_says_of_a_logo_is_bounded_and_printable() -> None:
    names = "".join(f"<n{'x' * 100}{number}/>" for number in range(100))
    found = flaws(logos.svg(TITLE + names))
    assert found.isprintable()
    assert len(found) < 100 * svg.MAX_FLAWS
