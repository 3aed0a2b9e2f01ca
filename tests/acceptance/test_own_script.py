"""Somebody's own script as the worker, by the real daemon, on the real CPU device."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import time
from pathlib import Path

import pytest

from boundd.core.model.attempts import CellState
from tests.acceptance.conftest import Box

TWO_METHODS = 'method = ["tome", "tgate"]'
NONE = dict.fromkeys(CellState, 0)
CELLS = ["SD1.5/DDIM/20/tome", "SD1.5/DDIM/20/tgate"]


def test_the_largest_speedup_counts(box: Box) -> None:
    """Exit 0, the largest figure, times the safety factor, and everything is there at once the second time."""
    box.write("print('speedup: 1.50'); print('speedup: 2.31', file=sys.stderr); print('speedup: 0.9')")
    status, output = box.run()
    assert status == 0, output
    cell = box.export()[CELLS[0]]
    assert cell["state"] == "succeeded"
    assert cell["max_speedup"] == 2.31
    assert cell["max_speedup_within_tolerance"] is None
    assert cell["upper_bound"] == pytest.approx(2.31 * 1.1)
    assert cell["upper_bound_of"] == "max_speedup"
    assert cell["isolation"] == "exclusive"
    assert "SD1.5/DDIM/20/tome" in output
    assert str(box.export_path) in output
    began_s = time.monotonic()
    status, output = box.run()
    assert status == 0
    assert "everything is there already" in output
    assert time.monotonic() - began_s < 10
    assert box.export()[CELLS[0]]["attempts"] == 1, "nothing was run again"


def test_show_names_the_line_of_the_result(box: Box) -> None:
    """By a pattern, in a run of the real daemon, within the cell's tolerance; a malformed one is quoted instead."""
    box.write(
        "print('theoretical max speedup: 8.00')\n"
        "print('final speedup: 3.5e+00 loss 0.5'); print('final \\x1b[32mspeedup: 2.31\\x1b[0m loss 0.01')\n"
        "if arguments.search_targets == 'tgate': print('final speedup: 2,31 loss 0.01')\n",
        axes=TWO_METHODS,
    )
    pattern = r"pattern = 'final speedup: (?P<speedup>\S+) loss (?P<score_loss>\S+)'"
    text = box.config.read_text()
    box.config.write_text(text.replace('result = "stdout"', f'result = "stdout"\n{pattern}'))
    daemon = box.start()
    box.wait_for(lambda: '"run-idle"' in (box.folder / "daemon.log").read_text())
    shown = box.ctl("show", CELLS[0]).stdout
    assert "line 2 of its log (1 other line has one): final speedup: 3.5e+00 loss 0.5" in shown
    daemon.send_signal(signal.SIGINT)
    assert daemon.wait(30) == 0
    cells = box.export()
    assert (cells[CELLS[0]]["max_speedup"], cells[CELLS[0]]["max_speedup_within_tolerance"]) == (3.5, 2.31)
    assert cells[CELLS[1]]["error"]["type"] == "malformed_result"
    assert "2,31" in cells[CELLS[1]]["error"]["message"]


def test_the_shipped_example_runs(box: Box, pytestconfig: pytest.Config) -> None:
    """examples/own-script.toml with examples/traversal_search.py, on the CPU."""
    examples = pytestconfig.rootpath / "examples"
    shutil.copy(examples / "traversal_search.py", box.folder)
    box.config.write_text((examples / "own-script.toml").read_text())
    status, output = box.run(timeout_s=240)
    assert status == 0, output
    assert "upper bound" in output.lower()


def test_out_of_memory_goes_down_the_ladder(box: Box) -> None:
    """Batch 4 and 2 run out, batch 1 succeeds; the key keeps the batch that was asked for."""
    box.write(
        "if int(arguments.batch_size) > 1:\n"
        "    sys.exit('torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 4.00 GiB.')\n"
        "print('speedup: 1.20')\n"
    )
    status, output = box.run()
    assert status == 0, output
    cell = box.export()[CELLS[0]]
    assert (cell["attempts"], cell["batch_size"], cell["key"]["batch_size"]) == (3, 1, 4)


