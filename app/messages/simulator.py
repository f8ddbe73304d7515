"""The simulator: addresses whose mail never leaves, and how their copies end.

What a test key sends and what is sent by simulate-delivery is simulated whoever its recipients are. Recipients at
DOMAIN are simulated for everybody else, each copy by itself: its neighbours in the same mail are sent.
"""

from typing import Final

from app.mail.address import Address
from app.messages.status import Status

# Reserved (RFC 6761 section 6.2): nobody can ever receive there.
DOMAIN: Final = "simulator.postroad.test"
_MAILBOXES: Final = {
    status.value: status
    for status in (
        Status.DELIVERED,
        Status.DEFERRED,
        Status.SOFT_BOUNCED,
        Status.HARD_BOUNCED,
        Status.COMPLAINED,
        Status.SUPPRESSED,
    )
}


def outcome_of(address: Address) -> Status | None:
    """How a copy to this address is to end: what its local part says, `+label` aside, and `delivered` for any other.

    None: the address is not at the simulator.
    """
    if address.domain != DOMAIN:
        return None
    return _MAILBOXES.get(address.local.partition("+")[0].lower(), Status.DELIVERED)
