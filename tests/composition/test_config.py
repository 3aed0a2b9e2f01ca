"""What a reload does with each key of the config: taken up, all of it by one event, or refused by name.

Seen to fail: with a key more in the schema; with a key out of `AT_START_ONLY` that nothing running goes by; with
`launch_spec` or `Exporter.render` going by the settings of the start.
"""

from __future__ import annotations

import re
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
from pydantic import BaseModel

from boundd.composition.config import AT_START_ONLY, config_loaded, read_anew, settings_of
from boundd.composition.exporter import pipelines_of
from boundd.composition.launch_specs import launch_spec
from boundd.composition.versions import versions_of
from boundd.config.schema import Config
from boundd.config.settings import load
from boundd.core.lifecycle.loop import Loop
from boundd.core.model.devices import DeviceReading
from boundd.core.model.effects import Spawn
from boundd.core.model.events import DevicesRead, Event, Now, Wake
from boundd.core.model.state import State
from boundd.launch.cgroups import Cgroups
from boundd.ports import ConfigError

GIB = 1024**3
BASE = """
[daemon]
state_dir = "state"
[devices]
backend = "simulated"
[[devices.simulated]]
name = "A"
memory = "24GiB"
[matrix.axes]
model = ["SD1.5", "SDXL"]
scheduler = ["DDIM"]
steps = [20, 50]
method = ["tome"]
[matrix.constants]
num_samples = 8
batch_size = 4
[[matrix.exclude]]
model = "SDXL"
steps = 50
[[matrix.include]]
model = "SD1.5"
scheduler = "UniPC"
steps = 12
method = "tome"
[[rule]]
match = { model = "SD1.5" }
footprint = "3GiB"
[models."SD1.5"]
source = "some/model"
[models."SDXL"]
source = "some/larger-model"
"""
RULE = 'footprint = "3GiB"'
CHANGES: dict[str, tuple[str, str]] = {
    "daemon.state_dir": ('"state"', '"elsewhere"'),
    "daemon.socket": ("[daemon]", '[daemon]\nsocket = "other.sock"'),
    "daemon.export": ("[daemon]", '[daemon]\nexport = "other.json"'),
    "daemon.export_format": ("[daemon]", '[daemon]\nexport_format = "csv"'),
    "daemon.safety_factor": ("[daemon]", "[daemon]\nsafety_factor = 1.2"),
    "daemon.keep_logs": ("[daemon]", '[daemon]\nkeep_logs = "1d"'),
    "daemon.disk_reserve": ("[daemon]", '[daemon]\ndisk_reserve = "1GiB"'),
    "log.file": ("[devices]", '[log]\nfile = "a.log"\n[devices]'),
    "log.level": ("[devices]", '[log]\nlevel = "debug"\n[devices]'),
    "devices.backend": ('"simulated"\n[[devices.simulated]]\nname = "A"\nmemory = "24GiB"', '"cpu"'),
    "devices.include": ('"simulated"', '"simulated"\ninclude = ["A"]'),
    "devices.exclude": ('"simulated"', '"simulated"\nexclude = ["B"]'),
    "devices.margin": ('"simulated"', '"simulated"\nmargin = "1GiB"'),
    "devices.mix_models": ('"simulated"', '"simulated"\nmix_models = true'),
    "devices.max_cells": ('"simulated"', '"simulated"\nmax_cells = 1'),
    "devices.accept_unknown": ('"simulated"', '"simulated"\naccept_unknown = true'),
    "devices.simulated.name": ('name = "A"', 'name = "B"'),
    "devices.simulated.memory": ('"24GiB"', '"40GiB"'),
    "matrix.axes": ("steps = [20, 50]", "steps = [20, 50, 60]"),
    "matrix.constants": ("num_samples = 8", "num_samples = 9"),
    "matrix.exclude": ('model = "SDXL"\nsteps = 50', 'model = "SDXL"\nsteps = 20'),
    "matrix.include": ("steps = 12", "steps = 13"),
    "rule.match": ('match = { model = "SD1.5" }', 'match = { model = "SDXL" }'),
    "rule.exclusive": (RULE, "exclusive = true"),
    "rule.timeout": (RULE, f'{RULE}\ntimeout = "2h"'),
    "rule.grace": (RULE, f'{RULE}\ngrace = "20s"'),
    "rule.footprint": (RULE, 'footprint = "4GiB"'),
    "rule.lease": (RULE, f"{RULE}\nlease = false"),
    "rule.host_memory": (RULE, f'{RULE}\nhost_memory = "1GiB"'),
    "rule.cores": (RULE, f"{RULE}\ncores = 2"),
    "rule.memory_max": (RULE, f'{RULE}\nmemory_max = "8GiB"'),
    "rule.pids_max": (RULE, f"{RULE}\npids_max = 100"),
    "worker.command": ("[[rule]]", '[worker]\ncommand = ["true", "{model}"]\n[[rule]]'),
    "worker.wrapper": ("[[rule]]", '[worker]\nwrapper = ["nice"]\n[[rule]]'),
    "worker.result": ("[[rule]]", '[worker]\nresult = "stdout"\n[[rule]]'),
    "worker.pattern": ('"stdout"', '"stdout"\npattern = "x=([0-9.]+)"'),
    "worker.sample": ('"stdout"', '"stdout"\nsample = "speedup: 2.0"'),
    "worker.timeout": ("[[rule]]", '[worker]\ntimeout = "2h"\n[[rule]]'),
    "worker.fetch_timeout": ("[[rule]]", '[worker]\nfetch_timeout = "2h"\n[[rule]]'),
    "worker.grace": ("[[rule]]", '[worker]\ngrace = "20s"\n[[rule]]'),
    "worker.python": ("[[rule]]", '[worker]\npython = "/usr/bin/python3"\n[[rule]]'),
    "worker.env": ("[[rule]]", '[worker.env]\nHF_HUB_OFFLINE = "1"\n[[rule]]'),
    "worker.memory_max": ("[[rule]]", '[worker]\nmemory_max = "8GiB"\n[[rule]]'),
    "worker.pids_max": ("[[rule]]", "[worker]\npids_max = 100\n[[rule]]"),
    "models.source": ('"some/model"', '"other/model"'),
    "models.weights": ('"some/model"', '"some/model"\nweights = "random"'),
    "models.dtype": ('"some/model"', '"some/model"\ndtype = "bfloat16"'),
    "models.pipeline": ('"some/model"', '"some/model"\npipeline = "MyPipeline"'),
    "scorer.source": ("[[rule]]", '[scorer]\nsource = "some/clip"\n[[rule]]'),
    "retry.batch_ladder": ("[[rule]]", "[retry]\nbatch_ladder = [4, 1]\n[[rule]]"),
    "retry.max_attempts": ("[[rule]]", "[retry]\nmax_attempts = 2\n[[rule]]"),
    "retry.backoff": ("[[rule]]", '[retry]\nbackoff = "1s"\n[[rule]]'),
    "retry.quick": ("[[rule]]", '[retry]\nquick = "5s"\n[[rule]]'),
    "retry.patience": ("[[rule]]", '[retry]\npatience = "1h"\n[[rule]]'),
    "control.group": ("[[rule]]", '[control]\ngroup = "root"\n[[rule]]'),
    "control.others": ("[[rule]]", '[control]\nothers = "read"\n[[rule]]'),
}
"""Each key, and a change of it in the text of the base."""
OF_A_SCRIPT = BASE.replace("[[rule]]", '[worker]\nresult = "stdout"\n[[rule]]', 1)
BASES = {"worker.pattern": OF_A_SCRIPT, "worker.sample": OF_A_SCRIPT}
"""What is changed for keys that mean something beside others only."""
CHECKED_ONLY = frozenset({"worker.sample"})
"""Keys that the check of a config goes by, and nothing that runs."""
LIMITABLE = Cgroups(Path("/nowhere"), frozenset({"memory", "pids"}))


