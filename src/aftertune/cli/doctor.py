"""``doctor``: check devices, data types, versions, disk, ledger and packs, and say what to do about a problem."""

from __future__ import annotations

import shutil
from pathlib import Path

import typer

from aftertune.cli.console import emit
from aftertune.cli.options import JsonFlag


def doctor(as_json: JsonFlag = False) -> None:
    """Check this machine and the ledger. Exit with 5 if the ledger is broken."""
    rows = [*_machine(), *_versions(), *_packs(), *_ledger()]
    if as_json:
        emit({"findings": [dict(zip(("area", "name", "value", "problem", "remedy"), r, strict=True)) for r in rows]})
    else:
        _table(rows)
    if any(area == "ledger" and problem for area, _, _, problem, _ in rows):
        raise typer.Exit(5)


DoctorLine = tuple[str, str, str, str, str]


def _machine() -> list[DoctorLine]:
    from aftertune.engine.cpu import availability
    from aftertune.engine.devices import choose_device, dtypes_of, free_memory, probe
    from aftertune.sources.hub import reachable

    facts = probe()
    chosen = choose_device("auto", facts)
    rows = [("machine", "device", f"{chosen} of {', '.join(facts.devices)}", "", ""),
            ("machine", "dtypes", f"{', '.join(dtypes_of(chosen, facts))} (auto takes the first)", "", ""),
            ("machine", "memory", f"{free_memory(chosen) / 2**30:.1f} GiB free on {chosen}", "", "")]
    if chosen == "cpu":
        rows.append(_kernels(availability.why_unavailable(), amx=availability.amx_available()))
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    low = free < 5
    rows.append(("machine", "disk", f"{free:.1f} GiB free", "little room" if low else "",
                 "free some space: a tuning and a model copy take gigabytes" if low else ""))
    rows.append(("machine", "hub", "reached" if reachable() else "not reached; packs and local files still work",
                 "", ""))
    return rows


def _kernels(reason: str, *, amx: bool) -> DoctorLine:
    """Whether the compiled CPU kernels are used. reason: why not, "" where they are."""
    from aftertune.engine.cpu.availability import SWITCH

    if not reason:
        return ("machine", "CPU kernels", f"used: compiled and tested{', with AMX' if amx else ''}; {SWITCH}=0 "
                "switches them off", "", "")
    off = reason.startswith("switched off")
    return ("machine", "CPU kernels", f"not used: {reason}", "" if off else "evaluation and training are slower",
            f"unset {SWITCH} to use them" if off else "install a C compiler (gcc or clang)")


def _versions() -> list[DoctorLine]:
    from aftertune.provenance import capture

    return [("version", name, text, "", "") for name, text in capture().versions.items()]


def _packs() -> list[DoctorLine]:
    from aftertune.sources import packs

    return [("pack", p.distribution, p.version or "not installed", "" if p.path else "offline runs lack it",
             "" if p.path else p.install) for p in packs()]


def _ledger() -> list[DoctorLine]:
    from aftertune.errors import AftertuneError
    from aftertune.ledger import Ledger, locate

    try:
        path = locate(None)
        if not Path(str(path)).exists():
            return [("ledger", "path", f"{path}: not there yet; the first run makes it", "", "")]
        with Ledger(create=False) as ledger:
            return [("ledger", f.name, f.value, f.problem, f.remedy) for f in ledger.check()]
    except AftertuneError as error:
        return [("ledger", "path", "", str(error), "")]


def _table(rows: list[DoctorLine]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for head in ("area", "what", "found", "problem", "remedy"):
        table.add_column(head, overflow="fold")
    for area, name, value, problem, remedy in rows:
        table.add_row(area, name, Text(value), Text(problem, style="bold red"), Text(remedy))
    Console().print(table)
