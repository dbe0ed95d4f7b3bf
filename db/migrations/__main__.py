"""`python -m db.migrations`: bring the database of WAYBILL_DATABASE_OWNER_URL up to date. Exit code 1: it could not."""

from __future__ import annotations

import os
import sys
from urllib.parse import unquote, urlsplit

from db.engine import DATABASE_ERRORS, WrongInstallation
from db.migrations import migrate
from settings import Settings, SettingsError


def main() -> None:
    """Migrate, or say in one sentence why not."""
    try:
        settings = Settings.from_env(os.environ)
        if settings.database_owner_url is None:
            raise SettingsError("WAYBILL_DATABASE_URL is not set: it says which database to migrate.")
        owner, app = (_role(url) for url in (settings.database_owner_url, settings.database_url))
        migrate(settings.database_owner_url, settings.installation, app if app != owner else None)
    except (SettingsError, WrongInstallation) as error:
        sys.exit(str(error))
    except DATABASE_ERRORS as error:
        sys.exit(f"The database cannot be migrated: {error}")


def _role(url: str | None) -> str | None:
    name = urlsplit(url).username if url else None
    return unquote(name) if name else None


if __name__ == "__main__":
    main()
