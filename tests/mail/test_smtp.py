import asyncio
import contextlib
import dataclasses
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from app.mail.reply import Phase, Reply
from app.mail.smtp import (
    ConnectFailed,
    Connection,
    ConnectionLost,
    Envelope,
    ProtocolViolation,
    Refused,
    SmtpError,
    TimedOut,
    Timeouts,
    TlsFailed,
    Transmission,
    tls_context,
)
from tests.certificates import make_authority, self_signed
from tests.smtpd import DEFAULT_EXTENSIONS, Act, SmtpServer, drop, hang, late, raw, slow

TIMEOUTS = Timeouts(**{field.name: 0.25 for field in dataclasses.fields(Timeouts)})
PATIENT = Timeouts(**{field.name: 5 for field in dataclasses.fields(Timeouts)})
ENVELOPE = Envelope("a@sender.test", "b@x.test")
CONTENT = b"Subject: hi\r\n\r\nHello\r\n"
LARGE = b"Subject: large\r\n\r\n" + (b"x" * 76 + b"\r\n") * 200_000
UNPIPELINED = tuple(name for name in DEFAULT_EXTENSIONS if name != "PIPELINING")


def yes() -> bool:
    return True


@pytest.fixture
async def server() -> AsyncIterator[SmtpServer]:
    async with SmtpServer() as server:
        yield server


@pytest.fixture(params=[True, False], ids=["pipelined", "one by one"])
async def either(request: pytest.FixtureRequest) -> AsyncIterator[SmtpServer]:
    """A host with and one without PIPELINING."""
    async with SmtpServer(extensions=DEFAULT_EXTENSIONS if request.param else UNPIPELINED) as server:
        yield server


@contextlib.asynccontextmanager
async def connected(server: SmtpServer, timeouts: Timeouts = PATIENT, **options: Any) -> AsyncIterator[Connection]:
    connection = await Connection.open(
        "mx.test", server.host, server.port, ehlo_name="out.sender.test", timeouts=timeouts, **options
    )
    try:
        yield connection
    finally:
        connection.abort()


async def send(
    connection: Connection, envelope: Envelope = ENVELOPE, content: bytes = CONTENT, before: Callable[[], bool] = yes
) -> Transmission:
    return await connection.transmit(envelope, content, before_content=before)


