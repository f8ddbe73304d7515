"""What a report means: the corpus, and what must never be read out of one."""

from collections import Counter

import pytest

from app.mail import returnpath
from app.mail.report import Report, read
from app.mail.reported import Kind, ReportedRecipient
from tests.mail.mails import DELIVERY, KEY, LOCAL, MESSAGE_ID, ORG, UNSUBSCRIBE, VERP, Wanted, corpus, wire

CORPUS = corpus()
BY_NAME = {wanted.name: wanted for wanted in CORPUS}
# Those that bring the original back as it was, with its trace.
RETURNED = [wanted for wanted in CORPUS if f"\r\nReturn-Path: <{VERP}>".encode() in wanted.octets]


def _words(found: ReportedRecipient) -> str:
    category = found.diagnosis.category if found.diagnosis else "-"
    words = [found.kind, found.address or "-", found.status or "-", str(found.code or "-"), category]
    if found.diagnosis and found.diagnosis.address_level:
        words.append("address")
    if found.original_address:
        words.append(f"original={found.original_address}")
    return " ".join(words)


def _is_ours(report: Report) -> bool:
    locals_ = [candidate.partition("@")[0] for candidate in report.envelope_candidates]
    return (ORG, DELIVERY) in [returnpath.decode(local, key=KEY) for local in locals_]


@pytest.mark.parametrize("wanted", CORPUS, ids=lambda wanted: wanted.name)
def test_what_real_senders_send_is_understood(wanted: Wanted) -> None:
    report = read(wanted.octets)
    assert report.kind == wanted.said["expect"]
    assert [_words(found) for found in report.recipients] == wanted.recipients
    assert _is_ours(report)
    original = wanted.said.get("original", "header")
    assert report.original_message_id == (None if original == "none" else MESSAGE_ID)
    assert report.original_list_unsubscribe == (UNSUBSCRIBE if original == "header" else ())
    assert report.feedback_type == wanted.said.get("feedback")
    assert "ip" not in wanted.said or report.source_ip == wanted.said["ip"]
    assert "agent" not in wanted.said or report.user_agent == wanted.said["agent"]
    assert "mta" not in wanted.said or report.recipients[0].remote_mta == wanted.said["mta"]
    if "arrival" in wanted.said:
        assert report.arrival_date
        assert report.arrival_date.isoformat() == wanted.said["arrival"]


def test_the_corpus_is_wide_enough() -> None:
    assert len(CORPUS) == len(BY_NAME) >= 150
    kinds = Counter(wanted.said["expect"] for wanted in CORPUS)
    assert set(kinds) == set(Kind)
    assert min(kinds.values()) >= 2
    categories = {line.split()[4] for wanted in CORPUS for line in wanted.recipients} - {"-"}
    assert len(categories) >= 14
    assert len(RETURNED) >= 80
    assert sum(b"trap.example.net" in wanted.octets for wanted in CORPUS) >= 80


def test_the_same_is_understood_however_it_was_stored() -> None:
    for wanted in CORPUS:
        report = read(wanted.octets)
        for line_end in (b"\n", b"\r"):
            assert read(wanted.octets.replace(b"\r\n", line_end)) == report, wanted.name
        assert read(b"From MAILER-DAEMON Tue Oct  6 09:12:44 2026\r\n" + wanted.octets) == report, wanted.name


def test_the_original_cannot_speak_for_the_report() -> None:
    for wanted in CORPUS:
        assert not [found for found in read(wanted.octets).recipients if "trap" in str(found).lower()], wanted.name


def test_only_a_failure_blames_an_address() -> None:
    for wanted in CORPUS:
        for found in read(wanted.octets).recipients:
            assert (found.diagnosis is None) == (found.kind in (Kind.SUCCESS, Kind.COMPLAINT)), wanted.name
            if found.diagnosis and found.diagnosis.address_level:
                assert found.kind is Kind.FAILURE, wanted.name
                assert "5.7." not in f"{found.status} {found.diagnostic}", wanted.name


def test_the_return_path_is_found_in_the_original_too() -> None:
    for wanted in RETURNED:
        head, blank, body = wanted.octets.partition(b"\r\n\r\n")
        elsewhere = head.replace(VERP.encode(), b"fbl@postroad.example")
        assert _is_ours(read(elsewhere + blank + body)), wanted.name


