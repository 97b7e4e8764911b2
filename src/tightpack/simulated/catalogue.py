"""Devices by name: the catalogue that comes with the package, and files that add to it or change it."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tightpack.requests.arguments import nearest_hint
from tightpack.simulated.hardware import Arithmetic, Hardware, Interconnect

_NUMBERS = ("memory_gb", "bandwidth_gb_s", "link_gb_s", "link_latency_us", "usd_per_hour")
_TEXTS = ("link", "data_sheet", "price", "note")
_FIELDS = (*_NUMBERS, *_TEXTS, "dense_tflops", "machine", "native_bf16", "tested", "aliases")
_ARITHMETICS: tuple[Arithmetic, ...] = ("bf16", "fp8", "int8")

Entry = Mapping[str, Any]


class Catalogue:
    """Devices by name or alias. Without a file, those of `hardware.yaml`."""

    def __init__(self, entries: Mapping[str, Entry]) -> None:
        """entries: as in `hardware.yaml`. Raises ValueError naming the device and the field at fault."""
        self._entries = {name: dict(entry) for name, entry in entries.items()}
        self._devices = {name: _device(name, entry) for name, entry in self._entries.items()}
        self._aliases: dict[str, str] = {}
        for name, entry in self._entries.items():
            for alias in entry.get("aliases", ()):
                if alias in self._devices or alias in self._aliases:
                    raise ValueError(f"{name}: the alias {alias!r} is taken")
                self._aliases[alias] = name

    @property
    def devices(self) -> Mapping[str, Hardware]:
        return MappingProxyType(self._devices)

    @property
    def names(self) -> tuple[str, ...]:
        """Aliases included."""
        return (*self._devices, *self._aliases)

    def __getitem__(self, name: str) -> Hardware:
        """Raises ValueError with the nearest name."""
        found = self._devices.get(self._aliases.get(name, name))
        if found is None:
            raise ValueError(f"hardware {name!r} is not known; {nearest_hint(name, self.names, 'there are')}")
        return found

    def extended(self, path: Path) -> Catalogue:
        """With the devices of a YAML file: new ones whole, known ones (by name or alias) in the fields given.

        Raises OSError, and ValueError naming file, device and field.
        """
        entries = dict(self._entries)
        for name, changes in _read(path.read_text(encoding="utf-8"), str(path)).items():
            known = self._aliases.get(name, name)
            entries[known] = {**entries.get(known, {}), **changes}
        try:
            return Catalogue(entries)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error


def load_catalogue(path: Path | None = None) -> Catalogue:
    """path: a YAML file of the same form, whose entries come on top."""
    text = files("tightpack.simulated").joinpath("hardware.yaml").read_text(encoding="utf-8")
    own = Catalogue(_read(text, "hardware.yaml"))
    return own if path is None else own.extended(path)


def _read(text: str, name: str) -> dict[str, Entry]:
    import yaml

    try:
        loaded = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{name} is not YAML: {error}") from None
    if not isinstance(loaded, dict) or not all(isinstance(entry, dict) for entry in loaded.values()):
        raise ValueError(f"{name} must map devices to fields: my-gpu: {{memory_gb: 48, ...}}")
    return {str(device): entry for device, entry in loaded.items()}


def _device(name: str, entry: Entry) -> Hardware:
    for field in entry:
        if field not in _FIELDS:
            raise ValueError(f"{name} has no field {field!r}; {nearest_hint(str(field), _FIELDS)}")
    for field in ("memory_gb", "bandwidth_gb_s", "dense_tflops"):
        if field not in entry:
            raise ValueError(f"{name}: {field} is missing")
    numbers = {
        field: _number(name, field, entry[field]) for field in _NUMBERS if entry.get(field) is not None
    }
    rates = entry["dense_tflops"]
    if not isinstance(rates, dict) or not set(rates) <= set(_ARITHMETICS):
        raise ValueError(
            f"{name}: dense_tflops maps some of {', '.join(_ARITHMETICS)} to a rate, got {rates!r}"
        )
    machine = entry.get("machine", 8)
    if isinstance(machine, bool) or not isinstance(machine, int):
        raise ValueError(f"{name}: machine must be a whole number of devices, got {machine!r}")
    link = None
    if "link_gb_s" in numbers:
        link = Interconnect(
            name=str(entry.get("link", "link")),
            bandwidth=numbers["link_gb_s"] * 1e9,
            latency_s=numbers.get("link_latency_us", 20.0) * 1e-6,
        )
    return Hardware(
        name=name,
        memory_bytes=numbers["memory_gb"] * 1e9,
        bandwidth=numbers["bandwidth_gb_s"] * 1e9,
        rates={one: _number(name, one, rates[one]) * 1e12 for one in _ARITHMETICS if one in rates},
        interconnect=link,
        machine=machine,
        native_bf16=bool(entry.get("native_bf16", True)),
        tested=bool(entry.get("tested", True)),
        usd_per_hour=numbers.get("usd_per_hour"),
        data_sheet=str(entry.get("data_sheet", "")),
        price=str(entry.get("price", "")),
        note=str(entry.get("note", "")),
    )


def _number(name: str, field: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{name}: {field} must be a number, got {value!r}")
    return float(value)