class TestDelivery:
    async def test_a_mail_arrives_as_it_is(self, either: SmtpServer) -> None:
        began = time.time()
        async with connected(either) as connection:
            sent = await send(connection)
        assert sent.accepted
        assert (sent.phase, sent.reply) == (Phase.CONTENT, Reply(250, "2.0.0", "taken"))
        assert sent.content_sent_at is not None
        assert began <= sent.content_sent_at <= sent.finished_at <= time.time()
        (mail,) = either.mails
        assert (mail.mail_from, mail.rcpt_to, mail.content) == ("a@sender.test", "b@x.test", CONTENT)
        assert mail.ehlo == "out.sender.test"
        assert mail.mail_parameters == {"SIZE": str(len(CONTENT))}
        assert not mail.tls
        assert either.violations == []

    async def test_pipelining_only_where_offered(self, either: SmtpServer) -> None:
        async with connected(either) as connection:
            for _ in range(3):
                assert (await send(connection)).accepted
        assert either.violations == []
        assert either.verbs() == ["EHLO", *["MAIL", "RCPT", "DATA"] * 3]

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b".\r\n",
            b"..\r\n.\r\n\r\n.x\r\n",
            b".leading\r\nmiddle .\r\n.\r\n.\r\nend.\r\n",
            b"a\r\n" * 5 + b".",
            b"Subject: 8\xc3\xbc\r\n\r\n\xff\xfe\r\n",
            LARGE + b".\r\n..\r\nend\r\n",
        ],
    )
    async def test_dot_stuffing_is_undone_by_the_host(self, server: SmtpServer, content: bytes) -> None:
        async with connected(server) as connection:
            assert (await send(connection, content=content)).accepted
            assert (await send(connection)).accepted
        expected = content if content.endswith(b"\r\n") or not content else content + b"\r\n"
        assert [mail.content for mail in server.mails] == [expected, CONTENT]

    async def test_one_connection_carries_many_mails(self, server: SmtpServer) -> None:
        async with connected(server) as connection:
            for number in range(20):
                assert connection.is_usable
                assert (await send(connection, Envelope("", f"r{number}@x.test"))).accepted
            assert connection.transactions == 20
        assert [mail.rcpt_to for mail in server.mails] == [f"r{number}@x.test" for number in range(20)]
        assert {mail.connection_id for mail in server.mails} == {1}
        assert {mail.mail_from for mail in server.mails} == {""}
        assert "RSET" not in server.verbs()

    async def test_source_address_is_bound(self, server: SmtpServer) -> None:
        async with connected(server, source_address="127.0.0.77") as connection:
            await send(connection)
        assert server.mails[0].peer[0] == "127.0.0.77"

    async def test_quit_is_polite(self, server: SmtpServer) -> None:
        async with connected(server) as connection:
            await connection.quit()
            assert not connection.is_usable
            await connection.quit()
        assert server.verbs() == ["EHLO", "QUIT"]

    async def test_quit_does_not_wait_for_ever(self, server: SmtpServer) -> None:
        server.replies.on_quit = lambda _: hang()
        async with connected(server, TIMEOUTS) as connection:
            async with asyncio.timeout(2):
                await connection.quit()
            assert not connection.is_usable

    async def test_slow_replies_of_many_lines(self, either: SmtpServer) -> None:
        either.replies.on_rcpt = lambda _: slow("250 one\ntwo\nthree")
        either.replies.on_end_of_data = lambda _: slow("250 2.6.0 yes\n2.6.0 really")
        async with connected(either) as connection:
            sent = await send(connection)
        assert sent.reply == Reply(250, "2.6.0", "yes\nreally")