STATUS = """\
Content-Type: multipart/report; report-type=delivery-status; boundary=C
X-Failed-Recipients: trap@example.net

--C
Content-Type: message/delivery-status

Final-Recipient: rfc822; trap@example.net
Action: failed
Status: 5.1.1

--C
Content-Type: message/feedback-report

Feedback-Type: abuse
Original-Rcpt-To: trap@example.net

--C--"""


@pytest.mark.parametrize(
    "carried",
    [
        "Content-Type: message/rfc822\n\n@ORIGINAL@",
        "Content-Type: message/rfc822\nContent-Transfer-Encoding: base64\n\n<<base64 utf-8\n@ORIGINAL@\n>>\n",
        f"Content-Type: message/rfc822\n\n{STATUS}",
        f"Content-Type: message/global\nContent-Disposition: attachment\n\n{STATUS}",
        "Content-Type: text/rfc822-headers\n\n@ORIGINAL@",
        "Content-Type: text/plain\n\n@ORIGINAL@",
        "Content-Type: text/plain; name=original.txt\nContent-Disposition: attachment\n\n@ORIGINAL@",
        "Content-Type: text/html\n\n<pre>@ESCAPED@</pre><p>trap@example.net: 550 5.1.1 User unknown</p>",
        "Content-Type: application/octet-stream; name=original.eml\nContent-Transfer-Encoding: base64\n"
        "Content-Disposition: attachment; filename=original.eml\n\n<<base64 utf-8\n@ORIGINAL@\n>>\n",
    ],
)
def test_however_the_original_is_attached_it_says_nothing(carried: str) -> None:
    for sender, subject, kind in (
        ("postmaster@example.org", "Undeliverable", Kind.FAILURE),
        ("postmaster@example.org", "Delivery delayed", Kind.DELAY),
        ("Jane <jane@example.org>", "Automatic reply: Undeliverable", Kind.AUTO_REPLY),
        ("Jane <jane@example.org>", "Re: Undeliverable", Kind.OTHER),
    ):
        mail = (
            f"From: {sender}\nTo: @VERP@\nSubject: {subject}\nContent-Type: multipart/mixed; boundary=B\n\n"
            f"--B\n\n<user@example.org>: sorry\n\n--B\n{carried}\n--B--\n"
        )
        report = read(wire(mail))
        assert report.kind is kind
        wanted = ["user@example.org"] if kind in (Kind.FAILURE, Kind.DELAY) else []
        assert [found.address for found in report.recipients] == wanted
        assert not any(found.diagnosis and found.diagnosis.address_level for found in report.recipients)


@pytest.mark.parametrize(
    ("subject", "kind"),
    [
        ("Undeliverable: Flight delayed", Kind.FAILURE),
        ("Delivery delayed: Undelivered parcel", Kind.DELAY),
        ("Mail delivery failed: your order was delivered", Kind.FAILURE),
        ("Successful Mail Delivery Report", Kind.SUCCESS),
        ("Delivery Status Notification (Delay)", Kind.DELAY),
        ("Delivery Status Notification (Failure)", Kind.FAILURE),
        ("Unsuccessful delivery", Kind.FAILURE),
        ("Warning: could not send message for past 4 hours", Kind.DELAY),
        ("=?utf-8?q?Nicht_zustellbar:_Versp=C3=A4tung?=", Kind.FAILURE),
        ("Non remis : votre commande", Kind.FAILURE),
        ("No se ha podido entregar: pedido retrasado", Kind.FAILURE),
        ("Falha na entrega", Kind.FAILURE),
        ("Mancato recapito", Kind.FAILURE),
        ("Onbestelbaar: bestelling", Kind.FAILURE),
        ("Olevererbart: order", Kind.FAILURE),
        ("Не доставлено: заказ", Kind.FAILURE),
        ("配信不能", Kind.FAILURE),
        ("系统退信", Kind.FAILURE),
    ],
)
def test_the_first_words_of_the_subject_tell(subject: str, kind: Kind) -> None:
    report = read(
        wire(f"From: postmaster@example.org\nTo: @VERP@\nSubject: {subject}\n\n<user@example.org>: 550 5.1.1 No\n")
    )
    assert report.kind is kind
    # The same from a person is no report.
    mail = f"From: Jane <jane@example.org>\nTo: @VERP@\nSubject: {subject}\n\n<user@example.org>: 550 5.1.1 No\n"
    assert read(wire(mail)).kind is Kind.OTHER


