"""Bounces in words: what hosts write that send no delivery status, or leave it empty.

Every mail system has its own sentences, and its own way to set an address before or after them. They are not told
apart here; what they have in common is read: who writes, which words of a few languages come first in the subject,
which lines lead with an address or name one behind a label, and which reply stands beside it.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from app.mail import returnpath
from app.mail.mime import Entity
from app.mail.reported import ADDRESS, MAX_RECIPIENTS, Kind, ReportedRecipient, phase_in, reply_in, reported, tidy

_MAX_LINES: Final = 1_500
_MAX_BLOCK_CHARACTERS: Final = 4_000
_MAX_OPENING_CHARACTERS: Final = 3_000

_MACHINE = re.compile(
    r"daemon\b|\bpost[-_.]?master\b|\bmail ?(?:delivery|administrator|system|router)\b|\bsysadmin\b"
    r"|(?<![\w.+-])(?:double-)?bounces?@"
    r"|system administrator|delivery (?:sub)?system|internet mail service|\bcourier mail\b"
    r"|microsoftexchange[0-9a-f]{6}",
    re.IGNORECASE,
)
_FAILED: Final = (
    r"undeliver",
    r"non-?deliver",
    r"not (?:be |been )?(?:deliver|sent to|reach)",
    r"(?:can|could|was|were|is)n['’]t (?:be )?(?:deliver|sent to|reach)",
    r"(?:unable|failed) to (?:deliver|send|reach)",
    r"unsuccessful",
    r"deliver(?:y|ing)(?: of)?(?: the| your)?(?: status)?(?: to| notification)?[ :(]{1,3}(?:has )?(?:been )?"
    r"(?:fail|error|problem|aborted|following recipients? failed|following address)",
    r"mail(?: delivery)?(?: system)? (?:error|fail)",
    r"fail(?:ed|ure) (?:mail|message|notice|delivery)",
    r"return(?:ed|ing) (?:mail|message|to sender)",
    r"(?:did|does) not reach",
    r"permanent (?:fatal )?(?:error|failure)",
    r"failed permanently",
    r"(?:message|mail) (?:was )?(?:rejected|blocked|bounced|refused)",
    r"\bbounce",
    r"error sending your",
    # German, French, Spanish, Portuguese
    r"unzustellbar|nicht zugestellt|nicht zustellbar|zustellung (?:ist )?(?:fehlgeschlagen|gescheitert)|zustellfehler",
    r"non[ _]remis|non délivr|n['’]a (?:pas )?pu être (?:remis|délivr|distribu|envoy)|échec (?:de |d['’])",
    r"no se (?:puede|pudo|ha podido) entregar|no entregad|fallo (?:en|de) la entrega|devuelto",
    r"não (?:foi )?entregue|não (?:foi possível|pôde ser) entreg|falha na entrega|devolvid",
    # Italian, Dutch, Swedish, Danish, Polish, Czech, Turkish
    r"mancato recapito|non recapitabil|impossibile (?:consegnare|recapitare)|mancata consegna",
    r"onbestelbaar|niet (?:worden )?(?:afgeleverd|bezorgd)",
    r"olevererbart|kunde inte levereras|kunne ikke leveres|ikke leveret",
    r"niedostarczon|nie można dostarczyć|nedoručiteln|nelze doručit|teslim edilemedi|iletilemedi",
    # Russian, Japanese, Chinese, Korean
    r"недоставлен|не (?:было |может быть |были )?доставлен|невозможно доставить|не удалось доставить",
    r"配信不能|配信できません|配信エラー|送信できません|配送できません|届けられません|未達",
    r"退信|无法投递|无法送达|未送达|投递失败|傳送失敗|無法傳遞|반송|배달되지 않|전송 실패",
)
_DELAYED: Final = (
    r"delay",
    r"still being (?:re)?tried",
    r"not yet been delivered",
    r"warning: (?:could not send|message)",
    r"temporarily deferred",
    r"will (?:be retried|(?:continue|keep) (?:to )?try)",
    r"verzöger|retardé|en retard|retrasad|atrasad|ritardat|vertraagd|försenad|forsinket|opóźnion|zpožděn",
    r"задерж|отложен|gecik|遅延|遅れて|延迟|延遲|지연",
)
_DELIVERED: Final = (
    r"(?<!un)success",
    r"(?:was|were|been) (?:delivered|relayed)",
    r"\((?:relay|expanded)\)|^(?:delivered|relayed):",
    r"erfolgreich zugestellt|remis avec succès|entregado|entregue|consegnato|доставлено|配信されました|已送达",
)
_TOLD = re.compile(
    "|".join(
        f"(?P<{kind}>{'|'.join(words)})"
        for kind, words in ((Kind.FAILURE, _FAILED), (Kind.DELAY, _DELAYED), (Kind.SUCCESS, _DELIVERED))
    ),
    re.IGNORECASE,
)
# Whatever the subject says, these leave no doubt.
_ONLY_A_WARNING = re.compile(
    r"warning message only|do not need to re-?send|only a temporary failure|just a warning|has not yet been delivered"
    r"|attempts will continue|(?:will|shall) (?:continue|keep) (?:to )?try|still (?:being tried|trying)",
    re.IGNORECASE,
)

# An address at the head of a line, with what shows that the line is not a sentence of which it is the subject.
_LEADING = re.compile(
    rf"[\s>*\"'<\[(|•-]{{0,12}}(?:status: error, address: <)?({ADDRESS})(?=[>\"'\])]{{0,3}}(?:[ \t]{{0,4}}(?:$|:|[(\[])"
    r"|,[ \t]{0,2}(?:$|responsecode)|[ \t]{0,4}\.\.\.|[ \t]{1,4}(?:on \w|- |<|invalid address)))",
    re.IGNORECASE,
)
_LABELLED = re.compile(
    r"[\s>*-]{0,12}(?:(?:final|failed|intended|original|affected)?[ -]?recipients?(?: address| mailbox)?"
    r"|(?:undeliverable|invalid|failed|bad)? ?address|unknown (?:user|recipient|address)"
    r"|(?:user|recipient|mailbox|address|host) (?:unknown|not found|is full|disabled)|user mailbox exceeds allowed size"
    r"|invalid final delivery userid|rcpt to|could not be delivered to|undeliverable to|error-for|empfänger"
    r"|destinataire|destinatario|destinatário|получатель|宛先|収件人|收件人)[ \t]{0,4}[:=：]?[ \t]{0,12}[<\"'(]{0,2}"
    rf"({ADDRESS})",
    re.IGNORECASE,
)
_IN_SENTENCE = re.compile(
    r"\b(?:deliver(?:ed|y|ing)?|message|e?-?mail|reach|sent|recipient|undeliverable|nachricht|zugestellt|zustellung"
    r"|envoyé|remis|mensaje|messaggio|mensagem|user)[ \t]{1,3}(?:\w{1,20}:?[ \t]{1,3}){0,5}?[<\"'(]{0,2}"
    rf"({ADDRESS})",
    re.IGNORECASE,
)
_BEHIND = re.compile(rf"\((?:generated|expanded) from:?[ \t]{{0,3}}<?({ADDRESS})", re.IGNORECASE)
# Whom to write to for help is not who was written to.
_ASKED_TO_WRITE = re.compile(
    r"\b(?:please|contact|write to|forward|help|bitte|kontakt|veuillez|por favor)\b", re.IGNORECASE
)
_HELPERS = re.compile(r"(?:postmaster|abuse|mailer-daemon|support|help|helpdesk|no-?reply)@", re.IGNORECASE)
_HOST = re.compile(r"\bhost:?\s{1,3}([A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63}){1,8})", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Named:
    """An address that a text speaks of as a recipient, the one that it was expanded from, and what the text says of it.

    before: the lines just before it, in which some tell the reason.
    """

    address: str
    original: str | None = None
    text: str = ""
    before: str = ""


def from_machine(mail: Entity) -> bool:
    """Whether a mail system wrote it, by the name or address in From."""
    return _MACHINE.search(mail.header.text("from")[:500]) is not None


def told(subject: str, said: str) -> Kind | None:
    """Whether subject and words tell of a failure, a delay or a success; None for none of these.

    The first such words of the subject count: what follows them may be the subject of the mail that came back.
    """
    opening = said[:_MAX_OPENING_CHARACTERS]
    if _ONLY_A_WARNING.search(opening):
        return Kind.DELAY
    for text in (subject[:300], opening):
        if found := _TOLD.search(text):
            return Kind(str(found.lastgroup))
    return None


def named_in(said: str) -> list[Named]:
    """The recipients that a text names, in its order, each with the lines up to the next."""
    lines = said.split("\n")[:_MAX_LINES]
    places = list(_leading(lines)) or list(_in_sentences(lines))
    named = []
    ends = [*(number for number, _, _ in places[1:]), len(lines)]
    for (number, begin, address), end in zip(places, ends, strict=False):
        text = "\n".join([lines[number][begin:], *lines[number + 1 : end]])[:_MAX_BLOCK_CHARACTERS]
        behind = _BEHIND.search(text)
        before = "\n".join(_paragraph_before(lines, number))
        named.append(Named(address, tidy(behind[1]) if behind else None, text.strip(" \t\n>\"':"), before))
    return named


def recipients(mail: Entity, said: str, kind: Kind) -> tuple[ReportedRecipient, ...]:
    """Whom the text is about, and what it says of each: one without an address where it names none.

    X-Failed-Recipients (Exim, Gmail) names them too. Sender and receiver of the report itself are not among them.
    """
    own = {each.lower() for name in ("to", "from", "delivered-to") for each in _addresses(mail.header.get(name))}
    named = {each.address.lower(): each for each in named_in(said) if each.address.lower() not in own}
    failed = [each for value in mail.header.all("x-failed-recipients") for each in _addresses(value)]
    chosen = [named.get(each.lower(), Named(each)) for each in failed] or list(named.values())
    if len(chosen) > 1 and not failed and any(_has_reply(each.text) for each in chosen):
        # An address of which nothing is said beside others with a reply is somebody's signature.
        chosen = [each for each in chosen if each.text]
    if len(chosen) > 1:
        return tuple(_reported(kind, each, each.text) for each in chosen[:MAX_RECIPIENTS])
    only = chosen[0] if chosen else None
    text = (only.text or only.before) if only else said
    return (_reported(kind, only, text if _has_reply(text) or not _has_reply(said) else said),)


def _reported(kind: Kind, named: Named | None, text: str) -> ReportedRecipient:
    host = _HOST.search(text)
    return reported(
        kind,
        named.address if named else None,
        text,
        phase=phase_in(text),
        original_address=named.original if named else None,
        remote_mta=host[1].lower() if host else "",
    )


def _has_reply(text: str) -> bool:
    found = reply_in(text)
    return found.code is not None or found.status is not None


def _leading(lines: Sequence[str]) -> Iterator[tuple[int, int, str]]:
    """(line, where its text begins, address) of each line that leads with an address or has one behind a label."""
    seen: set[str] = set()
    for number, line in enumerate(lines):
        if "@" not in line:
            continue
        leading = _LEADING.match(line)
        found = leading or _LABELLED.match(line)
        if found and _is_new(address := tidy(found[1]), seen):
            yield number, found.end() if leading else 0, address


def _in_sentences(lines: Sequence[str]) -> Iterator[tuple[int, int, str]]:
    seen: set[str] = set()
    for number, line in enumerate(lines):
        found = _IN_SENTENCE.search(line) if "@" in line else None
        if found is None or _ASKED_TO_WRITE.search(line[: found.start(1)]) or _HELPERS.match(found[1]):
            continue
        if _is_new(address := tidy(found[1]), seen):
            yield number, 0, address


def _is_new(address: str, seen: set[str]) -> bool:
    """Whether the address is not our return path, not seen before, and among the first."""
    lower = address.lower()
    if lower in seen or len(seen) == MAX_RECIPIENTS or returnpath.SHAPE.search(lower):
        return False
    seen.add(lower)
    return True


def _paragraph_before(lines: Sequence[str], number: int) -> list[str]:
    begin = number
    while begin and lines[begin - 1].strip() and number - begin < 20:
        begin -= 1
    return list(lines[begin:number])


def _addresses(value: str) -> list[str]:
    return [tidy(found[0]) for found in re.finditer(ADDRESS, value)][:MAX_RECIPIENTS]
