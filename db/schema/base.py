"""What every table is made with."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Column, DateTime, MetaData, text

metadata = MetaData(
    naming_convention={
        "pk": "%(table_name)s_pkey",
        "fk": "%(table_name)s_%(column_0_name)s_fkey",
        "uq": "%(table_name)s_%(column_0_N_name)s_key",
        "ck": "%(table_name)s_%(constraint_name)s_check",
    }
)

_now = text("now()")


def time(name: str, *, default: bool = False, nullable: bool = True) -> Column[Any]:
    """A `timestamptz` column; `default`: the moment of the insert."""
    return Column(name, DateTime(timezone=True), nullable=nullable, server_default=_now if default else None)
