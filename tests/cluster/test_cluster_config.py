"""The YAML file of a cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tightpack.cluster.config import parse_config

EXAMPLE = Path(__file__).parents[2] / "examples" / "cluster.yaml"


def test_the_example_is_valid() -> None:
    config = parse_config(yaml.safe_load(EXAMPLE.read_text()))
    assert [pool.name for pool in config.pools] == ["interactive", "batch"]
    assert config.home("standard").name == "interactive"
    assert (config.pool("interactive").min_replicas, config.pool("interactive").max_replicas) == (1, 2)
    assert config.pool("interactive").engine.service_classes == config.service_classes


def test_one_pool_takes_every_class() -> None:
    config = parse_config({"pools": {"main": {"replicas": 3}}})
    assert config.pools[0].classes == ("interactive", "standard", "batch")
    assert config.model == "smollm2-135m"
    assert config.pools[0].max_replicas == 3


def test_the_pool_without_classes_takes_the_rest() -> None:
    config = parse_config({"pools": {"fast": {"classes": ["interactive"]}, "rest": None}})
    assert config.home("batch").name == config.home("standard").name == "rest"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], "must be a mapping"),
        ({}, "name at least one"),
        ({"pool": {}}, "did you mean 'pools'?"),
        ({"pools": {"a": {"replica": 2}}}, "did you mean 'replicas'?"),
        ({"pools": {"a": {"replicas": 0}}}, "1 or more"),
        ({"pools": {"a": {"replicas": {"min": 3, "max": 2}}}}, "got 3 to 2"),
        ({"pools": {"a": {"engine": {"max_num_seq": 2}}}}, "did you mean 'max_num_seqs'?"),
        ({"pools": {"a": {"engine": {"policy": "fifo"}}}}, "policy='fifo' is not known"),
        ({"pools": {"a": {"engine": {"service_classes": {}}}}}, "of the whole cluster"),
        ({"pools": {"a": {"overflow": ["b"]}}}, "'b', which is not another pool"),
        ({"pools": {"a": {"overflow": ["a"]}}}, "'a', which is not another pool"),
        ({"pools": {"a": {"overflow": "b"}}}, "list of names"),
        ({"pools": {"a": {"classes": ["fast"]}}}, "no service class is named 'fast'"),
        ({"pools": {"a": {"classes": ["batch"]}}}, "no pool has the service class 'interactive'"),
        ({"pools": {"a": {"classes": ["batch"]}, "b": {"classes": ["batch"]}}}, "one home"),
        ({"pools": {"a": {}, "b": {}}}, "only one of them"),
        ({"pools": {"a": {}}, "routing": {"afinity": 1}}, "did you mean 'affinity'?"),
        ({"pools": {"a": {}}, "routing": {"patience": 0}}, "patience must be above 0"),
        ({"pools": {"a": {}}, "autoscaling": {"attainment": 2}}, "share up to 1"),
        ({"pools": {"a": {}}, "port": 99999}, "port must be"),
    ],
)
def test_what_is_wrong_is_named(given: Any, said: str) -> None:
    with pytest.raises((ValueError, TypeError)) as error:
        parse_config(given)
    assert said in str(error.value)