def test_failures_are_told_apart_and_nothing_stops_the_run(box: Box) -> None:
    """One cell hangs, one has a bug, one runs out of memory for good, one is killed, one is fine: exit 3."""
    box.write(
        "m = arguments.search_targets\n"
        "if m == 'hang':\n    import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)\n"
        "if m == 'bug':\n    raise KeyError('steps')\n"
        "if m == 'oom':\n    sys.exit('RuntimeError: CUDA error: out of memory')\n"
        "if m == 'killed':\n    os.kill(os.getpid(), 11)\n"
        "if m == 'silent':\n    sys.exit(0)\n"
        "if m == 'model':\n    raise OSError('x is not a local folder and is not a valid model identifier')\n"
        "print('speedup: 1.20')\n",
        axes='method = ["hang", "bug", "oom", "killed", "silent", "model", "fine"]',
        timeout="2s",
    )
    status, output = box.run()
    assert status == 3, output
    cells = {label.split("/")[-1]: cell for label, cell in box.export().items()}
    told = {name: (cell["state"], (cell["error"] or {}).get("type"), cell["attempts"]) for name, cell in cells.items()}
    assert told == {
        "hang": ("timed_out", "timeout", 2),
        "bug": ("failed", "other", 2),
        "oom": ("out_of_memory", "out_of_memory", 3),
        "killed": ("failed", "killed_by_signal", 2),
        "silent": ("failed", "no_result", 1),
        "model": ("failed", "model_unavailable", 1),
        "fine": ("succeeded", None, 1),
    }
    assert "KeyError: 'steps'" in cells["bug"]["error"]["message"]
    assert box.processes() == []


@pytest.mark.parametrize("kill_after", ["attempt-started", "cell-succeeded"])
def test_kill_9_and_start_again(box: Box, kill_after: str) -> None:
    """What was finished is not run again, what runs is adopted, nothing is recorded twice or left behind."""
    box.write(
        "open('ran', 'a').write(arguments.search_targets + '\\n'); time.sleep(3); print('speedup: 1.30')",
        axes='method = ["a", "b", "c"]',
    )
    daemon = box.start("--until-idle")
    log = box.folder / "daemon.log"
    box.wait_for(lambda: f'"{kill_after}"' in log.read_text())
    daemon.kill()
    daemon.wait()
    status, output = box.run()
    assert status == 0, output
    assert sorted((box.folder / "ran").read_text().split()) == ["a", "b", "c"], "each ran exactly once"
    (store,) = box.state_dir.glob("*.db")
    with sqlite3.connect(store) as database:
        ends = database.execute("SELECT attempt_id, outcome FROM ends").fetchall()
    assert len({attempt for attempt, _ in ends}) == len(ends)
    # The intent of the next cell is kept with the end of the one before: a kill right after it loses an attempt that
    # never ran, and nothing else.
    assert [outcome for _, outcome in ends if outcome != "lost"] == ["succeeded"] * 3
    assert sum(cell["attempts"] for cell in box.export().values()) == len(ends) <= 4
    assert box.processes() == []


def test_sigint_puts_the_cell_back(box: Box) -> None:
    """Its worker is ended, the cell is pending again and uncharged, and the next run finishes it."""
    box.write("time.sleep(2 if os.path.exists('go') else 600); print('speedup: 1.30')")
    daemon = box.start()
    box.wait_for(lambda: '"attempt-started"' in (box.folder / "daemon.log").read_text())
    daemon.send_signal(signal.SIGINT)
    assert daemon.wait(30) == 0
    assert box.processes() == []
    assert box.export()[CELLS[0]]["state"] == "pending"
    (box.folder / "go").touch()
    assert box.run()[0] == 0