class TestExtensions:
    async def test_they_are_known_by_name(self) -> None:
        async with (
            SmtpServer(extensions=("size 1000", "Auth PLAIN login", "8BITMIME")) as server,
            connected(server) as connection,
        ):
            assert connection.extensions == {"SIZE": "1000", "AUTH": "PLAIN LOGIN", "8BITMIME": ""}

    async def test_helo_where_ehlo_is_unknown(self, server: SmtpServer) -> None:
        server.replies.on_ehlo = lambda _: "502 5.5.1 what?"
        async with connected(server) as connection:
            assert connection.extensions == {}
            assert (await send(connection)).accepted
        assert server.verbs()[:2] == ["EHLO", "HELO"]
        assert server.mails[0].mail_parameters == {}

    async def test_too_large_for_the_host(self) -> None:
        async with SmtpServer(extensions=("SIZE 1000",)) as server, connected(server) as connection:
            sent = await send(connection, content=b"x" * 998 + b"\r\n\r\n")
            assert sent.phase is Phase.MAIL
            assert sent.reply is not None
            assert (sent.reply.code, sent.reply.enhanced, sent.reply.local) == (552, "5.3.4", True)
            assert sent.content_sent_at is None
            assert (await send(connection, content=b"x" * 998 + b"\r\n")).accepted
        assert server.verbs() == ["EHLO", "MAIL", "RCPT", "DATA"]

    @pytest.mark.parametrize("limit", ["SIZE", "SIZE 0", "SIZE many"])
    async def test_size_without_a_limit(self, limit: str) -> None:
        async with SmtpServer(extensions=(limit.replace(" many", ""),)) as server:
            server.replies.on_ehlo = lambda _: f"250 mx\n{limit}"
            async with connected(server) as connection:
                assert (await send(connection)).accepted

    async def test_smtputf8(self, server: SmtpServer) -> None:
        content = "Subject: Grüße\r\n\r\nHällo\r\n".encode()
        async with connected(server) as connection:
            assert (await send(connection, Envelope("ä@sender.test", "ü@x.test"), content)).accepted
            assert (await send(connection, Envelope("a@sender.test", "b@x.test", smtputf8=True))).accepted
        first, second = server.mails
        assert (first.mail_from, first.rcpt_to, first.content) == ("ä@sender.test", "ü@x.test", content)
        assert first.mail_parameters == {"SIZE": str(len(content)), "BODY": "8BITMIME", "SMTPUTF8": ""}
        assert second.mail_parameters == {"SIZE": str(len(CONTENT)), "SMTPUTF8": ""}

    @pytest.mark.parametrize(
        ("envelope", "content", "code", "enhanced"),
        [
            (Envelope("a@s.test", "ü@x.test"), CONTENT, 553, "5.6.7"),
            (Envelope("a@s.test", "b@x.test", smtputf8=True), CONTENT, 553, "5.6.7"),
            (ENVELOPE, b"\xc3\xbc\r\n", 554, "5.6.3"),
            (ENVELOPE, b"one\ntwo\r\n", 554, "5.6.0"),
            (ENVELOPE, b"one\r.\r\n", 554, "5.6.0"),
            (ENVELOPE, b"one\n\r\n", 554, "5.6.0"),
        ],
    )
    async def test_what_the_host_cannot_carry_is_not_sent(
        self, envelope: Envelope, content: bytes, code: int, enhanced: str
    ) -> None:
        async with SmtpServer(extensions=("PIPELINING",)) as server, connected(server) as connection:
            sent = await send(connection, envelope, content)
            assert sent.reply is not None
            assert (sent.phase, sent.reply.code, sent.reply.enhanced) == (Phase.MAIL, code, enhanced)
            assert sent.reply.local
            assert connection.is_usable
        assert server.verbs() == ["EHLO"]

    @pytest.mark.parametrize(
        ("mail_from", "rcpt_to"),
        [
            ("a@s.test", ""),
            ("a@s.test\r\nRSET", "b@x.test"),
            ("a@s.test", "b@x.test\nDATA"),
            ("a@s.test", "b@x.test> NOTIFY=NEVER"),
            ("a@s.test", "b\x00@x.test"),
            ("a@s.test", '"b\r\n"@x.test'),
            ("a@s.test", "b" * 600 + "@x.test"),
        ],
    )
    def test_addresses_do_not_break_out_of_their_command(self, mail_from: str, rcpt_to: str) -> None:
        with pytest.raises(ValueError):
            Envelope(mail_from, rcpt_to)


