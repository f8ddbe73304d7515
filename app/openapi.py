"""Writes openapi/openapi.json, or with --check tells whether the one there is still true."""

import json
import os
import sys
from pathlib import Path

from app.core.config import Settings
from app.main import create_app

_PATH = Path(__file__).resolve().parent.parent / "openapi" / "openapi.json"


def main() -> int:
    """0 when written or true; 1 when stale."""
    os.environ.pop("PUBLIC_URL", None)
    settings = Settings(POSTROAD_MODE="production", secret_key="x" * 32)
    document = json.dumps(create_app(settings).openapi(), indent=2, ensure_ascii=False) + "\n"
    if "--check" not in sys.argv:
        _PATH.write_text(document)
        return 0
    if not _PATH.exists() or _PATH.read_text() != document:
        sys.stderr.write("openapi/openapi.json is stale: run `make openapi` and commit it.\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
