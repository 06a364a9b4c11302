from __future__ import annotations

import json
import logging
import os
import random
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from studies import job_tasks

from lightning_cnnviz.studies import jobs as jobs_module
from lightning_cnnviz.studies.jobs import Job, JobsFailedError, read_result, run_jobs


def work(count: int = 4, task: Callable[..., Any] = job_tasks.draw, context: Any = None, **more: Any) -> list[Job]:
    return [Job(f"seed {seed}", task, {"seed": seed, **more}, context) for seed in range(count)]


def made(folder: Path) -> list[int]:
    file = folder / "made.txt"
    return sorted(int(line.split()[0]) for line in file.read_text().splitlines()) if file.exists() else []


def run(folder: Path, tasks: list[Job], **options: Any) -> list[dict[str, Any]]:
    return run_jobs(tasks, folder / "results", progress=False, **options)


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


# --- descriptions ---


@given(st.dictionaries(st.text(), PLAIN, max_size=4))
def test_the_key_does_not_depend_on_order_nor_on_passing_through_json(description: dict[str, Any]) -> None:
    job = Job("one", job_tasks.draw, description)
    again = Job("two", job_tasks.draw, json.loads(json.dumps(dict(reversed(description.items())))), context="other")
    assert job.key == again.key
    assert job.key != Job("one", job_tasks.threads, description).key
    assert job.key != Job("one", job_tasks.draw, {**description, "and": 1}).key or "and" in description


def test_keys_are_the_same_in_every_process() -> None:
    # Were they not, no study could go on where it was interrupted.
    assert Job("one", job_tasks.draw, {"seed": 1, "b": [1.5, None], "a": {"x": "ü"}}).key == "f9a110efb18fa953d8b2"


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ({"weights": torch.zeros(2)}, r"description\['weights'\] is a Tensor; a job's description and result are of"),
        ({"a": [1, {"b": Path("x")}]}, r"description\['a'\]\[1\]\['b'\] is a .*Path"),
        ({"a": {1: 2}}, "has the key 1; the keys"),
    ],
)
def test_descriptions_are_plain(description: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        _ = Job("one", job_tasks.draw, description).key


# --- results and their files ---


def test_results_are_kept_and_found_again(tmp_path: Path) -> None:
    first = run(tmp_path, work(context=tmp_path))
    assert len({found["value"] for found in first}) == 4
    assert made(tmp_path) == [0, 1, 2, 3]
    # Not made again; and in the order in which they are asked for, twice if asked for twice.
    jobs = work(context=tmp_path)
    assert run(tmp_path, [*reversed(jobs), jobs[1]]) == [*reversed(first), first[1]]
    assert made(tmp_path) == [0, 1, 2, 3]
    files = sorted(path.name for path in (tmp_path / "results").iterdir())
    assert files == sorted(job.file for job in jobs)


@pytest.mark.parametrize(
    "content", ["", '{"job": {"fo', "[]", "null", '{"job": {}, "result": {}}', '{"result": {"value": 1}}', "\x00\xff"]
)
def test_damaged_files_are_made_anew(tmp_path: Path, content: str, caplog: pytest.LogCaptureFixture) -> None:
    jobs = work(2, context=tmp_path)
    before = run(tmp_path, jobs)
    (tmp_path / "results" / jobs[1].file).write_bytes(content.encode("latin-1"))
    with caplog.at_level(logging.WARNING):
        assert run(tmp_path, jobs) == before
    assert made(tmp_path) == [0, 1, 1]
    assert jobs[1].key in caplog.text
    assert read_result(tmp_path / "results", jobs[1]) == before[1]


@pytest.mark.fault(
    "stale",
    "a study's stored result is valid JSON, but damaged: words for numbers, missing keys, NaN",
    "it is named, set aside and made again",
)
@pytest.mark.parametrize(
    ("result", "said"),
    [
        ('{"value": "high", "other": 0.5}', "has 'high' for 'value', a number"),
        ('{"other": 0.5}', "has 'None' for 'value', a number"),
        ('{"value": NaN, "other": 0.5}', "has 'nan' for 'value', a number"),
        ('{"value": true, "other": 0.5}', "has 'True' for 'value', a number"),
        (f'{{"value": {"[" * 100_000}{"]" * 100_000}}}', "is damaged"),
    ],
)
def test_damaged_results_of_valid_json_are_set_aside_and_made_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, result: str, said: str
) -> None:
    (job,) = [Job("one", job_tasks.draw, {"seed": 0}, tmp_path, numbers=("value", "other"))]
    before = run(tmp_path, [job])
    file = tmp_path / "results" / job.file
    content = json.loads(file.read_text())
    spoiled = json.dumps({**content, "result": 0}).replace('"result": 0', f'"result": {result}')
    file.write_text(spoiled)
    with caplog.at_level(logging.WARNING):
        assert run(tmp_path, [job]) == before
    assert said in caplog.text
    assert f"it is kept as {job.key}.damaged" in caplog.text
    assert file.with_suffix(".damaged").read_text() == spoiled
    assert made(tmp_path) == [0, 0]


