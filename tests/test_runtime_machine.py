import importlib.metadata

import numpy as np
import onnxruntime as ort
import pytest

from pocketsam.runtime.machine import describe_machine, package_version, read_state


def test_what_a_raspberry_pi_shows(tmp_path):
    files = {
        "class/thermal/thermal_zone0/temp": "81250\n",
        "devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "1500000\n",
        "devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq": "2400000\n",
        "devices/system/cpu/cpu1/cpufreq/scaling_cur_freq": "junk\n",
        "devices/platform/soc/soc:firmware/get_throttled": "e0008\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert read_state(tmp_path) == {
        "temperature_c": 81.25,
        "frequency_mhz": 1500.0,
        "frequency_limit_mhz": 2400.0,
        "throttled": [
            "soft temperature limit",
            "frequency capping has occurred",
            "throttling has occurred",
            "soft temperature limit has occurred",
        ],
    }


def test_a_machine_that_shows_nothing(tmp_path):
    assert read_state(tmp_path) == {}
    assert describe_machine()["cores"] >= 1


def test_an_onnxruntime_under_another_name_has_a_version(monkeypatch):
    """``pip install onnxruntime-gpu`` leaves no package called onnxruntime, but the same module."""

    def not_found(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.distribution", not_found)
    assert describe_machine()["onnxruntime"] == package_version("onnxruntime") == ort.__version__
    assert package_version("numpy") == np.__version__
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        package_version("nothing-of-that-name")