def test_a_person_who_attaches_a_delivery_status_reports_nothing() -> None:
    status = "Final-Recipient: rfc822; trap@example.net\nAction: failed\nStatus: 5.1.1\n"
    for content_type in ("message/delivery-status", "message/rfc822"):
        mail = (
            "From: Jane <jane@example.org>\nTo: @VERP@\nSubject: What is this?\n"
            f"Content-Type: multipart/mixed; boundary=B\n\n--B\n\nSee below.\n\n--B\nContent-Type: {content_type}\n\n"
            f"{status}\n--B--\n"
        )
        assert read(wire(mail)) == Report(Kind.OTHER, envelope_candidates=(VERP,))


@pytest.mark.parametrize(
    "value",
    [
        f"<{VERP}>",
        f"SRS0=HHH=TT=bounces.postroad.example={LOCAL}@forwarder.example.net",
        f"SRS1=HHH=other.example.net==HHH=TT=bounces.postroad.example={LOCAL}@forwarder.example.net",
        f"prvs=1234abcdef={VERP}",
        f"btv1==012abcdef=={VERP}",
        f"list-bounces+{LOCAL}=bounces.postroad.example@lists.example.net",
        f"pass (sender IP is 198.51.100.7) smtp.mailfrom={VERP}; dkim=pass",
        f"from a by b (envelope-from <{VERP}>) for c",
    ],
)
def test_return_paths_are_found_within_other_addresses(value: str) -> None:
    for name in ("To", "X-Original-To", "Delivered-To", "Authentication-Results", "X-Anything"):
        assert read(wire(f"From: a@example.org\n{name}: {value}\n\n.\n")).envelope_candidates == (VERP,)
    assert read(wire(f"From: a@example.org\nTo: {value.upper()}\n\n.\n")).envelope_candidates == (VERP.upper(),)


def test_what_is_not_quite_a_return_path_is_no_candidate() -> None:
    for local in (LOCAL[:-1], f"{LOCAL}a", f"a{LOCAL}", f"{LOCAL[:-1]}1", f"c{LOCAL[1:]}"):
        assert read(wire(f"From: a@example.org\nTo: {local}@example.org\n\n.\n")).envelope_candidates == ()
    assert read(wire(f"From: a@example.org\nTo: {LOCAL}\n\n{VERP}\n")).envelope_candidates == ()


def test_an_answer_tells_what_it_answers() -> None:
    for fields in (
        "In-Reply-To: <a@b>",
        "In-Reply-To: a@b",
        "References: <x@y> <a@b>",
        "In-Reply-To: your mail\nReferences: <a@b>",
    ):
        assert read(wire(f"From: a@example.org\n{fields}\n\n.\n")).original_message_id == "a@b"


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ("Subject: Automatic reply: Please confirm your message", Kind.AUTO_REPLY),
        ("Subject: =?utf-8?q?R=C3=A9ponse_automatique_:?= Undeliverable", Kind.AUTO_REPLY),
        ("Subject: Re: Out of Office: your order", Kind.AUTO_REPLY),
        ("Subject: OOO until Monday", Kind.AUTO_REPLY),
        ("Subject: Abwesenheitsnotiz", Kind.AUTO_REPLY),
        ("Subject: =?utf-8?b?6Ieq5Yqo5Zue5aSN?=: x", Kind.AUTO_REPLY),
        ("Subject: Re: x\nAuto-Submitted: auto-replied", Kind.AUTO_REPLY),
        ("Subject: Re: x\nPrecedence: auto_reply", Kind.AUTO_REPLY),
        ("Subject: Re: x\nX-POST-MessageClass: 9; Autoresponder", Kind.AUTO_REPLY),
        ("Subject: Re: x\nX-MS-Exchange-Generated-Message-Source: Mailbox Rules Agent", Kind.AUTO_REPLY),
        ("Subject: Re: x\nAuto-Submitted: no", Kind.OTHER),
        ("Subject: Re: Please confirm your message", Kind.OTHER),
        ("Subject: Re: Confirmation required for your order", Kind.OTHER),
        ("Subject: Re: Vacation rentals in Spain", Kind.OTHER),
        ("Subject: Automatic payments are failing", Kind.OTHER),
        ("Subject: Please confirm your message", Kind.CHALLENGE),
        ("Subject: Re: x (verification required)", Kind.CHALLENGE),
        ("Subject: x\nX-Delivery-Agent: TMDA/1.1", Kind.CHALLENGE),
    ],
)
def test_answers_of_machines_and_of_people(fields: str, kind: Kind) -> None:
    assert read(wire(f"From: Jane <jane@example.org>\nTo: @VERP@\n{fields}\n\nHello.\n")).kind is kind