class TestTls:
    async def test_opportunistic(self) -> None:
        async with SmtpServer(tls=self_signed("other.test")) as server:
            async with connected(server, tls=tls_context()) as connection:
                assert (await send(connection, content=CONTENT)).accepted
                assert (await send(connection, content=LARGE)).accepted
                assert connection.tls is not None
                assert (connection.tls.version, connection.tls.verified) == ("TLSv1.3", False)
                assert connection.tls.cipher
                assert "STARTTLS" not in connection.extensions
                await connection.quit()
            assert [mail.content for mail in server.mails] == [CONTENT, LARGE]
            assert all(mail.tls and mail.tls_version == "TLSv1.3" for mail in server.mails)
            assert server.verbs()[:3] == ["EHLO", "STARTTLS", "EHLO"]

    async def test_verified_by_host_name(self) -> None:
        authority = make_authority()
        async with (
            SmtpServer(tls=authority.issue("mx.test")) as server,
            connected(server, tls=authority.client_context()) as connection,
        ):
            assert connection.tls is not None
            assert connection.tls.verified
            assert (await send(connection)).accepted

    @pytest.mark.parametrize("name", ["other.test", None])
    async def test_a_bad_certificate_fails_and_plaintext_is_the_callers_choice(self, name: str | None) -> None:
        authority = make_authority()
        certificate = authority.issue(name) if name else self_signed("mx.test")
        async with SmtpServer(tls=certificate) as server:
            with pytest.raises(TlsFailed) as failure:
                async with connected(server, tls=authority.client_context()):
                    pass
            assert failure.value.phase is Phase.STARTTLS
            async with connected(server) as connection:
                assert connection.tls is None
                assert (await send(connection)).accepted

    async def test_not_offered(self, server: SmtpServer) -> None:
        async with connected(server, tls=tls_context()) as connection:
            assert connection.tls is None
            assert (await send(connection)).accepted

    async def test_refused(self) -> None:
        async with SmtpServer(tls=self_signed("mx.test")) as server:
            server.replies.on_starttls = lambda _: "454 4.7.0 TLS not now"
            with pytest.raises(TlsFailed) as failure:
                async with connected(server, tls=tls_context()):
                    pass
            assert failure.value.reply == Reply(454, "4.7.0", "TLS not now")

    @pytest.mark.parametrize("injected", [b"250 mx.evil.test\r\n", b"250-mx", b"\x00"])
    async def test_plaintext_after_the_starttls_reply_is_an_attack(self, injected: bytes) -> None:
        async with SmtpServer(tls=self_signed("mx.test")) as server:
            server.replies.on_starttls = lambda _: raw(b"220 2.0.0 go\r\n" + injected)
            with pytest.raises(ProtocolViolation) as failure:
                async with connected(server, tls=tls_context()):
                    pass
            assert failure.value.phase is Phase.STARTTLS

    async def test_extensions_offered_in_plaintext_are_forgotten(self) -> None:
        async with SmtpServer(tls=self_signed("mx.test")) as server:
            answers = iter(["250 mx\nSTARTTLS\nSIZE 1\nXFORGED", "250 mx\nPIPELINING"])
            server.replies.on_ehlo = lambda _: next(answers)
            async with connected(server, tls=tls_context()) as connection:
                assert connection.extensions == {"PIPELINING": ""}

    async def test_handshake_that_hangs(self) -> None:
        async with SmtpServer(tls=self_signed("mx.test")) as server:
            server.replies.on_starttls = lambda _: hang("220 go")
            with pytest.raises(TimedOut) as failure:
                async with connected(server, TIMEOUTS, tls=tls_context()):
                    pass
            assert failure.value.phase is Phase.STARTTLS

    async def test_handshake_that_is_dropped(self) -> None:
        async with SmtpServer(tls=self_signed("mx.test")) as server:
            server.replies.on_starttls = lambda _: drop("220 go")
            with pytest.raises(TlsFailed):
                async with connected(server, tls=tls_context()):
                    pass

    async def test_a_host_name_that_tls_cannot_carry(self) -> None:
        async with SmtpServer(tls=self_signed("mx.test")) as server:
            for host in ("x" * 64 + ".test", "a..b"):
                with pytest.raises(TlsFailed):
                    await Connection.open(
                        host, server.host, server.port, ehlo_name="o.test", timeouts=PATIENT, tls=tls_context()
                    )


