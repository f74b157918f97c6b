import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import psutil
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from synthetic import gaussian_classes
from torch import nn

from lecture6.checkpoints import Checkpoint
from lecture6.models import local_seed, mlp
from lecture6.parallel import WorkerError, from_torchrun, launch, train_parallel, unavailable
from lecture6.schedules import compose, step_decay, warmup
from lecture6.train import DivergenceError, sample_batches, train

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(sys.platform == "win32", reason="no workers on Windows"),
]
DATA = gaussian_classes(50, 2300, shape=(5,), n_classes=3)  # 3 evaluation batches of the test set
DATA = replace(DATA, x_train=DATA.x_train.double(), x_test=DATA.x_test.double())
GOYAL = {  # §2.2: momentum, weight decay, a gradual warm-up to kη and a step
    "momentum": 0.9,
    "weight_decay": 0.01,
    "schedule": compose(warmup(2, start=0.5), step_decay((3,))),
}


def softmax_net():
    with local_seed(0):
        return nn.Linear(5, 3).double()


def norm_net(**options):
    with local_seed(0):
        norm = nn.BatchNorm1d(4, **options)
        return nn.Sequential(nn.Linear(5, 4), norm, nn.ReLU(), nn.Linear(4, 3)).double()


def dropout_net():
    with local_seed(0):
        return nn.Sequential(nn.Dropout(0.5), nn.Linear(5, 3)).double()


class Witness(nn.Module):
    """A linear net that keeps the samples it was trained on, a forward pass at a time."""

    def __init__(self):
        super().__init__()
        self.net, self.seen = softmax_net(), []

    def forward(self, x):
        if self.training:
            self.seen.append(x.detach().clone())
        return self.net(x)


