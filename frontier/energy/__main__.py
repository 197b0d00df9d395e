"""`python -m frontier.energy`: what can be read on this machine, what it draws, and why each other source cannot be read."""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import Any

from frontier.energy.choice import DEVICE_SOURCES, NODE_SOURCES, choose, survey
from frontier.energy.meter import Meter
from frontier.energy.slurm import job_energy
from frontier.energy.source import Access, Unavailable, total
from frontier.errors import EXIT_OK, UserError

NOT_MEASURED = "not measured"


def parser() -> argparse.ArgumentParser:
    out = argparse.ArgumentParser(prog="python -m frontier.energy", description=__doc__)
    out.add_argument(
        "--device", choices=("cpu", "cuda"), help="what a run would train on (default: devices where any can be read)"
    )
    out.add_argument(
        "--watch", type=float, metavar="SECONDS", help="a line of power every so many seconds, until interrupted"
    )
    out.add_argument("--job", metavar="ID", help="energy of a finished Slurm job, from sacct, instead")
    out.add_argument("--json", action="store_true", help="for machines")
    return out


def findings(device_type: str | None, seconds: float, access: Access) -> dict[str, Any]:
    """All sources, the one that a run would use, its counters and the mean power over `seconds`; None is "not measured"."""
    every = survey(access=access)
    usable = {finding.key for finding in every if finding.source is not None}
    if device_type is None:
        device_type = "cuda" if usable & {*NODE_SOURCES, *DEVICE_SOURCES} else "cpu"
    source, why = choose(device_type, access=access)
    found: dict[str, Any] = {
        "device": device_type,
        "source": source.name if source else None,
        "covers": source.covers if source else None,
        "why_not": None if source else why,
        "power_w": None,
        "parts_w": {},
        "sensor_w": None,
        "joules": {},
        "read_ms": None,
        "threaded": None,
        "sources": {
            f.key: {"usable": f.source is not None, "name": f.source.name if f.source else None, "reason": f.reason}
            for f in every
        },
    }
    if source is not None:
        meter = Meter(source)
        time.sleep(seconds)
        lap = meter.lap()
        found |= {
            "joules": source.read() if not meter.threaded else {},
            "read_ms": 1e3 * meter.read_s,
            "threaded": meter.threaded,
        }
        try:
            found["sensor_w"] = source.sensor_w()
        except Exception:  # a check beside the reading, of a vendor's library
            pass
        if lap is not None:
            found |= {"power_w": lap.watts, "parts_w": {name: value / lap.seconds for name, value in lap.parts.items()}}
        meter.close()
    return found


def lines(found: dict[str, Any]) -> list[str]:
    """For a terminal."""
    out = []
    if found["source"]:
        power = NOT_MEASURED if found["power_w"] is None else f"{found['power_w']:.1f} W"
        parts = ", ".join(f"{name} {watts:.1f}" for name, watts in found["parts_w"].items())
        out += [
            f"source  {found['source']} (a run on {found['device']})",
            f"covers  {found['covers']}",
            f"power   {power}" + (f" ({parts})" if parts else ""),
            f"a read  {found['read_ms']:.2f} ms, {'in a thread beside the steps' if found['threaded'] else 'in the step'}",
        ]
        if found["sensor_w"] is not None:
            out.append(
                f"sensor  {found['sensor_w']:.1f} W now, by the source's own power sensor: far from the line above, the counters are wrong"
            )
        if found["joules"]:
            out.append(f"counter {total(found['joules']):.0f} J")
    else:
        out.append(f"source  none for a run on {found['device']}: energy will be {NOT_MEASURED!r}")
    width = max(map(len, found["sources"]))
    out += ["", "sources in the order of preference:"]
    out += [
        f"  {key:<{width}}  {s['name'] if s['usable'] else 'no: ' + s['reason']}" for key, s in found["sources"].items()
    ]
    return out


def watch(device_type: str, every_s: float, as_json: bool, access: Access) -> int:
    """A line every `every_s` seconds. Raises UserError where nothing can be read."""
    source, why = choose(device_type, access=access)
    if source is None:
        raise UserError(f"nothing to watch: {why}")
    meter = Meter(source)
    try:
        while True:
            time.sleep(every_s)
            lap = meter.lap()
            if as_json:
                row = {
                    "time": time.time(),
                    "power_w": lap.watts if lap else None,
                    "energy_j": lap.joules if lap else None,
                }
                print(json.dumps(row), flush=True)
            else:
                print(
                    f"{time.strftime('%H:%M:%S')}  {f'{lap.watts:10.1f} W {lap.joules:12.1f} J' if lap else 'no new reading'}",
                    flush=True,
                )
            for note in meter.notes():
                print(note, file=sys.stderr)
    except KeyboardInterrupt:
        return EXIT_OK
    finally:
        meter.close()


def show_job(job: str, as_json: bool, access: Access) -> int:
    try:
        record = job_energy(job, access)
    except Unavailable as error:
        raise UserError(f"--job {job}: {error}") from None
    if as_json:
        print(
            json.dumps(
                {"job": record.job, "energy_j": record.joules, "seconds": record.seconds, "steps_j": record.steps}
            )
        )
        return EXIT_OK
    for name, joules in (
        (record.job, record.joules),
        *((f"{record.job}.{step}", used) for step, used in record.steps.items()),
    ):
        print(f"{name:<24}{NOT_MEASURED if joules is None else f'{joules:,.0f} J = {joules / 3.6e6:.3f} kWh'}")
    return EXIT_OK


def main(argv: list[str] | None = None, access: Access | None = None) -> int:
    options = parser().parse_args(argv)
    access = access or Access()
    if options.watch is not None and options.watch <= 0:
        raise UserError(f"--watch {options.watch}: give a number of seconds above 0")
    if options.job:
        return show_job(options.job, options.json, access)
    found = findings(options.device, 0.0 if options.watch else 1.0, access)
    if options.watch:
        return watch(found["device"], options.watch, options.json, access)
    print(json.dumps(found, indent=1) if options.json else "\n".join(lines(found)))
    return EXIT_OK


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        print(f"frontier.energy: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
