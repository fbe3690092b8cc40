from pocketsam.runtime.machine import describe_machine, read_state


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
