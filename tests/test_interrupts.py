"""Ctrl-C at any moment of a command: exit code 130 and a line, no traceback."""

import signal
import subprocess
import sys

import pytest
from tiny_bundle import write_tiny

OURS = "pocketsam.__main__"


def heed_interrupts():
    """Undoes that a shell's process in the background ignores Ctrl-C, and so all that it starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def interrupted(arguments, name, later):
    """Sends SIGINT once a module has been imported and some others after it; returns code and stderr.

    Python says of each module when its import is done.
    """
    command = [sys.executable, "-X", "importtime", "-c", f"import sys, {OURS} as m; sys.exit(m.main())"]
    lines, count = [], None
    quiet = {"stderr": subprocess.PIPE, "stdout": subprocess.DEVNULL, "text": True}
    quiet |= {"preexec_fn": heed_interrupts}
    with subprocess.Popen([*command, *map(str, arguments)], **quiet) as process:
        for line in process.stderr:
            lines.append(line)
            if line.startswith("import time:"):
                if count is not None:
                    count += 1
                elif line.rstrip().endswith(f" {name}"):
                    count = 0
                if count == later:
                    process.send_signal(signal.SIGINT)
    said = [line for line in lines if not line.startswith("import time:")]
    return process.returncode, "".join(said)


@pytest.mark.parametrize("later", [2, 5, 20, 60, 100, 150, 200])
def test_while_the_command_is_imported(tmp_path, later):
    bundle = write_tiny(tmp_path / "b")
    code, said = interrupted(["verify", bundle], OURS, later)
    assert (code, said) == (130, "pocketsam: interrupted\n")


@pytest.mark.parametrize("later", [3, 300])
def test_while_torch_is_imported(tmp_path, later):
    code, said = interrupted(["export", "seeded", "--output", tmp_path / "b"], "torch._utils", later)
    assert code == 130
    assert "Traceback" not in said
    assert said.endswith("pocketsam: interrupted\n")
    assert list(tmp_path.iterdir()) == []


def test_a_command_in_the_background_of_a_script_is_left_alone(tmp_path):
    """There the shell says that Ctrl-C, meant for another, is ignored."""
    bundle = write_tiny(tmp_path / "b")
    code = "import signal, subprocess, sys; signal.signal(signal.SIGINT, signal.SIG_IGN);"
    code += "sys.exit(subprocess.call(sys.argv[1:]))"
    inner = "import os, signal, sys, pocketsam.cli as c, pocketsam.__main__ as m; "
    inner += "c.main = lambda: os.kill(os.getpid(), signal.SIGINT) or 0; sys.exit(m.main())"
    command = [sys.executable, "-c", code, sys.executable, "-c", inner, "info", bundle]
    assert subprocess.run(command, check=False).returncode == 0


def test_another_error_that_an_interrupt_became():
    code = "import os, signal, sys, pocketsam.cli as c, pocketsam.__main__ as m\n"
    code += "def run():\n    try:\n        os.kill(os.getpid(), signal.SIGINT)\n"
    code += (
        "    except KeyboardInterrupt:\n        raise ImportError('initialization failed') from None\n"
    )
    code += "c.main = run\nsys.exit(m.main())"
    command, heed = [sys.executable, "-c", code], heed_interrupts
    done = subprocess.run(command, capture_output=True, text=True, check=False, preexec_fn=heed)
    assert (done.returncode, done.stderr) == (130, "pocketsam: interrupted\n")


def test_a_command_that_is_told_to_end_clears_up(tmp_path):
    """By SIGTERM, as `timeout` and services send it."""
    code = """if True:
        import os, signal, sys
        from pathlib import Path
        from pocketsam import __main__, cli
        from pocketsam.files import staged_directory

        def run():
            with staged_directory(Path(sys.argv[1])) as work:
                (work / "file").write_text("half")
                os.kill(os.getpid(), signal.SIGTERM)

        cli.main = run
        sys.exit(__main__.main())
    """
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "bundle"], check=False)
    assert done.returncode == 128 + signal.SIGTERM
    assert not list(tmp_path.iterdir())
