"""Attacks on access tokens: each takes a token that works and spoils one thing."""

import base64
import hmac
import json
import time

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from jose import jwt
from sqlalchemy import delete

from app.accounts import tokens
from app.accounts.models import User
from app.core.crypto import derive_key
from tests.accounts.helpers import assert_problem, change_user, me, register


def claims(account, **changes):
    """The claims of a good token with some changed; None takes one away."""
    now = int(time.time())
    good = {
        "iss": "postroad",
        "aud": "postroad-api",
        "type": "access",
        "sub": str(account.user_id),
        "org": str(account.org_id),
        "epoch": 0,
        "iat": now,
        "exp": now + 900,
        "jti": "one",
    }
    return {name: value for name, value in (good | changes).items() if value is not None}


def signed(payload, *, key=None, algorithm="HS256"):
    return jwt.encode(payload, key or derive_key("jwt"), algorithm=algorithm)


def bearer(token):
    return {"Authorization": f"Bearer {token}"}


async def test_the_unspoilt_token_works(client):
    account = await register(client)
    assert (await me(client, bearer(signed(claims(account))))).status_code == 200


async def test_our_own_tokens_say_what_they_are(client):
    account = await register(client)
    payload = jwt.get_unverified_claims(account.access_token)
    assert jwt.get_unverified_header(account.access_token)["alg"] == "HS256"
    assert (payload["iss"], payload["aud"], payload["type"]) == ("postroad", "postroad-api", "access")
    assert payload["exp"] - payload["iat"] == tokens.ACCESS_SECONDS == 900
    assert payload["sub"] == str(account.user_id)


@pytest.mark.parametrize(
    "changes",
    [
        {"iss": "another"},
        {"iss": None},
        {"aud": "another-api"},
        {"aud": None},
        {"type": "refresh"},
        {"type": None},
        {"exp": None},
        {"iat": None},
        {"jti": None},
        {"sub": None},
        {"sub": "not-a-uuid"},
        {"org": None},
        {"org": 7},
        {"epoch": None},
        {"epoch": 1},
        {"epoch": -1},
        {"epoch": [0]},
    ],
)
async def test_wrong_or_missing_claims_are_refused(client, changes):
    account = await register(client)
    assert_problem(await me(client, bearer(signed(claims(account, **changes)))), 401, "invalid_token")


async def test_expired_is_told_apart(client):
    account = await register(client)
    past = int(time.time()) - 1
    token = signed(claims(account, iat=past - 900, exp=past))
    assert_problem(await me(client, bearer(token)), 401, "token_expired")


@pytest.mark.parametrize("algorithm", ["HS256", "HS384", "HS512"])
async def test_another_secret_or_algorithm_is_refused(client, algorithm):
    account = await register(client)
    payload = claims(account)
    assert_problem(await me(client, bearer(signed(payload, key=b"guessed", algorithm=algorithm))), 401, "invalid_token")
    if algorithm != "HS256":
        assert_problem(await me(client, bearer(signed(payload, algorithm=algorithm))), 401, "invalid_token")


def public_key() -> str:
    private = rsa.generate_private_key(public_exponent=65_537, key_size=2048)
    spki = serialization.PublicFormat.SubjectPublicKeyInfo
    return private.public_key().public_bytes(serialization.Encoding.PEM, spki).decode()


def sealed_by_hand(header, payload, secret):
    """A token that jose itself would refuse to make."""
    parts = [base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in (header, payload)]
    mac = hmac.new(secret, ".".join(parts).encode(), "sha256").digest()
    return ".".join([*parts, base64.urlsafe_b64encode(mac).decode().rstrip("=")])


async def test_a_public_key_is_no_secret(client):
    """The confusion of algorithms: whoever verifies by a public key may not take it for an HMAC secret."""
    account, pem = await register(client), public_key()
    for algorithm in ("HS256", "RS256"):
        token = sealed_by_hand({"alg": algorithm, "typ": "JWT"}, claims(account), pem.encode())
        assert_problem(await me(client, bearer(token)), 401, "invalid_token")


@pytest.mark.parametrize("header", [{"kid": "../../dev/null"}, {"jku": "http://127.0.0.1/k"}, {"crit": ["exp"]}])
async def test_a_token_does_not_choose_its_key(client, header):
    account = await register(client)
    own_key = {"jwk": {"kty": "oct", "k": base64.urlsafe_b64encode(b"mine").decode()}}
    token = sealed_by_hand({"alg": "HS256", "typ": "JWT", **header, **own_key}, claims(account), b"mine")
    assert_problem(await me(client, bearer(token)), 401, "invalid_token")


@pytest.mark.parametrize("name", ["none", "None", "NONE", ""])
async def test_unsigned_is_refused(client, name):
    account = await register(client)
    parts = ({"alg": name, "typ": "JWT"}, claims(account))
    token = ".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts)
    for unsigned in (token + ".", token, token + "." + account.access_token.rsplit(".", 1)[1]):
        assert_problem(await me(client, bearer(unsigned)), 401, "invalid_token")


async def test_an_altered_payload_is_refused(client):
    account, victim = await register(client), await register(client)
    head, _, signature = account.access_token.split(".")
    body = base64.urlsafe_b64encode(json.dumps(claims(victim)).encode()).decode().rstrip("=")
    assert_problem(await me(client, bearer(f"{head}.{body}.{signature}")), 401, "invalid_token")


@pytest.mark.parametrize("token", ["x", "..", "a.b.c", "e30.e30.e30", "ü.ü.ü", "a" * 5000])
async def test_rubbish_is_refused(client, token):
    assert_problem(await me(client, {"Authorization": f"Bearer {token}".encode()}), 401, "invalid_token")


async def test_a_user_under_another_organization_is_refused(client):
    account, other = await register(client), await register(client)
    token = signed(claims(account, org=str(other.org_id)))
    assert_problem(await me(client, bearer(token)), 401, "invalid_token")


async def test_a_removed_user_is_refused(client, database):
    account = await register(client)
    async with database.transaction() as session:
        await session.execute(delete(User).where(User.org_id == account.org_id, User.id == account.user_id))
    assert_problem(await me(client, account.headers), 401, "invalid_token")


async def test_a_raised_epoch_voids_older_tokens(client, database):
    account = await register(client)
    await change_user(database, account, token_epoch=1)
    assert_problem(await me(client, account.headers), 401, "invalid_token")
    assert (await me(client, bearer(signed(claims(account, epoch=1))))).status_code == 200