class TestRefusals:
    @pytest.mark.parametrize("phase", [Phase.MAIL, Phase.RCPT, Phase.DATA, Phase.CONTENT])
    @pytest.mark.parametrize("code", ["451 4.7.1 later", "550 5.7.1 never"])
    async def test_a_refusal_is_a_value_and_the_connection_goes_on(
        self, either: SmtpServer, phase: Phase, code: str
    ) -> None:
        hook = {Phase.CONTENT: "on_end_of_data"}.get(phase, f"on_{phase}")
        setattr(either.replies, hook, lambda _: code)
        async with connected(either) as connection:
            sent = await send(connection)
            assert (sent.phase, str(sent.reply)) == (phase, code)
            assert not sent.accepted
            assert (sent.content_sent_at is not None) is (phase is Phase.CONTENT)
            setattr(either.replies, hook, lambda _: None)
            assert connection.is_usable
            assert (await send(connection)).accepted
        assert len(either.mails) == 1
        assert either.verbs().count("RSET") == 1
        assert either.connection_count == 1

    async def test_rset_that_is_refused_ends_the_session(self, either: SmtpServer) -> None:
        either.answer_once("b@x.test", "550 5.1.1 no")
        either.replies.on_rset = lambda _: "500 what?"
        async with connected(either) as connection:
            await send(connection)
            with pytest.raises(ProtocolViolation):
                await send(connection)
            assert not connection.is_usable
        assert either.mails == []

    async def test_a_host_that_wants_content_though_it_refused_the_recipient(self, server: SmtpServer) -> None:
        server.replies.on_rcpt = lambda _: "550 5.1.1 no such user"
        server.replies.on_data = lambda _: "354 go ahead"
        asked: list[int] = []

        def before() -> bool:
            asked.append(1)
            return True

        async with connected(server) as connection:
            sent = await send(connection, before=before)
            assert (sent.phase, str(sent.reply)) == (Phase.RCPT, "550 5.1.1 no such user")
            assert not connection.is_usable
        assert asked == []
        assert server.mails == []

    @pytest.mark.parametrize("phase", [Phase.MAIL, Phase.RCPT, Phase.DATA, Phase.CONTENT])
    async def test_421_is_the_reply_and_the_end(self, either: SmtpServer, phase: Phase) -> None:
        hook = {Phase.CONTENT: "on_end_of_data"}.get(phase, f"on_{phase}")
        setattr(either.replies, hook, lambda _: drop("421 4.3.2 going down"))
        async with connected(either) as connection:
            sent = await send(connection)
            assert (sent.phase, str(sent.reply)) == (phase, "421 4.3.2 going down")
            assert not connection.is_usable

    async def test_a_refusal_counts_though_the_host_hangs_up_after_it(self, server: SmtpServer) -> None:
        server.replies.on_mail = lambda _: drop("550 5.7.1 blocked")
        async with connected(server) as connection:
            sent = await send(connection)
            assert (sent.phase, str(sent.reply)) == (Phase.MAIL, "550 5.7.1 blocked")
            assert not connection.is_usable

    @pytest.mark.parametrize("answer", ["554 5.7.1 no", "421 4.3.2 busy"])
    async def test_greeting(self, answer: str) -> None:
        async with SmtpServer(greeting=answer) as server:
            with pytest.raises(Refused) as failure:
                async with connected(server):
                    pass
            assert (failure.value.phase, str(failure.value.reply)) == (Phase.GREETING, answer)

    async def test_ehlo(self, server: SmtpServer) -> None:
        server.replies.on_ehlo = server.replies.on_helo = lambda _: "550 5.7.1 not you"
        with pytest.raises(Refused) as failure:
            async with connected(server):
                pass
        assert (failure.value.phase, str(failure.value.reply)) == (Phase.EHLO, "550 5.7.1 not you")
        server.replies.on_ehlo = lambda _: "450 4.7.1 not now"
        with pytest.raises(Refused):
            async with connected(server):
                pass
        assert server.verbs() == ["EHLO", "HELO", "EHLO"]

    async def test_nobody_listens(self, server: SmtpServer) -> None:
        await server.stop()
        with pytest.raises(ConnectFailed) as failure:
            async with connected(server):
                pass
        assert failure.value.phase is Phase.CONNECT
        with pytest.raises(ConnectFailed):
            async with connected(server, source_address="192.0.2.99"):
                pass


