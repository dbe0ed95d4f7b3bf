"""Logs: readable in a terminal, one JSON object a line elsewhere, with the ids of what they speak of."""

from __future__ import annotations

import logging
import sys
from typing import Any

import structlog
from structlog.typing import EventDict, Processor

_TEMPORAL_CONTEXT = ("temporal_activity", "temporal_workflow")
_IDS = ("workflow_id", "run_id", "activity_type", "attempt")


def configure_logs(process: str) -> None:
    """Send every logger of the process, the libraries' included, to standard error; `process` is in every line."""

    def name_process(_: Any, __: str, event: EventDict) -> EventDict:
        event["process"] = process
        return event

    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(allow=_TEMPORAL_CONTEXT),
        _flatten_temporal_context,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        name_process,
    ]
    in_terminal = sys.stderr.isatty()
    renderer: list[Processor] = (
        [structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)]
        if in_terminal
        else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(default=str)]
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderer],
        )
    )
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    for noisy in ("uvicorn.access", "alembic", "httpx"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )


def _flatten_temporal_context(_: Any, __: str, event: EventDict) -> EventDict:
    """Of the SDK's context keep the ids."""
    for key in _TEMPORAL_CONTEXT:
        context = event.pop(key, None)
        if isinstance(context, dict):
            event.update({name: context[name] for name in _IDS if name in context})
    return event