def keys(table: type[BaseModel] = Config, path: str = "") -> Iterator[str]:
    """Every key that the schema has; those of a table in a list, or of one by names, without its place or name."""
    for name, each in table.model_fields.items():
        inner = table_in(each.annotation)
        yield from [path + name] if inner is None else keys(inner, f"{path}{name}.")


def table_in(annotation: Any) -> type[BaseModel] | None:
    """The table that a field holds, once, in a list or by name; None where it holds a value."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    inner = get_args(annotation) if get_origin(annotation) in (list, dict, types.UnionType) else ()
    return next((found for each in inner if (found := table_in(each)) is not None), None)


def is_at_start_only(key: str) -> bool:
    """Whether the code refuses a reload that changes it."""
    return any(key == each or key.startswith(f"{each}.") for each in AT_START_ONLY)


def written(folder: Path, text: str) -> Path:
    """The config's file."""
    (folder / "config.toml").write_text(text)
    return folder / "config.toml"


def handle(loop: Loop, event: Event) -> list[object]:
    """Have a loop handle an event, with a store that takes everything."""
    return list(loop.handle(event, Now(0.0, 0.0)))


def what_running_parts_go_by(state: State, spawned: Spawn) -> dict[str, object]:
    """What the parts of a daemon make of the state that they are given."""
    settings = settings_of(state)
    return {
        "who is planned, and how an end is judged": state.rules,
        "cells and how each is run": [(key, state.cells[key].cell, state.cells[key].policy) for key in state.order],
        "how workers are started": launch_spec({}, spawned.attempt, spawned.cell, state),
        "how legacy files name models": pipelines_of(settings),
        "whose results are stale": versions_of(settings)("torch"),
        "how long logs are kept": settings.keep_logs_s,
        "what is logged": settings.log_level,
    }


