import hashlib
from collections.abc import Iterator

import pytest
from pydantic import SecretStr

from app.core import crypto
from app.core.config import get_settings


@pytest.fixture
def another_secret(settings) -> Iterator[None]:
    """SECRET_KEY as it is after somebody changed it."""
    kept = settings.secret_key
    assert get_settings() is settings
    settings.secret_key = SecretStr("another secret of thirty-two characters")
    crypto.derive_key.cache_clear()
    yield
    settings.secret_key = kept
    crypto.derive_key.cache_clear()


@pytest.mark.parametrize("value", [b"", b"\x00", b"secret", bytes(100_000)])
def test_what_is_sealed_can_be_opened(settings, value: bytes):
    sealed = crypto.seal(value, purpose="dkim")
    assert crypto.unseal(sealed, purpose="dkim") == value
    assert len(value) < 4 or value not in sealed
    assert crypto.seal(value, purpose="dkim") != sealed


def test_a_purpose_opens_no_other(settings):
    assert crypto.derive_key("a") != crypto.derive_key("b")
    assert len(crypto.derive_key("a")) == 32
    with pytest.raises(crypto.UnsealError):
        crypto.unseal(crypto.seal(b"x", purpose="a"), purpose="b")


def test_any_change_is_noticed(settings):
    sealed = crypto.seal(b"secret", purpose="a")
    for position in range(len(sealed)):
        changed = bytearray(sealed)
        changed[position] ^= 1
        with pytest.raises(crypto.UnsealError):
            crypto.unseal(bytes(changed), purpose="a")
    for length in range(len(sealed)):
        with pytest.raises(crypto.UnsealError):
            crypto.unseal(sealed[:length], purpose="a")
    with pytest.raises(crypto.UnsealError):
        crypto.unseal(sealed + b"x", purpose="a")


def test_another_secret_key_opens_nothing(settings, request):
    sealed, key = crypto.seal(b"secret", purpose="a"), crypto.derive_key("a")
    request.getfixturevalue("another_secret")
    assert crypto.derive_key("a") != key
    with pytest.raises(crypto.UnsealError, match="SECRET_KEY"):
        crypto.unseal(sealed, purpose="a")


def test_digests():
    assert crypto.digest("secret") == hashlib.sha256(b"secret").digest()
