"""How the console's answers are made: pages, the live parts of pages, and what is said after an action."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from pydantic import BaseModel, ValidationError

from api.problems import Problem, invalid

LOGIN = "/console/login"
STATIC = "/console/static/"
THEME_COOKIE = "waybill-theme"
_TEMPLATES = Path(__file__).parent / "templates"
_LIVE = "live"
"""The block of a page that is asked for again and again while the page is open."""

Form = TypeVar("Form", bound=BaseModel)
Choice = TypeVar("Choice", bound=StrEnum)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"clock": _clock, "count": _count, "pretty": _pretty, "words": _words, "seconds": duration}
    environment.filters |= {"number_of": number_of, "took": _took}
    # Not imported by the pages: a live part is rendered without what stands around it.
    environment.globals["ui"] = environment.get_template("ui.html").module
    return environment


# --- answers


def is_htmx(request: Request) -> bool:
    """Whether a part of a page asks, not a person's navigation."""
    return "hx-request" in request.headers


def page(request: Request, template: str, http_status: int = 200, **context: Any) -> Response:
    """A page; where the page itself asks for news, only its live part."""
    session = request.state.session
    theme = request.cookies.get(THEME_COOKIE)
    context |= {
        "here": request.url.path + (f"?{request.url.query}" if request.url.query else ""),
        "csrf_token": session.csrf_token if session is not None else None,
        "installation": request.app.state.installation,
        "theme": theme if theme in ("dark", "light") else None,
    }
    found = _environment().get_template(template)
    if is_htmx(request) and request.method == "GET" and _LIVE in found.blocks:
        text = "".join(found.blocks[_LIVE](found.new_context(context)))
    else:
        text = found.render(context)
    return HTMLResponse(text, http_status)


def said(request: Request, sentence: str, back: str) -> Response:
    """What an action did. The page it was done on shows the sentence and looks again; `back` leads to that page."""
    if not is_htmx(request):
        return page(request, "message.html", title="Done", sentence=sentence, details=[], good=True, back=back)
    answer = page(request, "said.html", sentence=sentence, details=[], good=True)
    answer.headers["HX-Trigger"] = "changed"
    return answer


def go(request: Request, address: str) -> Response:
    """On to the page of what an action began."""
    if is_htmx(request):
        return Response(status_code=204, headers={"HX-Redirect": address})
    return RedirectResponse(address, 303)


def show_problem(request: Request, problem: Problem) -> Response:
    """A problem for people: a page, or a sentence where an action failed."""
    details = [problem.detail] if problem.detail else []
    details += [f"{_words(name)}: {_plain(value)}" for name, value in problem.members.items() if name != "errors"]
    context = {"sentence": problem.title, "details": details, "good": False}
    if is_htmx(request):
        answer = page(request, "said.html", problem.status, **context)
    else:
        title = f"{problem.status} {problem.slug.replace('-', ' ')}"
        answer = page(request, "message.html", problem.status, title=title, back="/console", **context)
    answer.headers.update(problem.headers)
    return answer


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


# --- what a form holds


async def form_fields(request: Request) -> dict[str, str]:
    """What the form says; fields left empty are not said."""
    return {
        name: value
        for name, value in (await request.form()).items()
        if isinstance(value, str) and value.strip() and name != "csrf"
    }


async def form_body(request: Request, model: type[Form]) -> Form:
    """The form as the body that the API's own call takes."""
    return validated(model, await form_fields(request), texts=True)


def validated(model: type[Form], fields: Mapping[str, Any], *, texts: bool = False) -> Form:
    """The body of these fields, or the problem that the API would answer. `texts`: numbers are still written out."""
    try:
        return model.model_validate_strings(fields) if texts else model.model_validate(fields)
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from error


def choice(kind: type[Choice], text: str) -> Choice | None:
    """One of the kind's values, None for nothing chosen."""
    if not text:
        return None
    try:
        return kind(text)
    except ValueError:
        raise invalid("invalid-request", f"There is no {_words(kind.__name__)} of that name.") from None


# --- how values are written


def _clock(text: str | None) -> str:
    """A time of an answer, for people: UTC, the date only where it is another day's."""
    if text is None:
        return "never"
    time = datetime.fromisoformat(text).astimezone(UTC)
    return f"{time:%H:%M:%S}" if time.date() == datetime.now(UTC).date() else f"{time:%Y-%m-%d %H:%M:%S}"


def _count(value: float) -> str:
    return f"{value:,.0f}"


def number_of(value: float, noun: str, plural: str | None = None) -> str:
    """So many of them."""
    return f"{_count(value)} {noun if value == 1 else plural or noun + 's'}"


def duration(value: float | None) -> str:
    """A duration, for people."""
    if value is None:
        return "?"
    if value < 60:
        return f"{value:.0f} s"
    minutes, seconds = divmod(int(value), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {seconds:02} s"


def _took(item: Mapping[str, str]) -> float:
    """The seconds from an item's `startedAt` to its `finishedAt`."""
    return (datetime.fromisoformat(item["finishedAt"]) - datetime.fromisoformat(item["startedAt"])).total_seconds()


def _pretty(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=2)


def _words(name: str) -> str:
    """A name of the API as words: `expectedReservedStock`, `outbox_backlog` and `workflow_missing` alike."""
    spaced = "".join(f" {letter.lower()}" if letter.isupper() else letter for letter in name)
    return spaced.replace("_", " ").strip()