def test_every_key_is_classified() -> None:
    """A key that is new in the schema must be changed here, and be taken up or refused."""
    assert sorted(CHANGES) == sorted(keys())
    assert all(any(is_at_start_only(key) and key.startswith(each) for key in CHANGES) for each in AT_START_ONLY)


@pytest.mark.parametrize("key", sorted(CHANGES))
def test_a_reload_that_changes_one_key(key: str, tmp_path: Path) -> None:
    """It is taken up by the parts that run, with one event, or the reload is refused and names the key."""
    environ = {"HOME": str(tmp_path)}
    base = BASES.get(key, BASE)
    started_with = load(written(tmp_path, base), environ)
    loop = Loop(State())
    handle(loop, config_loaded(started_with))
    handle(loop, DevicesRead(tuple(DeviceReading(f"GPU-{n}", n, "A", 24 * GIB, 24 * GIB) for n in range(4))))
    spawned = next(
        each for each in handle(loop, Wake()) if isinstance(each, Spawn) and each.cell.label.startswith("SD1.5")
    )
    before = what_running_parts_go_by(loop.state, spawned)
    old, new = CHANGES[key]
    assert old in base
    written(tmp_path, base.replace(old, new, 1))
    if is_at_start_only(key):
        with pytest.raises(ConfigError) as refused:
            read_anew(started_with, LIMITABLE, environ)
        named = [error.split(":")[0] for error in refused.value.errors]
        assert any(key == each or key.startswith(f"{each}.") for each in named), named
        assert all("takes effect at a restart only" in error for error in refused.value.errors)
        return
    handle(loop, read_anew(started_with, LIMITABLE, environ).config)
    after = what_running_parts_go_by(loop.state, spawned)
    assert (before == after) == (key in CHECKED_ONLY), "what runs goes by it, or should not"


def test_all_that_differs_is_named(tmp_path: Path) -> None:
    """A config that differs in three things that need a restart, and in one that doesn't, is refused for the three."""
    started_with = load(written(tmp_path, BASE), {"HOME": str(tmp_path)})
    text = BASE
    for key in ("daemon.export", "control.others", "devices.max_cells", "log.file"):
        text = text.replace(*CHANGES[key], 1)
    written(tmp_path, text)
    with pytest.raises(ConfigError) as refused:
        read_anew(started_with, LIMITABLE, {"HOME": str(tmp_path)})
    assert [error.split(":")[0] for error in refused.value.errors] == ["daemon.export", "log.file", "control.others"]


def test_a_limit_that_cannot_be_kept_to_is_refused(tmp_path: Path) -> None:
    """As at the start: not cell by cell."""
    started_with = load(written(tmp_path, BASE), {"HOME": str(tmp_path)})
    written(tmp_path, BASE.replace(*CHANGES["worker.memory_max"], 1))
    with pytest.raises(ConfigError, match=r"worker\.memory_max"):
        read_anew(started_with, Cgroups(None, frozenset(), "no cgroups"), {"HOME": str(tmp_path)})


def test_the_docs_name_what_needs_a_restart() -> None:
    """docs/config.md has the list, and no other key in it."""
    text = (Path(__file__).parents[2] / "docs" / "config.md").read_text()
    listed = text.split("## Reading the config anew")[1].split("\n## ")[0].split("need a restart:")[1].split("\n\n")[0]
    assert re.findall(r"`([a-z_.]+)`", listed) == list(AT_START_ONLY)
