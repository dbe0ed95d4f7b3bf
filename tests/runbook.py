"""RUNBOOK.md and the alert rules, as tests read them."""

from __future__ import annotations

import re
import shlex
import textwrap
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
RUNBOOK = PROJECT / "RUNBOOK.md"
RULES = PROJECT / "deploy" / "prometheus" / "rules.yml"

_RUN = re.compile(r"<!-- tests/local/test_drills\.py .*?-->\n( *)```sh\n(.*?)\n *```", re.DOTALL)
_BASES = {"$ops": "/api/admin/ops", "$WAYBILL_API_URL": ""}


@dataclass(frozen=True)
class Alert:
    """An alert rule."""

    name: str
    expression: str
    severity: str
    anchor: str


@dataclass(frozen=True)
class Call:
    """A call that the runbook names; what varies in its path is `{}`."""

    method: str
    path: str
    body: str | None = None


def alerts() -> list[Alert]:
    """Every alert of rules.yml, which writes each key on a line of its own."""
    found = []
    for text in RULES.read_text().split("- alert: ")[1:]:
        keys = dict(re.findall(r"^ +(\w+): *(.*)$", text, re.MULTILINE))
        assert keys["summary"], text
        assert keys["description"], text
        page, _, anchor = keys["runbook_url"].partition("#")
        assert page == RUNBOOK.name
        found.append(Alert(text.split("\n", 1)[0], keys["expr"], keys["severity"], anchor))
    return found


def metric_names(text: str) -> set[str]:
    """The names of metrics, and of recorded rules, in a text."""
    return set(re.findall(r"\b(?:ops|temporal|process|waybill)(?:_[a-z_]+|:\w+:\w+)\b(?![/.-])", text))


def slug(title: str) -> str:
    """The anchor of a title, as GitHub makes it."""
    return re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")


def anchors(page: Path) -> set[str]:
    """The anchors of a page's titles."""
    return {slug(title) for title in re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)}


def section(title: str) -> str:
    """The runbook's section of that title."""
    [text] = re.findall(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", RUNBOOK.read_text(), re.DOTALL | re.MULTILINE)
    return str(text)


def lines_of(title: str, containing: str) -> str:
    """The shell lines of a section that a drill's test runs, and that hold this."""
    blocks = [textwrap.dedent(indent + block) for indent, block in _RUN.findall(section(title))]
    [lines] = [block for block in blocks if containing in block]
    return lines


def calls() -> list[Call]:
    """Every call of the API in the runbook: by curl, and by its name."""
    text = RUNBOOK.read_text()
    named = re.findall(r"`(GET|POST|PUT|PATCH|DELETE)\s+(/[^`?]*)`", text)
    found = [Call(method, re.sub(r"\{\w+\}", "{}", path)) for method, path in named]
    by_curl = re.findall(r"^ *(curl .*)$", text.replace("\\\n", " "), re.MULTILINE)
    return found + [_call(shlex.split(line)) for line in by_curl]


def _call(arguments: list[str]) -> Call:
    method, body, url = "GET", None, ""
    given = iter(arguments[1:])
    for argument in given:
        if argument == "-X":
            method = next(given)
        elif argument == "-d":
            body = next(given)
        elif argument == "-H":
            next(given)
        elif not argument.startswith("-"):
            url = argument
    base, slash, rest = url.partition("?")[0].partition("/")
    return Call(method, _BASES[base] + slash + re.sub(r"\$\w+", "{}", rest), body)
