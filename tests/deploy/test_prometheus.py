"""What Prometheus is told, as its own tool reads it."""

from __future__ import annotations

import re
from collections import defaultdict

from tests.prometheus import FOLDER, promtool
from tests.runbook import alerts


def test_promtool_understands_the_configuration_and_the_rules() -> None:
    promtool("check", "config", "--syntax-only", "prometheus.yml")
    promtool("check", "rules", "rules.yml")


def test_every_alert_fires_when_it_should_and_only_then() -> None:
    assert "SUCCESS" in promtool("test", "rules", "tests.yml")


def test_no_alert_is_left_out_of_its_tests() -> None:
    looks = re.findall(
        r'ALERTS\{alertname="(\w+)",alertstate="firing"\}\n +eval_time: \w+\n +exp_samples:(.*)\n',
        (FOLDER / "tests.yml").read_text(),
    )
    outcomes = defaultdict(set)
    for name, samples in looks:
        outcomes[name].add(samples.strip() != "[]")
    assert outcomes == {alert.name: {True, False} for alert in alerts()}


def test_alerts_say_what_is_the_matter_in_the_way_of_prometheus() -> None:
    for alert in alerts():
        assert re.fullmatch(r"Waybill([A-Z][a-z]+)+", alert.name)
        assert alert.severity in ("critical", "warning")
