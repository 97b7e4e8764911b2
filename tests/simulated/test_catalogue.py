from __future__ import annotations

from pathlib import Path

import pytest

from tightpack.simulated.catalogue import load_catalogue


def test_every_device_has_a_price_and_says_where_its_numbers_are_from():
    devices = load_catalogue().devices
    wanted = {"t4", "l4", "a10g", "l40s", "a100-40gb", "a100-80gb", "h100-pcie", "h100-sxm", "h200", "b200"}
    assert wanted | {"mi300x"} == set(devices)
    for device in devices.values():
        assert device.usd_per_hour
        assert device.price
        assert device.data_sheet
        assert device.interconnect is not None


def test_h100_is_as_its_data_sheet_says_and_has_a_short_name():
    h100 = load_catalogue()["h100"]
    assert h100.name == "h100-sxm"
    assert h100.memory_bytes == 80e9
    assert h100.bandwidth == 3.35e12
    assert h100.rates["fp8"] == 1979e12
    assert h100.interconnect.bandwidth == 450e9


def test_a_file_adds_devices_and_changes_single_fields(tmp_path: Path):
    file = tmp_path / "mine.yaml"
    file.write_text(
        "h100: {usd_per_hour: 1.25}\n"
        "rtx-9090: {memory_gb: 64, bandwidth_gb_s: 1800, dense_tflops: {bf16: 400, fp8: 800}}\n"
    )
    catalogue = load_catalogue(file)
    assert catalogue["h100-sxm"].usd_per_hour == 1.25
    assert catalogue["h100-sxm"].bandwidth == 3.35e12
    assert catalogue["rtx-9090"].rates["fp8"] == 800e12
    assert catalogue["rtx-9090"].interconnect is None
    assert load_catalogue()["h100"].usd_per_hour != 1.25


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("gpu: {memory_gb: 10}", "gpu: bandwidth_gb_s is missing"),
        ("h100-sxm: {usd_per_hour: cheap}", "usd_per_hour must be a number, got 'cheap'"),
        ("h100-sxm: {usd_per_hour: -1}", "usd_per_hour must be 0 or more"),
        ("h100-sxm: {memory_gib: 80}", "has no field 'memory_gib'; did you mean 'memory_gb'"),
        ("h100-sxm: {dense_tflops: {fp4: 1}}", "dense_tflops maps some of bf16, fp8, int8"),
        ("- h100", "must map devices to fields"),
        ("a: [", "is not YAML"),
        ("h100-sxm: {machine: 0}", "machine must be at least 1"),
    ],
)
def test_files_that_are_wrong_are_refused_by_name(tmp_path: Path, text, said):
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=said):
        load_catalogue(file)
