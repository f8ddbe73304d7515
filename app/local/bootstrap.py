"""The first run's user, API key and verified domain, written down in DATA_DIR/dev-credentials.json."""

import json
import os
import secrets
from dataclasses import asdict, dataclass
from hmac import compare_digest
from pathlib import Path

import structlog
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts import keys
from app.accounts import service as accounts
from app.accounts.models import ApiKey, User
from app.accounts.passwords import verify_password
from app.accounts.principal import principal_of
from app.core.config import Settings
from app.core.crypto import digest
from app.core.db import Database
from app.domains import service as domains
from app.domains.models import Domain

log = structlog.get_logger(__name__)

FILE_NAME = "dev-credentials.json"
EMAIL = "developer@postroad.test"
DOMAIN = "mail.postroad.test"
SENDER = f"hello@{DOMAIN}"
SYSTEM_SENDER = f"Postroad <postroad@{DOMAIN}>"
SELECTOR = "postroad"
KEY_NAME = "Local development"


@dataclass(frozen=True, slots=True)
class Credentials:
    """What the file holds; `sender` is its `from`."""

    base_url: str
    email: str
    password: str
    api_key: str
    sender: str


async def run(settings: Settings, base_url: str) -> Path:
    """Make sure that the credentials in the file exist and work; the file's path.

    Whatever is missing is made anew: the file (then with a new password and key for the same user), the user,
    the domain. The file is written after the commit, so it never names what does not exist.
    """
    path = settings.data_dir / FILE_NAME
    database = Database(settings, pool_size=1)
    try:
        known = _read(path)
        if known is None or not await _work(database, known):
            async with database.transaction() as session:
                known = await _make(session)
            log.info("credentials_made", path=str(path))
        async with database.transaction() as session:
            await _ensure_domain(session)
            await _ensure_operator(session)
    finally:
        await database.close()
    _write(path, base_url, known)
    return path


async def _work(database: Database, known: Credentials) -> bool:
    async with database.transaction() as session:
        user = await _user(session, known.email)
        prefix = known.api_key.rpartition("_")[0]
        key = (await session.scalars(select(ApiKey).where(ApiKey.prefix == prefix))).one_or_none()
    if user is None or key is None or key.org_id != user.org_id:
        return False
    is_key = compare_digest(key.secret_hash, digest(known.api_key))
    return is_key and await verify_password(known.password, user.password_hash)


async def _make(session: AsyncSession) -> Credentials:
    password = secrets.token_urlsafe(18)
    user = await _user(session, EMAIL)
    if user is None:
        _, user = await accounts.register(
            session, email=EMAIL, password=password, name="Developer", organization_name="Local development"
        )
    else:
        await accounts.set_password(session, user.org_id, user.id, password=password)
    user = await accounts.verify_email(session, EMAIL)
    found = select(ApiKey).where(ApiKey.org_id == user.org_id, ApiKey.name == KEY_NAME)
    for lost in (await session.scalars(found)).all():
        await keys.delete_api_key(session, lost.org_id, lost.id)
    _, secret = await keys.create_api_key(session, principal_of(user), name=KEY_NAME)
    return Credentials("", EMAIL, password, secret, SENDER)


async def _ensure_domain(session: AsyncSession) -> None:
    user = await _user(session, EMAIL)
    if user is None:
        return
    mine = select(Domain).where(Domain.org_id == user.org_id, Domain.name == DOMAIN, Domain.deleted_at.is_(None))
    found = (await session.scalars(mine)).one_or_none()
    if found is None:
        made = await domains.create(session, user.org_id, name=DOMAIN, selector=SELECTOR, only=None)
        await domains.trust(session, user.org_id, made.id)
    elif found.status != "verified":
        await domains.trust(session, user.org_id, found.id)


async def _ensure_operator(session: AsyncSession) -> None:
    """Postroad's own mails leave from the domain of an operator."""
    user = await _user(session, EMAIL)
    if user is not None:
        user.is_operator = True


async def _user(session: AsyncSession, email: str) -> User | None:
    return (await session.scalars(select(User).where(User.email == email))).one_or_none()


def _read(path: Path) -> Credentials | None:
    """What the file says; None when it is missing, damaged or about another user."""
    try:
        fields = json.loads(path.read_bytes())
        found = Credentials(*(str(fields[name]) for name in ("base_url", "email", "password", "api_key", "from")))
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    return found if found.email == EMAIL else None


def _write(path: Path, base_url: str, known: Credentials) -> None:
    fields = asdict(known) | {"base_url": base_url}
    fields["from"] = fields.pop("sender")
    unfinished = path.with_suffix(".part")
    unfinished.unlink(missing_ok=True)
    descriptor = os.open(unfinished, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(json.dumps(fields, indent=2) + "\n")
        file.flush()
        os.fsync(file.fileno())
    unfinished.rename(path)