def test_sigterm_leaves_the_worker_for_the_next_daemon(box: Box) -> None:
    """The worker goes on, the next daemon adopts it and records its one result."""
    box.write("time.sleep(5); print('speedup: 1.30')")
    daemon = box.start()
    box.wait_for(lambda: '"attempt-started"' in (box.folder / "daemon.log").read_text())
    daemon.terminate()
    assert daemon.wait(30) == 0
    assert any("search.py" in " ".join(process.cmdline()) for process in box.processes())
    assert box.run()[0] == 0
    assert box.export()[CELLS[0]]["attempts"] == 1
    assert '"attempt-adopted"' in (box.folder / "daemon.log").read_text()


def test_a_second_daemon_is_refused(box: Box) -> None:
    """Exit 4, and it names the pid of the first."""
    box.write("time.sleep(600)")
    first = box.start()
    box.wait_for(lambda: '"attempt-started"' in (box.folder / "daemon.log").read_text())
    status, _ = box.run()
    assert status == 4
    assert str(first.pid) in (box.folder / "daemon.log").read_text().splitlines()[-1]


def test_somebody_elses_export_is_kept(box: Box) -> None:
    """Exit 2, it names `boundctl import`, and the file is as it was."""
    old = json.dumps({"('StableDiffusionPipeline', 'DDIMScheduler', '20', 'upbound_speedup', 0.02, ['tome'])": {}})
    box.write("print('speedup: 1.30')")
    box.export_path.write_text(old)
    status, _ = box.run()
    assert status == 2
    assert "boundctl import" in (box.folder / "daemon.log").read_text()
    assert box.export_path.read_text() == old


def test_a_foreign_store_is_refused(box: Box) -> None:
    """Exit 5, and the file is as it was."""
    box.write("print('speedup: 1.30')")
    assert box.run()[0] == 0
    (store,) = box.state_dir.glob("*.db")
    store.write_bytes(b"not a database at all, but somebody's diary" * 100)
    status, _ = box.run()
    assert status == 5
    assert store.read_bytes().startswith(b"not a database")


def test_a_bad_config_names_every_error(box: Box) -> None:
    """Exit 2, all errors at once, with the nearest known key."""
    box.write("pass")
    text = box.config.read_text().replace("timeout =", "timeuot =").replace('result = "stdout"', 'result = "stdin"')
    box.config.write_text(text)
    status, _ = box.run()
    said = (box.folder / "daemon.log").read_text()
    assert status == 2
    assert "worker.timeuot" in said
    assert "timeout" in said
    assert "worker.result" in said


def test_an_unwritable_state_folder_is_an_error_of_config(box: Box) -> None:
    """Exit 2 and the path: the state folder is a file."""
    box.write("pass")
    box.state_dir.write_text("")
    status, _ = box.run()
    assert status == 2
    assert str(box.state_dir) in (box.folder / "daemon.log").read_text()