@pytest.fixture(autouse=True)
def nothing_left(tmp_path, monkeypatch):
    """After each test: no worker, no folder, no port."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    ports = listening()
    yield
    assert workers_of(os.getpid()) == []
    assert list((tmp_path / "temporary").glob("lecture6-*")) == []
    assert listening() == ports


def listening():
    mine = psutil.Process()
    processes = [mine, *mine.children(recursive=True)]
    found = [c for p in processes for c in p.net_connections() if c.status == psutil.CONN_LISTEN]
    return {c.laddr for c in found}


def workers_of(pid):
    children = psutil.Process(pid).children(recursive=True)
    return [p for p in children if "lecture6.parallel" in p.cmdline()]


# ---- the same weights as one process ----------------------------------------------------------


OPTIONS = {"lr": 0.1, "epochs": 4, "device": "cpu", "batch_size": 18}  # 50 = 18 + 18 + 14
CASES = {
    "sgd": (softmax_net, {}),
    "goyal": (softmax_net, GOYAL),
    "a last batch of 8": (softmax_net, {"batch_size": 42, "momentum": 0.9, "nesterov": True}),
    "adam": (softmax_net, {"optimizer": "adam"}),
    "with replacement": (softmax_net, {"sampling": "with_replacement"}),
    "some evaluations": (softmax_net, {"evaluate_every": 3}),
    "patience": (softmax_net, {"schedule": step_decay((1,), 1e-12), "epochs": 9, "patience": 2}),
    "batch norm": (lambda: norm_net(track_running_stats=False), GOYAL),
    "running batch norm": (norm_net, GOYAL),
    "cumulative batch norm": (lambda: norm_net(momentum=None), {}),
}
GROUPS = [2, 3]
PATIENCE = 600.0  # seconds to import torch, on a busy machine


def gradients(group, net):
    """The sum over workers of the gradients of their losses, normalised by kn, and by n."""
    batch = torch.arange(18)
    share = batch.tensor_split(group.size)[group.rank]
    found = []
    for normaliser in (len(batch), len(share)):
        net.zero_grad()
        loss = F.cross_entropy(net(DATA.x_train[share]), DATA.y_train[share], reduction="sum")
        (loss / normaliser).backward()
        for p in net.parameters():
            dist.all_reduce(p.grad)
        found.append(torch.cat([p.grad.flatten() for p in net.parameters()]))
    return found


def environment(group):
    return group.rank, group.size, str(group.device)


def train_all(group, nets):
    """One start of the workers for all that ends well: seconds each are for their imports."""
    runs = {"environment": environment(group), "gradients": gradients(group, softmax_net())}
    for case, (_, options) in CASES.items():
        runs[case] = train(nets[case], DATA, **OPTIONS | options, group=group)
    runs["accumulated"] = train(nets["sgd"], DATA, **OPTIONS, micro_batch=2, group=group)
    runs["dropout"] = train(dropout_net(), DATA, **OPTIONS, momentum=0.9, group=group)
    runs["witness"] = train(Witness(), DATA, **OPTIONS, group=group)
    return runs


@pytest.fixture(scope="module")
def started():
    nets = {case: make() for case, (make, _) in CASES.items()}
    return {k: launch(train_all, nets, workers=k, timeout=PATIENCE) for k in GROUPS}


def assert_equal(ours, theirs):
    close = {"rtol": 1e-10, "atol": 1e-10}
    torch.testing.assert_close(ours.w, theirs.w, **close)
    torch.testing.assert_close(ours.w0, theirs.w0, **close)
    torch.testing.assert_close(ours.model.state_dict(), theirs.model.state_dict(), **close)
    assert (ours.n_updates, ours.stopped) == (theirs.n_updates, theirs.stopped)
    assert list(ours.history.columns) == list(theirs.history.columns)
    for column in ours.history:
        found, expected = ours.history[column].tolist(), theirs.history[column].tolist()
        assert found == (pytest.approx(expected, abs=1e-10) if column != "split" else expected)


@pytest.mark.slow
@pytest.mark.parametrize("k", GROUPS)
@pytest.mark.parametrize("case", CASES)
def test_k_workers_of_n_are_one_process_of_kn(case, k, started):
    make, options = CASES[case]
    options = OPTIONS | options
    alone = train(make(), DATA, **options, micro_batch=options["batch_size"] // k)
    whole = train(make(), DATA, **options)
    for runs in started[k]:  # all workers have it
        assert_equal(runs[case], alone)
    if "batch norm" in case:  # n samples are normalised together, not kn
        assert (whole.w - alone.w).norm() > 0.01 * (whole.w - whole.w0).norm()
    else:
        assert_equal(runs[case], whole)
    assert (alone.w - alone.w0).norm() > 0.01


@pytest.mark.slow
@pytest.mark.parametrize("k", GROUPS)
def test_a_worker_may_accumulate(k, started):
    assert_equal(started[k][0]["accumulated"], train(softmax_net(), DATA, **OPTIONS))


@pytest.mark.slow
@pytest.mark.parametrize("k", GROUPS)
def test_workers_draw_dropout_for_themselves_and_step_together(k, started):
    runs = [worker["dropout"] for worker in started[k]]
    assert all(torch.equal(run.w, runs[0].w) for run in runs)
    alone = train(dropout_net(), DATA, **OPTIONS, momentum=0.9)
    assert (alone.w - runs[0].w).norm() > 1e-3  # other masks


@pytest.mark.slow
@pytest.mark.parametrize("k", GROUPS)
def test_the_workers_shares_are_a_partition_of_one_shuffle(k, started):
    """Goyal et al., remark 4: the mini-batch of the update is what the workers saw, in order."""
    seen = [worker["witness"].model.seen for worker in started[k]]
    generator = torch.Generator().manual_seed(0)
    for epoch in range(OPTIONS["epochs"]):
        batches = list(sample_batches(50, 18, generator=generator))
        assert sorted(torch.cat(batches).tolist()) == list(range(50))
        for i, batch in enumerate(batches, epoch * len(batches)):
            assert torch.equal(torch.cat([shares[i] for shares in seen]), DATA.x_train[batch])


@pytest.mark.slow
@pytest.mark.parametrize("k", GROUPS)
def test_normalising_by_n_would_give_k_times_the_gradient(k, started):
    """Goyal et al., remark 3."""
    net = softmax_net()
    loss = F.cross_entropy(net(DATA.x_train[:18]), DATA.y_train[:18])
    whole = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(net.parameters()))])
    for worker in started[k]:
        by_kn, by_n = worker["gradients"]
        torch.testing.assert_close(by_kn, whole, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(by_n, k * whole, rtol=1e-12, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("k", GROUPS)
def test_ranks(k, started):
    found = [worker["environment"] for worker in started[k]]
    assert found == [(rank, k, "cpu") for rank in range(k)]


@pytest.mark.slow
def test_train_parallel_gives_the_run_of_one_process():
    options = OPTIONS | GOYAL
    started = time.perf_counter()
    ours = train_parallel(norm_net(), DATA, workers=2, **options)
    assert 0 < ours.seconds < time.perf_counter() - started
    assert_equal(ours, train(norm_net(), DATA, **options, micro_batch=9))
    assert not ours.model.training


@pytest.mark.slow
def test_a_resumed_run_with_dropout_is_the_uninterrupted_one(tmp_path, started):
    straight = started[2][0]["dropout"]
    options = OPTIONS | {"momentum": 0.9, "workers": 2, "checkpoint": tmp_path / "run.pt"}
    train_parallel(dropout_net(), DATA, **options | {"epochs": 2})
    resumed = train_parallel(dropout_net(), DATA, **options)
    assert torch.equal(resumed.w, straight.w)
    assert resumed.history.equals(straight.history)
    saved = Checkpoint(options["checkpoint"], {}).load()["progress"]
    assert saved[0] == 4
    assert saved[3] == resumed.seconds
    with pytest.raises(ValueError, match="workers: 2 there, 1 here"):
        train(dropout_net(), DATA, **OPTIONS, momentum=0.9, checkpoint=options["checkpoint"])


# ---- what goes wrong ---------------------------------------------------------------------------


class Trouble(nn.Module):
    """A net of which rank 1 does ``what`` at its fifth update, in the middle of an epoch."""

    def __init__(self, what):
        super().__init__()
        self.net, self.what, self.updates = softmax_net(), what, 0

    def forward(self, x):
        self.updates += self.training
        if self.updates == 5 and dist.get_rank() == 1:
            self.what()
        return self.net(x)


class UnpicklableError(Exception):
    def __reduce__(self):
        raise TypeError("cannot be pickled")


class OfThreeArgumentsError(ValueError):
    def __init__(self, a, b, c):
        super().__init__(f"{a}{b}{c}")


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def leave():
    os.write(2, b"the disk is full\n")
    os._exit(3)


def leave_in_peace():
    sys.exit(0)


def stop():
    os.kill(os.getpid(), signal.SIGSTOP)


def sleep():
    time.sleep(1000)


def raise_value_error():
    raise ValueError("the sample is green")


def raise_unpicklable():
    raise UnpicklableError("green")


def raise_of_three_arguments():
    raise OfThreeArgumentsError("g", "re", "en")


TROUBLES = {
    kill: (WorkerError, r"^worker 1 of 2 was killed by SIGKILL; set LECTURE6_ONE_PROCESS=1"),
    leave: (WorkerError, r"^worker 1 of 2 ended with exit code 3 .*\n.*the disk is full"),
    leave_in_peace: (WorkerError, r"^worker 1 of 2 ended with exit code 0 and without a result"),
    stop: (WorkerError, r"^worker 0 of 2 raised RuntimeError: .*; another worker hangs, or give a"),
    sleep: (WorkerError, r"^worker 0 of 2 raised RuntimeError: .* a longer timeout than 20"),
    raise_value_error: (ValueError, r"^the sample is green\nraised in worker 1 of 2:"),
    raise_unpicklable: (WorkerError, r"^worker 1 of 2 raised UnpicklableError: green\n"),
    raise_of_three_arguments: (
        WorkerError,
        r"^worker 1 of 2 raised OfThreeArgumentsError: green\n",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("what", TROUBLES)
def test_a_worker_in_trouble_is_named(what):
    """In every case the job ends, and no process or file is left (see ``nothing_left``)."""
    kind, message = TROUBLES[what]
    started = time.monotonic()
    timeout = 20 if what in (stop, sleep) else PATIENCE
    with pytest.raises(kind) as caught:
        train_parallel(Trouble(what), DATA, workers=2, timeout=timeout, **OPTIONS)
    assert time.monotonic() - started < 90  # not the 1,000 s of sleep
    told = "\n".join([str(caught.value), *getattr(caught.value, "__notes__", [])])
    assert re.search(message, told), told
    if "raised" in message and "worker 1" in message:
        assert f"in {what.__name__}" in told  # where


def die_after_touching(path):
    path.touch()
    kill()


@pytest.mark.slow
def test_a_death_is_noticed_within_seconds(tmp_path):
    """Counted from the death itself: how long a busy machine takes to start is not asked."""
    death = tmp_path / "death"
    with pytest.raises(WorkerError):
        train_parallel(
            Trouble(partial(die_after_touching, death)), DATA, workers=2, timeout=600, **OPTIONS
        )
    assert time.time() - death.stat().st_mtime < 5


@pytest.mark.slow
def test_divergence_in_a_worker_is_divergence():
    with pytest.raises(DivergenceError, match=r"at update \d+ with lr 1e\+30 .* smaller learning"):
        train_parallel(mlp(5, 8, 3).double(), DATA, workers=2, **OPTIONS | {"lr": 1e30})


ORPHANS = """
import signal, time
from lecture6.parallel import launch
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored by what a shell starts with &
def work(group):
    while True:
        print("working", flush=True)
        time.sleep(0.1)