class TestMishaps:
    @pytest.mark.parametrize("phase", [Phase.MAIL, Phase.RCPT, Phase.DATA, Phase.CONTENT])
    @pytest.mark.parametrize("how", ["hang", "drop", "reset"])
    async def test_in_a_transaction(self, either: SmtpServer, phase: Phase, how: str) -> None:
        hook = {Phase.CONTENT: "on_end_of_data"}.get(phase, f"on_{phase}")
        act = {"hang": hang(), "drop": drop(), "reset": drop(abort=True)}[how]
        setattr(either.replies, hook, lambda _: act)
        async with connected(either, TIMEOUTS) as connection:
            with pytest.raises(TimedOut if how == "hang" else ConnectionLost) as failure:
                await send(connection)
            assert failure.value.phase is phase
            assert failure.value.content_sent is (phase is Phase.CONTENT)
            assert not connection.is_usable

    async def test_the_host_may_have_the_mail_though_its_reply_is_lost(self, server: SmtpServer) -> None:
        server.replies.on_end_of_data = lambda _: drop(keep_mail=True)
        async with connected(server) as connection:
            with pytest.raises(ConnectionLost) as failure:
                await send(connection)
        assert failure.value.content_sent
        assert len(server.mails) == 1

    @pytest.mark.parametrize("phase", [Phase.GREETING, Phase.EHLO, Phase.STARTTLS])
    @pytest.mark.parametrize("how", ["hang", "drop"])
    async def test_while_opening(self, phase: Phase, how: str) -> None:
        async with SmtpServer(tls=self_signed("mx.test")) as server:
            hook = {Phase.GREETING: "on_connect"}.get(phase, f"on_{phase}")
            setattr(server.replies, hook, lambda _: hang() if how == "hang" else drop())
            with pytest.raises(TimedOut if how == "hang" else ConnectionLost) as failure:
                async with connected(server, TIMEOUTS, tls=tls_context()):
                    pass
            assert failure.value.phase is phase
            assert not failure.value.content_sent

    async def test_content_that_is_not_taken(self, either: SmtpServer) -> None:
        either.replies.on_data = lambda _: hang("354 go")
        async with connected(either, TIMEOUTS) as connection:
            with pytest.raises(TimedOut) as failure:
                await send(connection, content=LARGE)
            assert (failure.value.phase, failure.value.content_sent) == (Phase.CONTENT, False)

    async def test_content_cut_off(self, either: SmtpServer) -> None:
        either.replies.on_data = lambda _: drop("354 go")
        async with connected(either) as connection:
            with pytest.raises(ConnectionLost) as failure:
                await send(connection, content=LARGE)
            assert (failure.value.phase, failure.value.content_sent) == (Phase.CONTENT, False)

    async def test_content_refused_while_it_is_sent(self, either: SmtpServer) -> None:
        refusal = b"552 5.3.4 too much\r\n"

        def refuse_soon(_: str) -> Act:
            (session,) = either.connections
            asyncio.get_running_loop().call_later(0.05, session.interject, refusal)
            return hang("354 go")

        either.replies.on_data = refuse_soon
        async with connected(either) as connection:
            sent = await send(connection, content=LARGE)
            assert (sent.phase, str(sent.reply)) == (Phase.CONTENT, "552 5.3.4 too much")
            assert sent.content_sent_at is None
            assert not connection.is_usable

    async def test_replies_dripping_in_for_ever_are_cut_off(self, server: SmtpServer) -> None:
        server.replies.on_mail = lambda _: slow("250 " + "x" * 500, byte_interval_seconds=0.01)
        async with connected(server, TIMEOUTS) as connection:
            with pytest.raises(TimedOut):
                await send(connection)

    async def test_a_late_reply_in_time(self, server: SmtpServer) -> None:
        server.replies.on_end_of_data = lambda _: late("250 2.0.0 at last", wait_seconds=0.4)
        patient_at_the_end = dataclasses.replace(TIMEOUTS, final_seconds=3)
        async with connected(server, patient_at_the_end) as connection:
            assert (await send(connection)).accepted

    @pytest.mark.parametrize(
        "garbage",
        [
            b"HTTP/1.1 400 Bad Request\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01\r\n",
            b"25\r\n",
            b"999 what\r\n",
            b"250_what\r\n",
            b"\r\n",
            b"250 " + b"x" * 3000 + b"\r\n",
            b"250 " + b"x" * 300_000,
            b"250-x\r\n" * 150 + b"250 x\r\n",
            b"250 ok\r\n" * 100,
            b"354 go\r\n",
        ],
    )
    async def test_garbage(self, either: SmtpServer, garbage: bytes) -> None:
        either.replies.on_mail = lambda _: raw(garbage)
        async with connected(either) as connection:
            with pytest.raises(ProtocolViolation) as failure:
                await send(connection)
            assert not failure.value.content_sent
            assert not connection.is_usable
        assert either.mails == []

    async def test_garbage_for_a_greeting(self) -> None:
        async with SmtpServer(greeting=raw(b"SSH-2.0-OpenSSH_9.2\r\n")) as server:
            with pytest.raises(ProtocolViolation):
                async with connected(server):
                    pass

    @pytest.mark.parametrize("extra", [b"250 2.0.0 taken\r\n", b"250"])
    async def test_a_reply_too_many_is_never_taken_for_acceptance(self, either: SmtpServer, extra: bytes) -> None:
        either.replies.on_data = lambda _: raw(b"354 go\r\n" + extra)
        either.replies.on_end_of_data = lambda _: "550 5.7.1 no"
        async with connected(either) as connection:
            with pytest.raises(ProtocolViolation) as failure:
                await send(connection)
            assert not failure.value.content_sent

    async def test_a_reply_to_the_final_dot_that_is_none(self, either: SmtpServer) -> None:
        either.replies.on_end_of_data = lambda _: "354 more?"
        async with connected(either) as connection:
            with pytest.raises(ProtocolViolation) as failure:
                await send(connection)
            assert failure.value.content_sent

    @pytest.mark.parametrize("words", [b"421 4.4.2 idle too long\r\n", b"2", b""])
    async def test_an_idle_connection_that_the_host_ends_is_not_usable(self, server: SmtpServer, words: bytes) -> None:
        async with connected(server) as connection:
            assert (await send(connection)).accepted
            (session,) = server.connections
            session.interject(words, close=True)
            await asyncio.sleep(0.05)
            assert not connection.is_usable
            await connection.quit()

    async def test_421_that_crosses_the_next_mail(self, either: SmtpServer) -> None:
        async with connected(either) as connection:
            (session,) = either.connections
            session.interject(b"421 4.4.2 idle too long\r\n")
            await asyncio.sleep(0.05)
            sent = await send(connection)
            assert (sent.phase, str(sent.reply)) == (Phase.MAIL, "421 4.4.2 idle too long")
            assert not connection.is_usable

    async def test_cancelling_closes_the_connection(self, server: SmtpServer) -> None:
        server.replies.on_rcpt = lambda _: hang()
        async with connected(server) as connection:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(send(connection), 0.1)
            assert not connection.is_usable

    def test_errors_say_where_and_what(self) -> None:
        error: SmtpError = Refused("greeting", phase=Phase.GREETING, reply=Reply(554, "5.7.1", "no"))
        assert str(error) == "greeting (greeting): 554 5.7.1 no"


