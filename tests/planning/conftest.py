"""Loads and deployments of known size, small enough to simulate many of them in a second."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tightpack.benchmarking.traffic import DrawnTraffic
from tightpack.latency.service_level import ServiceLevel
from tightpack.planning.deployments import Deployment, rooflines
from tightpack.planning.load import Load
from tightpack.planning.models import PlannedModel, open_model
from tightpack.planning.weight_choices import KV_DIVERGENCE, WEIGHT_CHOICES
from tightpack.requests.service_class import ServiceClass
from tightpack.simulated.catalogue import load_catalogue


@pytest.fixture(scope="session")
def llama8b() -> PlannedModel:
    return open_model("llama-3.1-8b")


@pytest.fixture(scope="session")
def llama70b() -> PlannedModel:
    return open_model("llama-3.1-70b")


@pytest.fixture
def new_load() -> Callable[..., Load]:
    """4 requests a second of 256 tokens in and 16 out, all alike."""

    def make(**changes: Any) -> Load:
        settings: dict[str, Any] = {
            "rate": 4.0,
            "ttft": 0.5,
            "tpot": 0.05,
            "input_len": 256,
            "output_len": 16,
        }
        settings |= {"mixed": False, "max_model_len": 2048, "attainment": 0.99} | changes
        return Load(
            traffic=DrawnTraffic(
                count=1,
                input_len=settings["input_len"],
                output_len=settings["output_len"],
                mixed=settings["mixed"],
            ),
            description="drawn",
            rate=settings["rate"],
            promise=ServiceClass("standard", settings["ttft"], settings["tpot"]),
            level=ServiceLevel(attainment=settings["attainment"]),
            max_model_len=settings["max_model_len"],
        )

    return make


@pytest.fixture
def new_deployments() -> Callable[..., list[Deployment]]:
    def make(
        model: PlannedModel,
        devices: tuple[str, ...] = ("h100-sxm",),
        precisions: tuple[str, ...] = tuple(WEIGHT_CHOICES),
        kv: tuple[str, ...] = ("auto",),
        sizes: tuple[int, ...] = (1, 2, 4, 8),
    ) -> list[Deployment]:
        catalogue = load_catalogue()
        choices = [WEIGHT_CHOICES[name] for name in precisions]
        divergence = {
            (choice.name, cache): choice.kl + extra
            for choice in choices
            for cache, extra in KV_DIVERGENCE.items()
        }
        return [
            one
            for device in devices
            for one in rooflines(
                model, catalogue[device], choices, kv, sizes, divergence, reserve_tokens=8192
            )
        ]

    return make
