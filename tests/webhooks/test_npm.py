"""What we sign is verified by the npm libraries, also while a secret is rotated. Needs node, npm and their registry."""

import asyncio
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from app.webhooks.courier import Courier
from tests.webhooks.house import Tenant
from tests.webhooks.receiver import Received, Receiver

PACKAGES = ("standardwebhooks@1.1.1", "svix@2.5.0")
LIBRARIES = ("standardwebhooks", "svix")
SCRIPT = Path(__file__).with_name("verify.mjs")


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the script and the libraries."""
    if not shutil.which("node") or not shutil.which("npm"):
        pytest.skip("node and npm are not installed")
    directory = tmp_path_factory.mktemp("node")
    command = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--fetch-retries=0", *PACKAGES]
    installed = subprocess.run(command, check=False, cwd=directory, capture_output=True, text=True, timeout=120)
    if installed.returncode:
        pytest.skip(f"the npm packages cannot be installed: {installed.stderr[-300:]}")
    shutil.copy(SCRIPT, directory)
    return directory


async def judged(node: Path, cases: list[dict[str, Any]]) -> list[bool]:
    """What the libraries say of these cases."""
    process = await asyncio.create_subprocess_exec(
        *("node", SCRIPT.name), cwd=node, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate(json.dumps(cases).encode())
    assert process.returncode == 0
    found: list[bool] = json.loads(output)
    return found


def case(library: str, secret: str, received: Received, **changes: Any) -> dict[str, Any]:
    named = {"library": library, "secret": secret, "body": received.body.decode(), "headers": received.headers}
    return named | changes


async def test_they_verify(node: Path, tenant: Tenant, courier: Courier, receiver: Receiver) -> None:
    hook = await tenant.hook(receiver.url("/"), "message.clicked")
    await tenant.tell(1, "clicked", url="https://shop.example/ünï/😀", user_agent="Mozilla/5.0 (X11; “Linux”)")
    (single,) = await receiver.reach(1)
    rotated = (await tenant.done("POST", f"/{hook.id}/rotate-secret", {"overlap_seconds": 60}))["secret"]
    await tenant.tell(1, "clicked", url="https://shop.example/")
    both = (await receiver.reach(2))[1]
    assert len(both.headers["webhook-signature"].split(" ")) == 2
    cases, expected = [], []
    for library in LIBRARIES:
        cases += [
            case(library, hook.secret, single),
            case(library, hook.secret, both),
            case(library, rotated, both),
            case(library, rotated, single),
            case(library, hook.secret, single, body=single.body.decode() + " "),
            case(library, hook.secret, single, headers=single.headers | {"webhook-id": "another"}),
            case(library, rotated, both, headers=both.headers | {"webhook-timestamp": "1700000000"}),
        ]
        expected += [True, True, True, False, False, False, False]
    assert await judged(node, cases) == expected
