"""The W&B run of a training: opened, written to through a guard, closed in bounded time."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from transformers.integrations import WandbCallback

from ..errors import masked
from ..files import write_text
from .tracking import read_tracked

START_SECONDS, FINISH_SECONDS = 30.0, 60.0  # that W&B has to begin, and to take the rest


@contextmanager
def wandb_folders(**folders: Path) -> Iterator[None]:
    """Folders that wandb and the process it starts use instead of the user's, by variable."""
    before = {name: os.environ.get(name) for name in folders}
    os.environ.update({name: str(folder.absolute()) for name, folder in folders.items()})
    try:
        yield
    finally:
        for name in folders:
            os.environ.pop(name)
        os.environ.update({name: value for name, value in before.items() if value is not None})


def start_wandb(mode: str, project: str, directory: Path, config: dict[str, Any]) -> str:
    """Open the W&B run that `wandb_log` then writes to; off: nothing.

    A server that cannot be reached turns the run offline: returns a line that says so, else "".
    """
    if mode == "off":
        return ""
    import wandb

    before = read_tracked(directory)
    run_id = before.id if before else None  # a run that goes on is the same run there
    try:
        _open_wandb(mode, project, directory, config, run_id)
    except (wandb.errors.CommError, wandb.errors.UsageError, OSError) as error:
        _open_wandb("offline", project, directory, config, run_id)
        return f"W&B cannot be reached ({_first_line(error)}): this run is recorded offline\n"
    return ""


def _open_wandb(
    mode: Any, project: str, directory: Path, config: dict[str, Any], run_id: str | None
) -> None:
    """Open a W&B run, none yet or this one, and write wandb.json."""
    import wandb

    settings = wandb.Settings(
        silent=True,
        console="off",
        init_timeout=START_SECONDS,
        finish_timeout=FINISH_SECONDS,
        finish_timeout_raises=True,
        disable_git=True,  # an address of a remote may hold a password; the commit is recorded
        disable_code=True,
    )
    run = wandb.init(
        project=project,
        id=run_id,
        resume="allow",
        name=directory.name,
        dir=str(directory.absolute()),  # its process may stand elsewhere
        config=config,
        mode=mode,
        settings=settings,
    )
    url = run.url if mode == "online" else None
    about = {"mode": mode, "url": url, "dir": str(Path(run.dir).parent), "id": run.id}
    write_text(directory / "wandb.json", json.dumps(about, indent=1))


def _first_line(error: Exception) -> str:
    return masked((str(error).splitlines() or [type(error).__name__])[0])


class WandbSender(WandbCallback):
    """transformers' W&B callback, whose faults no run dies of.

    Where W&B's own process has ended, the run goes on offline. Where its server is away, numbers
    wait on the disk, and what W&B first asks it about, as an artifact, is left out.
    """

    def __init__(self, directory: Path, warn: Callable[[str], object]) -> None:
        """warn: takes a sentence."""
        super().__init__()
        self.directory, self.warn, self.away = directory, warn, False

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self._send(super().on_train_begin, *args, **kwargs)

    def on_log(self, *args: Any, **kwargs: Any) -> None:
        self._send(super().on_log, *args, **kwargs)

    def _send(self, call: Callable[..., None], *args: Any, **kwargs: Any) -> None:
        from wandb.errors import Error
        from wandb.sdk.mailbox import HandleAbandonedError, MailboxClosedError

        try:
            call(*args, **kwargs)
        except Error as error:
            if not self.away:
                self.warn(
                    f"W&B cannot be reached ({_first_line(error)}): tables and files are left out "
                    "while it is away, numbers are kept and sent when it is back"
                )
            self.away = True
        except (ConnectionError, HandleAbandonedError, MailboxClosedError) as error:
            self.warn(go_on_offline(self.directory, error))
            self._initialized = False  # transformers' own: the axes are to be defined again
            call(*args, **kwargs)


def go_on_offline(directory: Path, error: Exception) -> str:
    """Open W&B's run anew, offline, where its process has died; a sentence that says so."""
    import wandb

    before: Any = wandb.run
    with suppress(ConnectionError, SystemExit):  # of a service that is not there any more
        wandb.teardown()
    _open_wandb("offline", before.project, directory, dict(before.config), before.id)
    return (
        f"W&B's own process has ended ({_first_line(error)}): the run is recorded offline from "
        f"here on; what it had before: wandb sync {shlex.quote(str(Path(before.dir).parent))}"
    )


def finish_wandb(mode: str) -> str:
    """Close the W&B run, if there is one; a line where W&B did not take all of it, else ""."""
    if mode == "off":
        return ""
    import wandb

    run: Any = wandb.run
    folder = Path(run.dir).parent
    try:
        wandb.finish()
    except Exception as error:  # of any kind: what was to be sent is on the disk
        with suppress(ConnectionError, SystemExit):
            wandb.teardown()
        late = isinstance(error, TimeoutError)
        reason = f"within {FINISH_SECONDS:g} s" if late else f"({_first_line(error)})"
        command = f"wandb sync {shlex.quote(str(folder))}"
        return f"W&B did not take the end of the run {reason}: it is on the disk; {command}\n"
    return ""