@pytest.mark.fault(
    "stale",
    "a study's results of equal names were made from other data, networks or library versions",
    "they are not used, and one line says what differs and in how many",
)
def test_what_tells_results_of_one_name_apart_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run(tmp_path, work(2, context=tmp_path, data={"images": "a", "name": None}))
    with caplog.at_level(logging.WARNING):
        run(tmp_path, work(2, context=tmp_path, data={"images": "b", "name": None}))
    assert "results of the same name that are not used, since these differ: data.images (2)" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        run(tmp_path, work(3, context=tmp_path, data={"images": "b", "name": None}))
    assert caplog.text == ""
    assert made(tmp_path) == [0, 0, 1, 1, 2]


def test_another_description_is_another_result(tmp_path: Path) -> None:
    one, other = run(tmp_path, work(1)), run(tmp_path, work(1, seconds=0.0))
    assert one == other
    assert len(list((tmp_path / "results").glob("*.json"))) == 2


# --- whatever happens ---


@pytest.mark.fault(
    "processes",
    "a study is interrupted",
    "the next run makes what is missing, and nothing else",
)
def test_goes_on_where_it_was_interrupted(tmp_path: Path) -> None:
    jobs = work(5, job_tasks.interrupt_at, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, jobs)
    assert made(tmp_path) == [0, 1]
    (tmp_path / "go_on").touch()
    found = run(tmp_path, jobs)
    assert made(tmp_path) == [0, 1, 2, 3, 4]
    assert found == run(tmp_path, work(5))
    assert not list((tmp_path / "results").glob(".*"))


def test_a_failure_stops_no_other_job(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    jobs = work(5, job_tasks.fail_on_odd, tmp_path)
    with caplog.at_level(logging.ERROR), pytest.raises(JobsFailedError, match="2 of 5 jobs failed") as caught:
        run(tmp_path, jobs)
    assert "'seed 1': ValueError: no odd seeds such as 1" in str(caught.value)
    assert set(caught.value.failures) == {"seed 1", "seed 3"}
    assert caplog.text.count("Traceback") == 2
    assert made(tmp_path) == [0, 2, 4]
    with pytest.raises(JobsFailedError):
        run(tmp_path, jobs)
    assert made(tmp_path) == [0, 2, 4]  # those that were done stay so


def test_a_result_that_is_not_plain_is_a_failure(tmp_path: Path) -> None:
    with pytest.raises(JobsFailedError, match=r"result\['value'\] is a Tensor"):
        run(tmp_path, work(1, job_tasks.not_plain))
    assert not list((tmp_path / "results").iterdir())


def test_leaves_random_state_and_threads_alone(tmp_path: Path) -> None:
    torch_state, state, threads = torch.get_rng_state(), random.getstate(), torch.get_num_threads()
    (found,) = run(tmp_path, work(1, job_tasks.threads), threads=threads + 1)
    run(tmp_path, work(2))
    assert found == {"threads": threads + 1}
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert (random.getstate(), torch.get_num_threads()) == (state, threads)


def test_two_runs_that_meet_in_one_folder_share_the_work(tmp_path: Path) -> None:
    """Jobs hold a lock, so two threads of one process stand for two runs well; claims make them share."""
    jobs = work(8, context=tmp_path, seconds=0.05)
    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(run(tmp_path, jobs, threads=1))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found[0] == found[1] == run(tmp_path, work(8, seconds=0.05))
    # At most the last one is made twice.
    assert len(made(tmp_path)) <= 9
    assert sorted(set(made(tmp_path))) == list(range(8))


def test_stale_claims_hinder_nobody(tmp_path: Path) -> None:
    jobs = work(3, context=tmp_path)
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / f".{jobs[0].key}.claim").touch()
    run(tmp_path, jobs)
    # The claimed one came last.
    assert [line.split()[0] for line in (tmp_path / "made.txt").read_text().splitlines()] == ["1", "2", "0"]
    assert not list((tmp_path / "results").glob(".*"))


