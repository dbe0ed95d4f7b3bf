"""What RUNBOOK.md, the alerts and the dashboard name exists."""

from __future__ import annotations

import json
import re
from typing import Any

import httpx
import pytest
from jsonschema import Draft202012Validator
from prometheus_client.parser import text_string_to_metric_families

from api.app import create_app
from domain.assignment.states import CourierAction
from local.drills.__main__ import DRILLS
from settings import Settings
from tests import runbook
from tests.houses import TOKENS, House

TEXT = runbook.RUNBOOK.read_text()
DASHBOARD = runbook.PROJECT / "deploy" / "grafana" / "dashboards" / "waybill.json"


@pytest.fixture(name="openapi", scope="module")
def _openapi() -> dict[str, Any]:
    """The app's description, what varies in a path written `{}`."""
    settings = Settings(client_token=TOKENS["client"], courier_token=TOKENS["courier"], admin_token=TOKENS["admin"])
    described = create_app(settings).openapi()
    paths = {re.sub(r"\{\w+\}", "{}", path): methods for path, methods in described["paths"].items()}
    paths |= {f"/api/deliveries/{{}}/{action}": paths["/api/deliveries/{}/{}"] for action in CourierAction}
    return {**described, "paths": paths}


async def test_every_metric_that_is_watched_is_served(quiet_house: House) -> None:
    await quiet_house.webhook("shop", "http://127.0.0.1:9/")
    answer = await quiet_house.call("GET", "/api/admin/ops/metrics")
    served = {sample.name for family in text_string_to_metric_families(answer.text) for sample in family.samples}
    rules = runbook.RULES.read_text()
    recorded = set(re.findall(r"- record: (\S+)", rules))
    shown = runbook.metric_names(" ".join(_queries()))
    # tests/local/test_drills.py asks a worker for these.
    workers = {name for name in shown | runbook.metric_names(rules) if name.startswith("temporal_")}
    assert runbook.metric_names(TEXT) - workers - served == set()
    assert runbook.metric_names(rules) - workers - recorded - served == set()
    assert shown - workers - recorded - served == set()
    recorded_from = runbook.metric_names(" ".join(re.findall(r"- record: .*\n +expr: (.*)", rules)))
    assert served - shown - recorded_from == set(), "the dashboard leaves something out"


def _queries() -> list[str]:
    dashboard = json.loads(DASHBOARD.read_text())
    panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    assert all(panel["targets"] for panel in panels)
    return [target["expr"] for panel in panels for target in panel["targets"]]


def test_every_panel_has_a_source_that_is_provisioned() -> None:
    sources = (runbook.PROJECT / "deploy/grafana/provisioning/datasources/prometheus.yml").read_text()
    assert set(re.findall(r'"datasource": \{\s*"type": "prometheus",\s*"uid": "(\w+)"', DASHBOARD.read_text())) == set(
        re.findall(r"uid: (\w+)", sources)
    )


def test_every_call_in_the_runbook_is_one_of_the_api(openapi: dict[str, Any]) -> None:
    paths = openapi["paths"]
    named = runbook.calls()
    assert len(named) > 30
    unknown = {(call.method, call.path) for call in named if call.method.lower() not in paths.get(call.path, {})}
    assert unknown == set()


def test_every_body_in_the_runbook_is_one_that_the_api_takes(openapi: dict[str, Any]) -> None:
    bodies = [call for call in runbook.calls() if call.body is not None]
    assert bodies
    for call in bodies:
        content = openapi["paths"][call.path][call.method.lower()]["requestBody"]["content"]
        schema = {**content["application/json"]["schema"], "components": openapi["components"]}
        Draft202012Validator(schema).validate(json.loads(call.body or ""))


async def test_every_page_of_the_console_in_the_runbook_exists(quiet_house: House) -> None:
    pages = set(re.findall(r"`(/console[a-z/]*)`", TEXT))
    async with httpx.AsyncClient(base_url=quiet_house.http.base_url) as browser:
        entered = await browser.post("/console/login", data={"token": TOKENS["admin"]})
        assert entered.status_code == 303
        answers = {page: (await browser.get(page)).status_code for page in pages}
    assert answers == dict.fromkeys(pages, 200)


def test_every_alert_has_its_section_and_the_table_knows_it() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| \[(.*?)\]\(#(.*?)\) \|", TEXT, re.MULTILINE)
    assert [(alert.name, alert.severity, alert.anchor) for alert in runbook.alerts()] == [
        (name, severity, anchor) for name, severity, _, anchor in rows
    ]
    for _, _, title, anchor in rows:
        assert runbook.slug(title) == anchor
        assert runbook.section(title)
    assert set(re.findall(r"`(Waybill[A-Z]\w+)`", TEXT)) == {alert.name for alert in runbook.alerts()}


def test_every_section_says_what_to_look_at_how_to_mend_and_when_it_is_over() -> None:
    titles = {title for _, title in re.findall(r"^\| `(\w+)` \| \w+ \| \[(.*?)\]", TEXT, re.MULTILINE)}
    for title in titles:
        section = runbook.section(title)
        missing = [word for word in ("Metric", "Look", "Mend", "Over when") if f"**{word}**" not in section]
        assert missing == [], title
    assert "restart" not in TEXT.lower()


def test_links_lead_somewhere() -> None:
    for page, anchor in re.findall(r"\]\(([\w.]*)#(.*?)\)", TEXT.replace("\n", "")):
        assert anchor in runbook.anchors(runbook.PROJECT / (page or "RUNBOOK.md")), anchor


def test_every_drill_leads_to_its_alerts_section() -> None:
    by_name = {alert.name: alert for alert in runbook.alerts()}
    for name, drill in DRILLS.items():
        assert by_name[drill.alert].anchor == runbook.slug(drill.section)
        text = runbook.section(drill.section)
        assert drill.metric in text
        assert f"**Drill**\n`{name}`" in text or f"**Drill** `{name}`" in text
    assert "|".join(DRILLS) in (runbook.PROJECT / "Makefile").read_text()
