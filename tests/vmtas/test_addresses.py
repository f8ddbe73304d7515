"""How source addresses are written, and which are this host's."""

import socket

import pytest

from app.vmtas import addresses


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("192.0.2.25", "192.0.2.25"),
        ("127.0.0.1", "127.0.0.1"),
        ("10.1.2.3", "10.1.2.3"),
        ("2001:DB8:0:0:0:0:0:1", "2001:db8::1"),
        ("2001:db8:0:0:1:0:0:1", "2001:db8::1:0:0:1"),
        ("::1", "::1"),
    ],
)
def test_the_one_spelling(text, canonical):
    assert addresses.parse(text) == canonical


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "x", "1", "1.2.3", "1.2.3.4.5", "01.2.3.4", "1.2.3.4 ", "1.2.3.4/32", "0x7f.0.0.1", "[::1]"),
        *("0.0.0.0", "0.1.2.3", "224.0.0.1", "239.1.2.3", "240.0.0.1", "255.255.255.255"),
        *("::", "ff02::1", "fe80::1", "fe80::1%eth0", "2001:db8::1%1", "::ffff:192.0.2.1", "::ffff:c000:201"),
    ],
)
def test_what_mail_cannot_leave_from(text):
    with pytest.raises(ValueError, match="must"):
        addresses.parse(text)


def test_what_this_host_can_bind():
    addresses._known.clear()
    assert addresses.can_bind("127.0.0.1")
    assert addresses.can_bind("127.77.88.99")
    # Documentation's (RFC 5737, RFC 3849).
    assert not addresses.can_bind("192.0.2.25")
    assert not addresses.can_bind("2001:db8::25")


def test_the_answer_is_remembered(monkeypatch):
    addresses._known.clear()
    assert addresses.can_bind("127.0.0.1")

    def broken(*_: object) -> socket.socket:
        raise AssertionError("asked again")

    monkeypatch.setattr(socket, "socket", broken)
    assert addresses.can_bind("127.0.0.1")
