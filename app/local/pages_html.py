"""The HTML of the local mailbox. Everything that comes from a mail passes through `esc`."""

from collections.abc import Sequence
from html import escape
from typing import Protocol

from app.local import mailview
from app.local.dkimcheck import Verdict
from app.local.mailstore import MAILS_MAX, StoredMail
from app.local.mailview import Content, Part

SOURCE_CHARACTERS_MAX = 200_000

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8882; --dim: #777; --good: #1a7f37; --bad: #cf222e }
@media (prefers-color-scheme: dark) { :root { --dim: #999; --good: #3fb950; --bad: #f85149 } }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 64rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.35rem; margin: 0 0 .5rem; overflow-wrap: anywhere }
h2 { font-size: 1rem; margin: 2rem 0 .5rem }
a { color: inherit }
.dim { color: var(--dim) }
.pass { color: var(--good) }
.fail, .error { color: var(--bad) }
header { display: flex; gap: 1rem; align-items: baseline; justify-content: space-between; flex-wrap: wrap }
table { border-collapse: collapse; width: 100% }
td, th { text-align: left; vertical-align: top; padding: .4rem .5rem }
td, th { border-bottom: 1px solid var(--line); overflow-wrap: anywhere; font-weight: 400 }
tr:hover td { background: var(--soft) }
td a { text-decoration: none; display: block }
th, table.fields th { color: var(--dim) }
table.fields th { width: 11rem }
.marks { white-space: nowrap }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: var(--soft); padding: 1rem; margin: 0 }
pre { border-radius: 6px; max-height: 32rem; overflow: auto; font: 13px/1.45 ui-monospace, monospace }
iframe { width: 100%; height: 32rem; border: 1px solid var(--line); border-radius: 6px; background: #fff }
button { font: inherit; padding: .2rem .8rem; cursor: pointer }
code { font-family: ui-monospace, monospace }
details { margin-top: 2rem }
summary { cursor: pointer }
"""
# Beside the policy that the frame inherits, for readers that show the frame by itself.
_FRAME_POLICY = (
    '<meta http-equiv="Content-Security-Policy" '
    "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'; font-src data:\">"
)
_HELP = f"""
<details><summary>What this mailbox does</summary>
<p>In local mode every domain's mail ends here; nothing leaves this machine. The newest {MAILS_MAX:,} mails
are kept.</p>
<ul>
<li>To an address that begins with <code>bounce</code> the mailbox answers
<code>550 5.1.1</code>: a hard bounce.</li>
<li>To one that begins with <code>defer</code> it answers <code>451 4.7.1</code> at the first try and takes
the mail at the second.</li>
<li>Domains under <code>.invalid</code> do not exist.</li>
<li>Every domain that you create verifies at once: a nameserver of its own publishes what you were asked to
publish, and the DKIM marks come from look-ups there.</li>
<li><a href="/local/mailbox.json">/local/mailbox.json</a> is this list for programs.</li>
</ul></details>
"""


class Row(Protocol):
    """A mail in the list."""

    @property
    def mail(self) -> StoredMail: ...
    @property
    def headers(self) -> tuple[tuple[str, str], ...]: ...
    @property
    def verdicts(self) -> list[Verdict]: ...


def esc(value: str) -> str:
    """Text made harmless for element content and double-quoted attributes."""
    return escape(value, quote=True)


def list_page(rows: Sequence[Row], total: int, *, has_older: bool, is_serving: bool) -> str:
    """The list, newest first. `is_serving`: mail comes here, because DNS_NAMESERVERS is not set."""
    clear = '<form method="post" action="/local/mailbox/clear"><button>Delete all</button></form>' if total else ""
    real = (
        "<p><strong>DNS_NAMESERVERS is set, so delivery is real:</strong> mail goes to the hosts that those "
        "nameservers name, and nothing new arrives here.</p>"
    )
    if rows:
        heads = "".join(f"<th>{name}</th>" for name in ("Received (UTC)", "From", "To", "Subject", "DKIM"))
        table = f"<table><tr>{heads}</tr>{''.join(map(_row, rows))}</table>"
    else:
        table = "<p class=dim>No mail yet. Send one through the API, then reload.</p>"
    older = f'<p><a href="/local/mailbox?before={esc(rows[-1].mail.id)}">Older</a></p>' if has_older else ""
    count = f"<span class=dim>{total} mail{'' if total == 1 else 's'}</span>"
    header = f"<header><h1>Local mailbox</h1>{count}{clear}</header>"
    return _page("Local mailbox", f"{header}{'' if is_serving else real}{table}{older}{_HELP}")


def mail_page(mail: StoredMail, raw: bytes, content: Content, verdicts: list[Verdict]) -> str:
    """One mail with everything about it."""
    subject = mailview.first(content.headers, "subject") or "(no subject)"
    source = raw[:SOURCE_CHARACTERS_MAX].decode("utf-8", errors="replace")
    cut = "" if len(raw) <= SOURCE_CHARACTERS_MAX else " (the beginning)"
    download = f'<a href="/local/mailbox/{esc(mail.id)}.eml">download</a>'
    summary = f"<summary>Source{cut}, {len(raw):,} bytes, {download}</summary>"
    sections = [
        '<p><a href="/local/mailbox">All mails</a></p>',
        f"<h1>{esc(subject)}</h1>",
        f"<p class=error>{esc(content.problem)}</p>" if content.problem else "",
        _fields(_envelope(mail)),
        f"<h2>DKIM</h2>{_verdicts(verdicts)}",
        f"<h2>HTML</h2>{_frame(content.html)}" if content.html else "",
        f"<h2>Text</h2><pre>{esc(content.text)}</pre>" if content.text else "",
        f"<h2>Attachments</h2>{_attachments(mail, content.attachments)}" if content.attachments else "",
        f"<h2>Headers</h2>{_fields(content.headers)}",
        f"<details>{summary}<pre>{esc(source)}</pre></details>",
    ]
    return _page(subject, "".join(sections))


def not_found_page() -> str:
    """For mails that are gone."""
    return _page("Not found", '<h1>No such mail</h1><p><a href="/local/mailbox">All mails</a></p>')


def _page(title: str, body: str) -> str:
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{esc(title)} · Postroad</title><style>{_STYLE}</style></head><body>{body}</body></html>"
    )


def _row(row: Row) -> str:
    link = f"/local/mailbox/{esc(row.mail.id)}"
    subject = mailview.first(row.headers, "subject") or "(no subject)"
    marks = " ".join(_mark(verdict) for verdict in row.verdicts) or "<span class=dim>none</span>"
    cells = [
        row.mail.envelope.received_at[:19].replace("T", " "),
        mailview.first(row.headers, "from") or row.mail.envelope.mail_from,
        ", ".join(row.mail.envelope.rcpt_to),
        subject,
    ]
    shown = "".join(f'<td><a href="{link}">{esc(cell[:200])}</a></td>' for cell in cells)
    return f"<tr>{shown}<td class=marks>{marks}</td></tr>"


def _mark(verdict: Verdict) -> str:
    sign = "✓" if verdict.result == "pass" else "✗"
    kind = verdict.algorithm.split("-")[0] or "?"
    title = f"{verdict.result}: {verdict.domain} {verdict.selector} {verdict.detail}"
    return f'<span class={_kind(verdict)} title="{esc(title)}">{sign} {esc(kind[:20])}</span>'


def _verdicts(verdicts: list[Verdict]) -> str:
    if not verdicts:
        return "<p class=dim>Not signed.</p>"
    heads = "".join(f"<th>{name}</th>" for name in ("Result", "Domain", "Selector", "Algorithm", ""))
    lines = [
        f"<tr><td class={_kind(verdict)}>{esc(verdict.result)}</td><td>{esc(verdict.domain)}</td>"
        f"<td>{esc(verdict.selector)}</td><td>{esc(verdict.algorithm)}</td><td>{esc(verdict.detail)}</td></tr>"
        for verdict in verdicts
    ]
    return f"<table><tr>{heads}</tr>{''.join(lines)}</table>"


def _kind(verdict: Verdict) -> str:
    return verdict.result if verdict.result in {"pass", "fail"} else "error"


def _envelope(mail: StoredMail) -> list[tuple[str, str]]:
    envelope = mail.envelope
    return [
        ("Received", envelope.received_at),
        ("Envelope sender", envelope.mail_from or "<>"),
        ("Envelope recipients", ", ".join(envelope.rcpt_to)),
        ("Connection", f"{envelope.peer}, EHLO {envelope.ehlo}, {envelope.tls or 'not encrypted'}"),
    ]


def _fields(fields: Sequence[tuple[str, str]]) -> str:
    lines = (f"<tr><th>{esc(name)}</th><td>{esc(value[:5000])}</td></tr>" for name, value in fields)
    return f"<table class=fields>{''.join(lines)}</table>"


def _attachments(mail: StoredMail, parts: Sequence[Part]) -> str:
    lines = (
        f'<tr><td><a href="/local/mailbox/{esc(mail.id)}/parts/{part.index}">{esc(part.name[:300])}</a></td>'
        f"<td>{esc(part.content_type[:100])}</td><td>{len(part.content):,} bytes</td></tr>"
        for part in parts
    )
    return f"<table>{''.join(lines)}</table>"


def _frame(html: str) -> str:
    """The mail's HTML in a frame without any right: no scripts, no forms, no origin, no way out."""
    return f'<iframe sandbox="" title="The mail\'s HTML" srcdoc="{esc(_FRAME_POLICY + html)}"></iframe>'
