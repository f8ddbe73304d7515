"""Idempotency-Key: the saved answer commits with the effects that it answers for, or neither does.

A route that creates or spends takes `once: OnceKey`, begins with `await once.begin(principal.org_id, principal.id)`
and ends with `return await once.remember(201, envelope)`.
The first request holds an advisory lock for the life of its transaction, so a crash leaves nothing behind; a
second one meanwhile is told 409; a later one gets the saved answer. Only answers of success are saved. They are
sealed at rest, for an answer may hold a secret that is shown once.

    CREATE TABLE idempotency_keys: (org_id, route, key) -> request digest, status, sealed answer
"""

import hashlib
from datetime import datetime
from typing import Annotated, TypeVar
from uuid import UUID

from fastapi import Depends, Header, Request
from pydantic import BaseModel
from sqlalchemy import delete, func, select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, mapped_column

from app.core import crypto
from app.core.db import Base, Transaction
from app.core.errors import Conflict, Flaw, Invalid

_PURPOSE = "idempotency"
_KEPT = text("interval '24 hours'")

EnvelopeT = TypeVar("EnvelopeT", bound=BaseModel)


class IdempotencyKey(Base):
    """A saved answer."""

    __tablename__ = "idempotency_keys"

    org_id: Mapped[UUID] = mapped_column(primary_key=True)
    route: Mapped[str] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    request_digest: Mapped[bytes]
    status: Mapped[int]
    answer: Mapped[bytes]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now(), index=True)


class Replay(Exception):  # noqa: N818 - not a failure: the answer was given before
    """Ends the request with the answer that was saved for its key."""

    def __init__(self, status: int, body: bytes) -> None:
        super().__init__(status)
        self.status = status
        self.body = body


class Once:
    """One request's claim on its Idempotency-Key; inert when none was sent."""

    def __init__(self, session: AsyncSession, request: Request, key: str | None) -> None:
        self._session = session
        self._request = request
        self._key = key

    @property
    def is_inert(self) -> bool:
        """No key was sent, so that nothing is saved."""
        return self._key is None

    async def begin(self, org_id: UUID, caller: UUID | None) -> None:
        """Claim the key for `org_id` before doing anything.

        `caller` is the user or API key: an answer that holds a secret is given again only to whom it was given first.
        Raises Replay with the saved answer, Conflict while the first request still runs, Invalid for another body.
        """
        self._org_id = org_id
        if self._key is None:
            return
        self._route = f"{self._request.method} {self._request.scope['route'].path}"
        asked = f"{caller}\n{self._request.url.path}\n".encode()
        self._digest = hashlib.sha256(asked + await self._request.body()).digest()
        name = hashlib.sha256(f"{org_id}\n{self._route}\n{self._key}".encode()).digest()
        lock = int.from_bytes(name[:8], "big", signed=True)
        if not await self._session.scalar(select(func.pg_try_advisory_xact_lock(lock))):
            raise Conflict("idempotency_in_progress", "The first request with this Idempotency-Key is still running.")
        saved = await self._session.get(IdempotencyKey, (org_id, self._route, self._key))
        if saved is None:
            return
        if saved.request_digest != self._digest:
            flaw = Flaw("/Idempotency-Key", "was used with another body", "header")
            raise Invalid(
                "idempotency_key_reused",
                "This Idempotency-Key was used for another request, or by another caller.",
                flaws=[flaw],
            )
        raise Replay(saved.status, crypto.unseal(saved.answer, purpose=_PURPOSE))

    async def remember(self, status: int, envelope: EnvelopeT) -> EnvelopeT:
        """Save the answer in the request's transaction and return it."""
        if self._key is not None:
            answer = crypto.seal(envelope.model_dump_json(by_alias=True).encode(), purpose=_PURPOSE)
            self._session.add(
                IdempotencyKey(
                    org_id=self._org_id,
                    route=self._route,
                    key=self._key,
                    request_digest=self._digest,
                    status=status,
                    answer=answer,
                )
            )
            try:
                await self._session.flush()
            except IntegrityError as error:
                # The first request committed between our lock and our look: the client asks again and is answered.
                raise Conflict("idempotency_in_progress", "The first request with this key just ended.") from error
        return envelope


async def _once(
    request: Request,
    session: Transaction,
    key: Annotated[
        str | None,
        Header(
            alias="Idempotency-Key",
            min_length=1,
            max_length=256,
            pattern=r"^[\x21-\x7e]+$",
            description="Makes a repeat safe: the same key and body give the first answer again for 24 hours.",
        ),
    ] = None,
) -> Once:
    return Once(session, request, key)


OnceKey = Annotated[Once, Depends(_once)]


async def forget_old(session: AsyncSession) -> None:
    """Drop answers older than the 24 hours that they are kept."""
    await session.execute(delete(IdempotencyKey).where(IdempotencyKey.created_at < func.now() - _KEPT))