def test_boundctl_walks_a_run(box: Box) -> None:
    """status, pause, cancel, retry, show, logs, export, shutdown, each with --json, and curl's answer."""
    box.write(
        "print('hello from', arguments.search_targets, flush=True)\n"
        "if arguments.search_targets == 'tome': sys.exit('RuntimeError: CUDA out of memory')\n"
        "print('speedup: 1.30')\n",
        axes=TWO_METHODS,
    )
    daemon = box.start()
    box.wait_for(lambda: '"run-idle"' in (box.folder / "daemon.log").read_text())
    status = json.loads(box.ctl("status", "--json").stdout)
    assert status["cells"]["by_state"] == {**NONE, "out_of_memory": 1, "succeeded": 1}
    assert status["devices"][0]["state"] == "ready"
    assert status["daemon"]["pid"] == daemon.pid
    assert "CUDA out of memory" in box.ctl("logs", CELLS[0]).stdout
    shown = json.loads(box.ctl("show", CELLS[1], "--json").stdout)
    assert shown["label"] == CELLS[1]
    assert box.ctl("pause").returncode == 0
    dry = json.loads(box.ctl("retry", "--oom", "--dry-run", "--json").stdout)
    assert CELLS[0] in json.dumps(dry)
    assert json.loads(box.ctl("status", "--json").stdout)["cells"]["by_state"]["out_of_memory"] == 1
    assert box.ctl("retry", "--oom", "--batch-size", "1").returncode == 0
    assert json.loads(box.ctl("status", "--json").stdout)["cells"]["by_state"] == {
        **NONE,
        "pending": 1,
        "succeeded": 1,
    }
    assert "pause" in box.ctl("explain", CELLS[0]).stdout
    assert box.ctl("cancel", CELLS[0]).returncode == 0
    assert box.ctl("cancel", "state=pending").returncode == 1, "nothing was affected"
    legacy = box.ctl("export", "--format", "legacy")
    key = "('StableDiffusionPipeline', 'DDIMScheduler', '20', 'upbound_speedup', 0.02, ['tgate'])"
    assert json.loads(legacy.stdout)[key] == {"max_speedup": 1.43}
    assert box.ctl("resume").returncode == 0
    assert box.ctl("shutdown").returncode == 0
    assert daemon.wait(30) == 0
    assert box.ctl("status").returncode == 3


def test_every_log_line_is_json_with_its_fields(box: Box) -> None:
    """What an ingester needs is in each line."""
    box.write("print('speedup: 1.30')")
    box.run()
    for line in box.log():
        assert {"@timestamp", "log.level", "message", "ecs.version", "event.action"} <= line.keys()


@pytest.mark.skipif(not Path("/proc").exists(), reason="needs /proc to look for descriptors")
def test_the_daemon_is_small(box: Box) -> None:
    """It imports none of the heavy libraries, and stays under 80 MB."""
    box.write("time.sleep(600)")
    daemon = box.start()
    box.wait_for(lambda: '"attempt-started"' in (box.folder / "daemon.log").read_text())
    maps = Path(f"/proc/{daemon.pid}/maps").read_text()
    assert "libtorch" not in maps
    assert "numpy" not in maps
    resident_kib = int(Path(f"/proc/{daemon.pid}/status").read_text().split("VmRSS:")[1].split()[0])
    print(f"resident: {resident_kib / 1000:.0f} MB")
    assert resident_kib < 80_000
    os.kill(daemon.pid, signal.SIGINT)
    daemon.wait(30)


def test_reload_is_all_or_nothing(box: Box) -> None:
    """SIGHUP with a bad config keeps the old one and says so; with a good one the new cells are run."""
    box.write("print('speedup: 1.30')")
    daemon = box.start()
    log = box.folder / "daemon.log"
    box.wait_for(lambda: '"run-idle"' in log.read_text())
    good = box.config.read_text()
    box.config.write_text(good.replace("steps = [20]", "steps = [20, 0x"))
    daemon.send_signal(signal.SIGHUP)
    box.wait_for(lambda: '"config-rejected"' in log.read_text())
    assert json.loads(box.ctl("status", "--json").stdout)["cells"]["total"] == 1
    moved = good.replace('state_dir = "state"', 'state_dir = "elsewhere"')
    box.config.write_text(moved)
    refused = box.ctl("reload")
    assert refused.returncode == 2
    assert "state_dir" in refused.stderr
    box.config.write_text(good + '\n[control]\nothers = "read"\n')
    assert "control.others: takes effect at a restart only" in box.ctl("reload").stderr
    box.config.write_text(good.replace("steps = [20]", "steps = [20, 25]"))
    assert box.ctl("reload").returncode == 0
    assert box.ctl("wait").returncode == 0
    assert list(box.export()) == ["SD1.5/DDIM/20/tome", "SD1.5/DDIM/25/tome"]
    daemon.send_signal(signal.SIGINT)
    assert daemon.wait(30) == 0
