"""Implements ``doctor``, which checks devices, data types, versions, disk, packs and the ledger.

    aftertune doctor            a table of what was found, with a remedy for each problem
    aftertune doctor --json     the same as JSON
"""

from __future__ import annotations

import shutil
from pathlib import Path

import typer

from aftertune.cli.console import emit
from aftertune.cli.options import JsonFlag
from aftertune.cli.streams import rich_console


def doctor(as_json: JsonFlag = False) -> None:
    """Check this machine and the ledger. Exit with 5 if the ledger is broken."""
    rows = [*_machine(), *_versions(), *_packs(), *_ledger()]
    if as_json:
        emit({"findings": [dict(zip(("area", "name", "value", "problem", "remedy"), r, strict=True)) for r in rows]})
    else:
        _show(rows)
    if any(area == "ledger" and problem for area, _, _, problem, _ in rows):
        raise typer.Exit(5)


#: (area, name, value, problem, remedy); problem and remedy are "" if all is well.
DoctorLine = tuple[str, str, str, str, str]


def _machine() -> list[DoctorLine]:
    from aftertune.engine.cpu import availability
    from aftertune.engine.devices import choose_device, free_memory, probe, supported_dtypes
    from aftertune.sources.hub import reachable

    facts = probe()
    device = choose_device("auto", facts)
    rows = [("machine", "device", f"{device} (available: {', '.join(facts.devices)})", "", ""),
            ("machine", "dtypes", f"{', '.join(supported_dtypes(device, facts))} (auto takes the first)", "", ""),
            ("machine", "memory", f"{free_memory(device) / 2**30:.1f} GiB free on {device}", "", "")]
    if device == "cpu":
        rows.append(_kernels(availability.why_unavailable(), amx=availability.amx_available()))
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    low = free < 5
    rows.append(("machine", "disk", f"{free:.1f} GiB free", "low disk space" if low else "",
                 "free at least 5 GiB: a fine-tune and a copy of a model need several" if low else ""))
    rows.append(("machine", "hub", "reachable" if reachable() else "not reachable; packs and local files still work",
                 "", ""))
    return rows


def _kernels(reason: str, *, amx: bool) -> DoctorLine:
    """Whether the compiled CPU kernels are used. reason: why they are not, "" if they are."""
    from aftertune.engine.cpu.availability import SWITCH

    if not reason:
        return ("machine", "CPU kernels", f"used: compiled and tested{', with AMX' if amx else ''}; {SWITCH}=0 "
                "switches them off", "", "")
    switched_off = reason.startswith("switched off")
    return ("machine", "CPU kernels", f"not used: {reason}",
            "" if switched_off else "evaluation and training are slower",
            f"unset {SWITCH} to use them" if switched_off else "install a C compiler (gcc or clang)")


def _versions() -> list[DoctorLine]:
    from aftertune.provenance import capture

    return [("version", name, text, "", "") for name, text in capture().versions.items()]


def _packs() -> list[DoctorLine]:
    from aftertune.sources import all_packs

    return [("pack", p.distribution, p.version or "not installed", "" if p.path else "not available offline",
             "" if p.path else p.install) for p in all_packs()]


def _ledger() -> list[DoctorLine]:
    from aftertune.errors import AftertuneError
    from aftertune.ledger import Ledger, locate

    try:
        place = locate(None)
        if isinstance(place, Path) and not place.exists():
            return [("ledger", "path", f"{place}: does not exist yet; the first run creates it", "", "")]
        with Ledger(create=False) as ledger:
            return [("ledger", f.name, f.value, f.problem, f.remedy) for f in ledger.check()]
    except AftertuneError as error:
        return [("ledger", "path", "", str(error), "")]


def _show(rows: list[DoctorLine]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    wrong = any(problem or remedy for *_, problem, remedy in rows)
    for heading in ("area", "what", "value", *(("problem", "remedy") if wrong else ())):
        table.add_column(heading, overflow="fold")
    for area, name, value, problem, remedy in rows:
        table.add_row(area, name, Text(value), *((Text(problem, style="bold red"), Text(remedy)) if wrong else ()))
    rich_console().print(table)
