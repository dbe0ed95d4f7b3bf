"""`python -m bench.dispatch FOLDER`: the policy on instances, checked; `--solver`: the solver beside bare scipy."""

from __future__ import annotations

import argparse
import csv
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from bench.dispatch.checker import Trip, check, deliverable
from bench.dispatch.instances import Instance, read_instances
from bench.dispatch.simulator import Simulator
from bench.dispatch.solver import measure

_SIZES = ((2_000, 1_000), (10_000, 5_000))


@dataclass(frozen=True)
class Score:
    """What a day came to. Means in minutes."""

    instance: Instance
    delivered: int
    impossible: int
    """Orders that nobody could have brought within the maximum."""
    click_to_door: float
    ready_to_pickup: float
    longest: float
    bundles: int
    broken: list[str]
    seconds: float


def score(instance: Instance) -> Score:
    """Run a day and check it."""
    started = time.perf_counter()
    trips = Simulator(instance).run()
    seconds = time.perf_counter() - started
    clicks, pickups = _waits(instance, trips)
    return Score(
        instance=instance,
        delivered=len(clicks),
        impossible=sum(not deliverable(instance, each) for each in instance.orders),
        click_to_door=_mean(clicks),
        ready_to_pickup=_mean(pickups),
        longest=max(clicks, default=0.0),
        bundles=sum(len(trip.orders) > 1 for trip in trips),
        broken=check(instance, trips),
        seconds=seconds,
    )


def _waits(instance: Instance, trips: Iterable[Trip]) -> tuple[list[float], list[float]]:
    orders = {each.order_id: each for each in instance.orders}
    done = [(orders[each.order_id], each.door, trip.pickup) for trip in trips for each in trip.orders]
    return [door - order.placed for order, door, _ in done], [pickup - order.ready for order, _, pickup in done]


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _reference(folder: Path, named: Path | None) -> Mapping[str, Mapping[str, str]]:
    """Published results by instance: the file named, or `reference.csv` next to the folder, or none."""
    path = named or folder.resolve().parent / "reference.csv"
    if named is None and not path.is_file():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        return {row["instance"]: row for row in csv.DictReader(file)}


def run_instances(folder: Path, named: Path | None) -> bool:
    """Print a line for each instance and the means of each group; answer whether no rule was broken."""
    instances, reference = read_instances(folder), _reference(folder, named)
    if not instances:
        print(f"no instance in {folder}", file=sys.stderr)
        return False
    print("delivered first, then click-to-door (minutes, mean); published: Reyes et al. 2018, online and clairvoyant")
    print(
        f"{'instance':<18}{'delivered':>12}{'not possible':>14}{'click-to-door':>15}{'online':>9}{'clairvoyant':>13}",
        end="",
    )
    print(f"{'ready-to-pickup':>17}{'longest':>9}{'bundles':>9}{'rules broken':>14}{'seconds':>9}")
    groups: dict[str, list[Score]] = defaultdict(list)
    for instance in instances:
        done = score(instance)
        groups[instance.name.split("t")[0]].append(done)
        published = reference.get(instance.name, {})
        print(
            f"{instance.name:<18}{f'{done.delivered}/{len(instance.orders)}':>12}{done.impossible:>14}"
            f"{done.click_to_door:>15.2f}{published.get('reyes_online_ctd') or '-':>9}"
            f"{published.get('clairvoyant_ctd_bundle2') or '-':>13}{done.ready_to_pickup:>17.2f}{done.longest:>9.0f}"
            f"{done.bundles:>9}{len(done.broken):>14}{done.seconds:>9.1f}",
            flush=True,
        )
        for breach in done.broken:
            print(f"  {breach}")
    for name, scores in groups.items():
        _print_group(name, scores, reference)
    return not any(each.broken for scores in groups.values() for each in scores)


def _print_group(name: str, scores: list[Score], reference: Mapping[str, Mapping[str, str]]) -> None:
    orders = sum(len(each.instance.orders) for each in scores)
    line = f"{name}: {len(scores)} instances, {sum(each.delivered for each in scores)}/{orders} delivered"
    line += f", {sum(each.impossible for each in scores)} not possible"
    line += f", click-to-door {_mean([each.click_to_door for each in scores]):.2f}"
    for title, column in (("published online", "reyes_online_ctd"), ("clairvoyant", "clairvoyant_ctd_bundle2")):
        values = [reference.get(each.instance.name, {}).get(column) for each in scores]
        if all(values):
            line += f", {title} {_mean([float(value) for value in values if value]):.2f}"
    print(line)


def run_solver() -> bool:
    """Print the solver's times and certificates; answer whether every gap is 0."""
    gaps = []
    for deliveries, couriers in _SIZES:
        run = measure(deliveries, couriers)
        gaps.append(run.gap_seconds)
        print(
            f"{run.name}: solved in {run.solved:.3f} s, bare scipy {run.bare:.3f} s ({run.solved / run.bare:.2f} x);"
            f" costs {run.table:.3f} s; certificate {run.certified:.3f} s, gap {run.gap_seconds:g} s"
        )
    return not any(gaps)


def main() -> int:
    """Run as the command line says."""
    parser = argparse.ArgumentParser(prog="python -m bench.dispatch", description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, help="an instance, or a folder of instances")
    parser.add_argument("--reference", type=Path, help="published results (default: reference.csv next to the folder)")
    parser.add_argument("--solver", action="store_true", help="measure the solver")
    asked = parser.parse_args()
    if asked.folder is None and not asked.solver:
        parser.error("a folder of instances, or --solver")
    good = run_solver() if asked.solver else True
    if asked.folder is not None:
        good = run_instances(asked.folder, asked.reference) and good
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