class TestFencing:
    @pytest.mark.parametrize("content", [CONTENT, LARGE], ids=["small", "large"])
    @pytest.mark.parametrize(("answers", "phase"), [([False], Phase.DATA), ([True, False], Phase.CONTENT)])
    async def test_nothing_is_delivered_after_no(
        self, either: SmtpServer, content: bytes, answers: list[bool], phase: Phase
    ) -> None:
        left = list(answers)
        async with connected(either) as connection:
            sent = await send(connection, content=content, before=lambda: left.pop(0))
            assert sent.aborted
            assert (sent.phase, sent.reply, sent.content_sent_at) == (phase, None, None)
            assert not sent.accepted
            assert not connection.is_usable
        await asyncio.sleep(0.05)
        assert left == []
        assert either.mails == []

    async def test_it_is_asked_twice_and_only_when_the_host_is_ready(self, either: SmtpServer) -> None:
        asked: list[int] = []

        def before() -> bool:
            asked.append(len(either.verbs()))
            return True

        either.answer_once("b@x.test", "550 5.1.1 no")
        async with connected(either) as connection:
            await send(connection, before=before)
            assert asked == []
            assert (await send(connection, before=before)).accepted
            assert len(asked) == 2

    async def test_a_question_that_raises_delivers_nothing(self, server: SmtpServer) -> None:
        def before() -> bool:
            raise RuntimeError("lease unknown")

        async with connected(server) as connection:
            with pytest.raises(RuntimeError):
                await send(connection, before=before)
            assert not connection.is_usable
        assert server.mails == []