launch(work, workers={workers})
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sent", "n"), [(signal.SIGKILL, 2), (signal.SIGINT, 1), (signal.SIGTERM, 1)]
)
def test_workers_do_not_outlive_their_parent(sent, n, tmp_path):
    temporary = tmp_path / "temporary"
    parent = subprocess.Popen(
        [sys.executable, "-c", ORPHANS.format(workers=n)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"TMPDIR": str(temporary)},
    )
    parent.stdout.readline()
    workers = workers_of(parent.pid)
    assert len(workers) == n
    parent.send_signal(sent)
    parent.wait(timeout=PATIENCE)
    _, alive = psutil.wait_procs(workers, timeout=5)
    assert alive == []
    assert list(temporary.iterdir()) == []


# ---- starting, and not -------------------------------------------------------------------------


NOTEBOOK = """
from lecture6.parallel import launch
factor = 3
class Answer:
    def __init__(self, x): self.x = x
def function(group, x):
    return Answer(factor * group.sum(x) + group.rank), torch.get_num_threads()
import torch
answers = launch(function, torch.ones(2), workers=2, threads=3)
assert all(isinstance(a, Answer) for a, _ in answers)
print([(a.x.tolist(), threads) for a, threads in answers])
"""


@pytest.mark.slow
def test_a_function_of_a_notebook_will_do_on_as_many_threads_as_are_asked_for():
    command = [sys.executable, "-c", NOTEBOOK]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[([6.0, 6.0], 3), ([7.0, 7.0], 3)]", done.stderr


