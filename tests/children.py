"""The command in forked children: what is loaded here need not be loaded there again."""

import gc
import os
import signal
import sys
import time
import traceback

import torch
from accelerate.state import AcceleratorState, PartialState

from vizer_rl import cli


def start(arguments, prepare=lambda: None, output=None):
    """Fork a child of one thread that runs the command; its process id.

    prepare: called in the child before; output: the file that it prints to.
    """
    gc.collect()  # a child that frees an event loop of ours would take it from us: epoll is shared
    pid = os.fork()
    if pid == 0:
        code = 70
        try:
            if output is not None:
                sys.stdout = sys.stderr = output.open("w", buffering=1)
                os.dup2(sys.stdout.fileno(), 1)  # for what is printed by no Python
                os.dup2(sys.stdout.fileno(), 2)
            torch.set_num_threads(1)
            prepare()
            code = cli.main(arguments)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code or 0)
    return pid


def ended(pid, limit=240):
    """The exit code of a child, negative where a signal ended it; one that is late is killed."""
    deadline = time.monotonic() + limit
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise AssertionError(f"process {pid} did not end within {limit} s")


def in_child(arguments, prepare=lambda: None, limit=240):
    """Run the command in a child; its exit code, negative where a signal ended it."""
    return ended(start(arguments, prepare), limit)


def start_pair(arguments, folder, port, prepare=lambda rank: None):
    """Two processes of one run, as a launcher starts them; their ids. They print to folder/RANK."""

    def enter(rank):
        PartialState._reset_state()  # a run in this process before has had one process
        AcceleratorState._reset_state(reset_partial_state=True)
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        prepare(rank)

    folder.mkdir(parents=True, exist_ok=True)
    return [
        start(arguments, lambda rank=rank: enter(rank), folder / str(rank)) for rank in range(2)
    ]
