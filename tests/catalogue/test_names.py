"""Names of schedulers and methods: they resolve, and wrong ones are refused with what was probably meant."""

import subprocess
import sys
from pathlib import Path

import pytest

from boundd.catalogue.methods import InvalidMethodError, builtin_methods, installed_methods, parse_method
from boundd.catalogue.names import UnknownNameError
from boundd.catalogue.schedulers import SCHEDULERS, resolve_scheduler, scheduler_name

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("name", "scheduler"), SCHEDULERS.items())
def test_names_and_classes_resolve(name: str, scheduler: str) -> None:
    """A config name in any case and a class name mean the same class, and lead back to the config name."""
    for given in (name, name.lower(), name.replace("-", "_"), scheduler):
        assert resolve_scheduler(given) == scheduler
        assert scheduler_name(given) == name


def test_no_two_schedulers_share_a_class() -> None:
    """The mapping can be read both ways."""
    assert len(set(SCHEDULERS.values())) == len(SCHEDULERS)


@pytest.mark.parametrize(("wrong", "right"), [("DIMM", "DDIM"), ("UniPCScheduler", "UniPC"), ("dpm++", "DPM-Solver++")])
def test_a_wrong_scheduler_is_answered_with_a_near_one(wrong: str, right: str) -> None:
    """The error offers the name that was probably meant."""
    with pytest.raises(UnknownNameError) as caught:
        resolve_scheduler(wrong)
    assert any(name in (right, SCHEDULERS[right]) for name in caught.value.nearest)
    assert wrong in str(caught.value)


def test_something_else_entirely_is_answered_with_all() -> None:
    """Where nothing is near, everything known is listed."""
    with pytest.raises(UnknownNameError, match=r"known: .*DDIM"):
        resolve_scheduler("§§§")


def test_methods_combine_in_one_order() -> None:
    """A combination has one canonical form."""
    assert parse_method("tome+deepcache") == parse_method("deepcache + tome") == ("deepcache", "tome")
    assert parse_method("tgate") == ("tgate",)
    assert parse_method("mine+tome", known=("mine", "tome")) == ("mine", "tome")


@pytest.mark.parametrize("text", ["", "+", "tome+", "tome+tome", "deepcache++tome"])
def test_impossible_combinations_are_refused(text: str) -> None:
    """Empty parts and repetitions are refused with a reason."""
    with pytest.raises(InvalidMethodError):
        parse_method(text)


def test_an_unknown_method_is_answered_with_a_near_one() -> None:
    """'deepcash' probably meant deepcache."""
    with pytest.raises(UnknownNameError, match="did you mean deepcache"):
        parse_method("tome+deepcash")


def test_the_builtin_methods_are_always_there() -> None:
    """Whatever is installed, boundd's own methods are offered."""
    assert builtin_methods() == ("deepcache", "tgate", "tome")
    assert set(builtin_methods()) <= set(installed_methods())


def test_catalogue_and_protocol_are_light() -> None:
    """Importing all of it, and listing the methods, imports nothing outside the standard library."""
    program = (
        "import sys; from boundd.protocol import environment, lease, lines; "
        "from boundd.catalogue import libraries, methods, models, options, schedulers; methods.installed_methods(); "
        "print([m for m in sys.modules if m.split('.')[0] not in sys.stdlib_module_names"
        " and m.split('.')[0] not in ('boundd', 'sitecustomize') and not m.startswith('_')])"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]", done.stdout