@pytest.mark.parametrize("why", ["variable", "no python"])
def test_without_workers_one_process_does_it(why, monkeypatch):
    if why == "variable":
        monkeypatch.setenv("LECTURE6_ONE_PROCESS", "1")
    else:
        monkeypatch.setattr(sys, "executable", "/nowhere/python")
    message = {"variable": "one process: .* LECTURE6_ONE_PROCESS is set", "no python": "/nowhere/"}
    with pytest.warns(UserWarning, match=message[why]):
        ours = train_parallel(norm_net(), DATA, workers=2, **OPTIONS | GOYAL)
    assert_equal(ours, train(norm_net(), DATA, **OPTIONS | GOYAL, micro_batch=9))


def test_what_makes_workers_unavailable(monkeypatch):
    assert unavailable() is None
    monkeypatch.setattr(sys, "platform", "win32")
    assert "win32" in unavailable()
    monkeypatch.undo()
    monkeypatch.setattr(dist, "is_gloo_available", lambda: False)
    assert "gloo" in unavailable()


TORCHRUN = """
import sys, torch
sys.path.insert(0, {tests!r})
from test_parallel import DATA, GOYAL, OPTIONS, norm_net
from lecture6.parallel import from_torchrun
from lecture6.train import train
with from_torchrun() as group:
    run = train(norm_net(), DATA, **OPTIONS | GOYAL, group=group)
    torch.save(run.w, f"w{{group.rank}}.pt")
"""


@pytest.mark.slow
def test_torchrun_gives_the_same_weights(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(TORCHRUN.format(tests=str(Path(__file__).parent)))
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [sys.executable, "-m", *torchrun, str(script)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path / "torchrun")}
    (tmp_path / "torchrun").mkdir()
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    alone = train(norm_net(), DATA, **OPTIONS | GOYAL, micro_batch=9)
    for rank in (0, 1):
        torch.testing.assert_close(
            torch.load(tmp_path / f"w{rank}.pt"), alone.w, rtol=1e-10, atol=1e-10
        )


def test_a_script_without_torchrun_is_told_how_to_start():
    with (
        pytest.raises(RuntimeError, match=r"RANK.* start the script with 'torchrun"),
        from_torchrun(),
    ):
        pass


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workers": 0}, "workers must be at least 1, got 0"),
        ({"batch_size": 17}, "batch_size 17 cannot be divided among 2 .* such as 18"),
        ({"workers": 3, "batch_size": 48}, "last batch of 2 of the 50 .* 3 workers; choose"),
        ({"timeout": 0}, "timeout must be a finite number and above 0, got 0"),
        ({"micro_batch": 3}, "takes no micro_batch: leave it out"),
    ],
)
def test_impossible_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        train_parallel(softmax_net(), DATA, **OPTIONS | {"workers": 2} | options)


def test_one_sample_a_worker_is_refused_where_batch_norm_would_fail():
    with pytest.raises(ValueError, match="a batch of 1 sample of the 50"):
        train_parallel(norm_net(), DATA, workers=2, **OPTIONS | {"batch_size": 16})


@pytest.mark.parametrize("options", [{"workers": 0}, {"workers": 1, "threads": 0}])
def test_impossible_launches_are_refused(options):
    with pytest.raises(ValueError, match=r"(workers|threads) must be at least 1, got 0"):
        launch(environment, **options)
