import asyncio
import time

import pytest

from app.mail.reply import Phase, Reply
from app.mail.smtp import (
    Connection,
    Envelope,
    ProtocolViolation,
    TimedOut,
    TlsFailed,
    tls_context,
)
from tests.certificates import make_authority, self_signed
from tests.mail.smtp_helpers import CONTENT, ENVELOPE, LARGE, PATIENT, TIMEOUTS, connected, either, send, server
from tests.smtpd import SmtpServer, drop, hang, raw, slow

__all__ = ["either", "server"]  # fixtures


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
            with pytest.raises(TlsFailed) as failure:
                async with connected(server, TIMEOUTS, tls=tls_context()):
                    pass
            assert failure.value.phase is Phase.STARTTLS
            assert isinstance(failure.value.__cause__, TimedOut)

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
