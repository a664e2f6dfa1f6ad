"""Optuna's samplers and pruners by name, and draws that do not depend on who was killed or ran beside."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import JournalStorage
from optuna.trial import TrialState

from bitexp.common.errors import UserError
from bitexp.sweep.samplers import PerCell, build, choices, values
from bitexp.sweep.study import ClaimedTrial, TrialResult, build_pruner, trial_of
from tests.support.marks import others_slow

SAMPLERS = choices(optuna.samplers)
PRUNERS = choices(optuna.pruners)
ARGUMENTS: dict[str, dict[str, Any]] = {
    "GPSampler": {"n_startup_trials": 4},
    "TPESampler": {"n_startup_trials": 3, "multivariate": True},
    "NSGAIISampler": {"population_size": 3},
    "NSGAIIISampler": {"population_size": 3},
    "PatientPruner": {"wrapped_pruner": {"name": "MedianPruner", "n_startup_trials": 1}, "patience": 1},
    "PercentilePruner": {"percentile": 50.0, "n_startup_trials": 1},
    "ThresholdPruner": {"lower": 0.5},
    "MedianPruner": {"n_startup_trials": 1},
    "SuccessiveHalvingPruner": {"min_resource": 250, "reduction_factor": 2},
    "HyperbandPruner": {"min_resource": 250, "max_resource": 1000, "reduction_factor": 2},
}
PARTIAL = {"name": "PartialFixedSampler", "fixed_params": {"model.depth": 4}}


def spec(name: str) -> dict[str, Any]:
    """A sampler with seed 0 and what it cannot do without."""
    if name == "PartialFixedSampler":
        return {**PARTIAL, "base_sampler": {"name": "RandomSampler", "seed": 0}}
    return {"name": name, "seed": 0, **ARGUMENTS.get(name, {})}


def test_the_lists_are_those_of_optuna() -> None:
    assert {"TPESampler", "GPSampler", "CmaEsSampler", "QMCSampler", "NSGAIIISampler"} <= set(SAMPLERS)
    assert {"MedianPruner", "HyperbandPruner", "PatientPruner", "WilcoxonPruner"} <= set(PRUNERS)
    assert not {"BaseSampler", "BasePruner", "BaseGASampler"} & {*SAMPLERS, *PRUNERS}


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_draws_a_study_by_its_name(
    name: str, work_off: Any, define: Any, journal: Path
) -> None:
    space = "finite" if name in ("GridSampler", "BruteForceSampler") else "open"
    trials = work_off(journal, 7, definition=define(spec(name), space))
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 7
    drawn = {tuple(trial.params.items()) for trial in trials}
    assert len(drawn) == 7
    for trial in trials:
        assert trial.params.keys() == define(space=space).space.keys()
        if name == "PartialFixedSampler":
            assert trial.params["model.depth"] == 4


@pytest.mark.parametrize(
    "name", ["NSGAIISampler", "NSGAIIISampler", "TPESampler", "GPSampler", "RandomSampler"]
)
def test_samplers_of_several_objectives(name: str, work_off: Any, define: Any, journal: Path) -> None:
    definition = define(spec(name), directions=("maximize", "minimize"))

    def launch(trial: ClaimedTrial) -> TrialResult:
        return TrialResult("finished", values=[trial.params["task.mixup"], trial.params["model.depth"]])

    trials = work_off(journal, 8, launch, definition=definition)
    assert [len(trial.values) for trial in trials] == [2] * 8


@pytest.mark.parametrize("name", PRUNERS)
def test_every_pruner_prunes_by_its_name(name: str, work_off: Any, define: Any, journal: Path) -> None:
    """Trials of which the even ones do well; what prunes at all prunes only the others."""
    pruner = {"name": name, **ARGUMENTS.get(name, {})}

    def launch(trial: ClaimedTrial) -> TrialResult:
        storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(journal)))
        job = trial_of(storage, "study", trial.number, pruner)
        assert job.params == trial.params
        good = trial.number % 2 == 0
        for permille in (250, 500, 750, 1000):
            job.report((permille / 1000 if good else 1e-4 * permille), permille)
            if permille < 1000 and job.should_prune():
                return TrialResult("pruned")
        return TrialResult("finished", values=[1.0 if good else 0.1])

    definition = define("RandomSampler", pruner=pruner)
    trials = work_off(journal, 8, launch, definition=definition)
    pruned = {trial.number for trial in trials if trial.state == TrialState.PRUNED}
    if name == "ThresholdPruner":  # which knows no other trials
        assert pruned == set(range(8))
    else:
        assert all(number % 2 for number in pruned)
    assert bool(pruned) == (name not in ("NopPruner", "PatientPruner", "WilcoxonPruner"))


def test_no_pruner_prunes_nothing() -> None:
    assert isinstance(build_pruner(None), optuna.pruners.NopPruner)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            {"name": "TPESampeler"},
            r"s\.name=TPESampeler is unknown\. Did you mean 'TPESampler'\? Known: Brute",
        ),
        ({}, r"s\.name=None is unknown"),
        (
            {"name": "TPESampler", "sed": 1},
            r"s\.sed is not an argument of TPESampler\. Did you mean 'seed'\?",
        ),
        ({"name": "PartialFixedSampler", "seed": 0}, "Known: fixed_params, base_sampler"),
        ({"name": "PartialFixedSampler"}, "PartialFixedSampler rejects its arguments"),
        (
            {"name": "CmaEsSampler", "independent_sampler": {"name": "Rndom"}},
            r"s\.independent_sampler\.name=Rnd",
        ),
        (
            {"name": "NSGAIISampler", "population_size": 1},
            "NSGAIISampler rejects its arguments: .*population",
        ),
    ],
)
def test_what_is_wrong_is_told_with_the_nearest_match(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(optuna.samplers, wrong, "s")


def test_a_wrong_pruner_is_told_too() -> None:
    with pytest.raises(UserError, match=r"name=Median is unknown\. Did you mean 'MedianPruner'"):
        build_pruner({"name": "Median"})
    with pytest.raises(UserError, match="rejects its arguments"):
        build_pruner({"name": "ThresholdPruner"})
    inner = {"name": "PatientPruner", "pacience": 1}
    with pytest.raises(UserError, match=r"wrapped_pruner\.pacience is not an argument of PatientPruner"):
        build_pruner({"name": "PatientPruner", "patience": 1, "wrapped_pruner": inner})


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class Needy(optuna.samplers.RandomSampler):
        def __init__(self) -> None:
            raise ImportError("No module named 'cmaes'")

    monkeypatch.setattr(optuna.samplers, "CmaEsSampler", Needy)
    with pytest.raises(UserError, match=r"CmaEsSampler needs a package: .*cmaes.*bitexp\[sweep\]"):
        build(optuna.samplers, {"name": "CmaEsSampler"}, "s")


@pytest.mark.parametrize(
    ("distribution", "expected"),
    [
        (CategoricalDistribution(["a", 2, None]), ["a", 2, None]),
        (IntDistribution(1, 7, step=3), [1, 4, 7]),
        (FloatDistribution(0.1, 0.4, step=0.1), [0.1, 0.2, 0.3, 0.4]),
        (FloatDistribution(2.0, 2.0, step=0.5), [2.0]),
    ],
)
def test_the_points_of_a_grid(distribution: Any, expected: list[Any]) -> None:
    found = values(distribution)
    assert found == pytest.approx(expected) if isinstance(expected[0], float) else found == expected
    assert all(distribution._contains(distribution.to_internal_repr(value)) for value in found)


@pytest.mark.parametrize("open_ended", [FloatDistribution(0, 1), IntDistribution(1, 100, log=True)])
def test_an_interval_has_no_end_of_points(open_ended: Any) -> None:
    with pytest.raises(
        UserError, match=r"a grid needs values to choose from.*write choice\(\.\.\.\) or range"
    ):
        values(open_ended)


# the same draws

SAME = ["RandomSampler", "QMCSampler", "GridSampler", "BruteForceSampler", "PartialFixedSampler"]


def space_of(name: str) -> str:
    return "finite" if name in ("GridSampler", "BruteForceSampler") else "open"


@pytest.mark.parametrize("name", SAME)
def test_draws_are_the_same_in_parallel_and_after_kills(
    name: str, work_off: Any, define: Any, start: Any, journal: Path, draws: Any
) -> None:
    definition = define(spec(name), space_of(name))
    undisturbed = draws(work_off(journal.with_name("undisturbed"), 9, definition=definition))
    assert len({tuple(params.items()) for params in undisturbed}) == 9
    threads = draws(work_off(journal.with_name("threads"), 9, workers=3, definition=definition))
    assert threads == undisturbed

    def launch(trial: ClaimedTrial) -> TrialResult:
        if trial.begun == 1 and trial.number in (1, 4, 8):
            os.kill(os.getpid(), signal.SIGKILL)
        return (
            TrialResult("failed", "diverged") if trial.number == 5 else TrialResult("finished", values=[1.0])
        )

    codes = [start(lambda: work_off(journal, 9, launch, definition=definition)).wait().code for _ in range(4)]
    assert codes == [-signal.SIGKILL] * 3 + [0]
    assert draws(work_off(journal, 9, definition=definition)) == undisturbed


@pytest.mark.parametrize("name", [*SAME, "TPESampler"])
@pytest.mark.parametrize("moment", others_slow(range(1, 12), [4]))
def test_a_worker_killed_while_it_draws_leaves_the_draw_to_the_next(
    name: str, moment: int, work_off: Any, define: Any, start: Any, journal: Path, draws: Any
) -> None:
    """Killed after any of the first entries that its third trial makes in the journal."""
    definition = define(spec(name) if name != "TPESampler" else name, space_of(name))
    undisturbed = draws(work_off(journal.with_name("undisturbed"), 4, definition=definition))
    write, left = JournalStorage._write_log, [moment]

    def work() -> None:
        def write_and_die(self: Any, *arguments: Any) -> None:
            write(self, *arguments)
            if counting:
                left[0] -= 1
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        JournalStorage._write_log = write_and_die  # type: ignore[method-assign]
        counting: list[int] = []

        def launch(trial: ClaimedTrial) -> TrialResult:
            if trial.number == 1:
                counting.append(1)
            return TrialResult("finished", values=[1.0])

        work_off(journal, 4, launch, definition=definition)

    code = start(work).wait().code
    assert code == -signal.SIGKILL
    trials = work_off(journal, 4, definition=definition)
    assert draws(trials) == undisturbed
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 4


def test_studies_of_neighbouring_seeds_draw_nothing_alike(
    work_off: Any, define: Any, tmp_path: Path, draws: Any
) -> None:
    seen: list[float] = []
    for seed in range(3):
        definition = define({"name": "RandomSampler", "seed": seed})
        seen += [p["optimizer.lr"] for p in draws(work_off(tmp_path / str(seed), 6, definition=definition))]
    assert len(set(seen)) == 18


def test_keys_of_one_trial_are_drawn_apart(work_off: Any, define: Any, journal: Path, draws: Any) -> None:
    space = {name: FloatDistribution(0, 1) for name in ("a", "b")}
    for params in draws(work_off(journal, 6, definition=define(space=space))):
        assert params["a"] != params["b"]


def test_without_a_seed_every_study_is_another(
    work_off: Any, define: Any, tmp_path: Path, draws: Any
) -> None:
    definition = define({"name": "RandomSampler", "seed": None})
    one, two = (draws(work_off(tmp_path / name, 3, definition=definition)) for name in "ab")
    assert one != two


def test_a_sampler_that_learns_learns(work_off: Any, define: Any, journal: Path) -> None:
    """TPE, drawing with a fresh generator for each trial, still homes in on the best."""
    space = {"x": FloatDistribution(0, 1)}

    def launch(trial: ClaimedTrial) -> TrialResult:
        return TrialResult("finished", values=[-((trial.params["x"] - 0.7) ** 2)])

    definition = define({"name": "TPESampler", "seed": 0, "n_startup_trials": 8}, space)
    trials = work_off(journal, 40, launch, definition=definition)
    early, late = (
        sum(abs(trial.params["x"] - 0.7) for trial in part) / len(part) for part in (trials[:8], trials[-16:])
    )
    assert late < early / 2


def test_the_sampler_of_a_study_draws_for_the_space_of_the_study(define: Any) -> None:
    sampler = PerCell({"name": "GridSampler", "seed": 0}, define(space="finite").space)
    assert sampler.spec["search_space"] == {
        "quantizer": ["full", "binary", "ternary_mean"],
        "model.depth": [2, 4, 6, 8],
    }
