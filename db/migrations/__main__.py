"""`python -m db.migrations`: bring the database of WAYBILL_DATABASE_OWNER_URL up to date. Exit code 1: it could not."""

from __future__ import annotations

import os
import sys

from db.engine import DATABASE_ERRORS, WrongInstallation
from db.migrations import migrate


def main() -> None:
    """Migrate, or say in one sentence why not."""
    url = os.environ.get("WAYBILL_DATABASE_OWNER_URL") or os.environ.get("WAYBILL_DATABASE_URL")
    if not url:
        sys.exit("WAYBILL_DATABASE_URL is not set: it says which database to migrate.")
    try:
        migrate(url, os.environ.get("WAYBILL_INSTALLATION") or "waybill")
    except WrongInstallation as error:
        sys.exit(str(error))
    except DATABASE_ERRORS as error:
        sys.exit(f"The database cannot be migrated: {error}")


if __name__ == "__main__":
    main()