# --- several processes ---


@pytest.mark.fault(
    "processes",
    "a worker of a study is killed",
    "the others do its work, and the results are the same",
)
def test_several_processes_find_the_same_and_survive_a_death(tmp_path: Path) -> None:
    alone = run(tmp_path, work(6))
    for name in ("kill", "fail"):
        (tmp_path / name).mkdir()
    together = run(tmp_path / "kill", work(6, job_tasks.kill_once, tmp_path / "kill"), jobs=2)
    assert together == alone
    assert (tmp_path / "kill" / "killed").exists()
    processes = {line.split()[1] for line in (tmp_path / "kill" / "made.txt").read_text().splitlines()}
    assert str(os.getpid()) not in processes
    (found,) = run(tmp_path, work(1, job_tasks.threads), jobs=2)
    assert found == {"threads": max(1, joblib.cpu_count() // 2)}
    with pytest.raises(JobsFailedError, match="no odd seeds"):
        run(tmp_path, work(3, job_tasks.fail_on_odd), jobs=2)
    with pytest.raises(JobsFailedError, match=r"1 of 1 jobs failed .*'seed 0'.*its process died"):
        run(tmp_path / "fail", work(1, job_tasks.always_kill, tmp_path / "fail"), jobs=2)


# --- clusters ---


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_dask_cluster_that_loses_a_worker(tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed", reason="dask[distributed] is not installed")
    jobs = work(6, job_tasks.kill_once, tmp_path, seconds=0.05)
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=None, silence_logs=logging.CRITICAL
    ) as cluster:
        found = run(tmp_path, jobs, backend="dask", scheduler=cluster.scheduler_address)
    assert (tmp_path / "killed").exists()
    assert found == run(tmp_path / "alone", work(6, seconds=0.05))
    assert sorted(set(made(tmp_path))) == list(range(6))
    assert len(list((tmp_path / "results").glob("*.json"))) == 6
    # All are there: nothing is asked of the cluster, which is gone by now.
    assert run(tmp_path, jobs) == found


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"jobs": 0}, ValueError, "jobs=0: give a whole number of at least 1"),
        ({"jobs": True}, ValueError, "jobs=True: give a whole number"),
        ({"threads": 0}, ValueError, "threads=0"),
        ({"backend": "spark"}, ValueError, 'backend=\'spark\': give "processes", "dask" or "ray"'),
        ({"scheduler": "tcp://x"}, ValueError, "scheduler='tcp://x' is the address of a cluster: give backend="),
    ],
)
def test_refuses(tmp_path: Path, options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        run(tmp_path, work(1), **options)
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("backend", ["dask", "ray"])
def test_a_missing_package_is_named(tmp_path: Path, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs_module.importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(ImportError, match=rf'pip install "lightning_cnnviz\[{backend}\]"'):
        run(tmp_path, work(1), backend=backend)


def test_dask_without_a_cluster_says_what_is_missing(tmp_path: Path) -> None:
    pytest.importorskip("distributed", reason="dask[distributed] is not installed")
    with pytest.raises(ValueError, match='backend="dask" needs scheduler='):
        run(tmp_path, work(1), backend="dask")


def test_jobs_load_no_lightning() -> None:
    import subprocess

    code = "import sys, lightning_cnnviz.studies.jobs; print('lightning' in sys.modules, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
