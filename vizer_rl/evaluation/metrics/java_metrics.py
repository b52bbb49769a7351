"""METEOR 1.5 and SPICE by their own jars, where the user has them and Java; nothing else is METEOR.

VIZER_METEOR_JAR and VIZER_SPICE_JAR name the jars. They get what coco-caption gives them: tokens,
joined by spaces.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import weakref
from collections.abc import Sequence
from pathlib import Path
from subprocess import DEVNULL, PIPE
from typing import IO, Any, cast

import numpy as np

from ...errors import UserError
from ..statistics import Column, CorpusMetric

JARS = {"meteor": "VIZER_METEOR_JAR", "spice": "VIZER_SPICE_JAR"}
Tokens = Sequence[str]


def jar_problem(metric: str) -> str:
    """Why "meteor" or "spice" cannot be computed here, "" where it can."""
    name = JARS[metric]
    jar = os.environ.get(name)
    if not jar:
        return f"{name} does not name its jar"
    if not Path(jar).is_file():
        return f"{name} names '{jar}', which is not there"
    return "" if shutil.which("java") else "there is no Java"


class Meteor:
    """METEOR of a corpus: the jar's statistics of each image, and its score of their sums.

    One process of the jar lives as long as this object, for it takes 15 s to start.
    """

    def __init__(self, references: Sequence[Sequence[Tokens]]) -> None:
        self.references = references
        jar = os.environ[JARS["meteor"]]
        command = ["java", "-Xmx2G", "-jar", jar, "-", "-", "-stdio", "-l", "en", "-norm"]
        pipes: dict[str, Any] = {"stdin": PIPE, "stdout": PIPE, "stderr": DEVNULL, "text": True}
        self._jar = subprocess.Popen(command, encoding="utf-8", bufsize=1, **pipes)
        weakref.finalize(self, _end, self._jar)

    def __call__(self, captions: Sequence[Tokens]) -> dict[str, Column]:
        """METEOR of captions (N,), as tokens."""
        rows = [
            self._reply(" ||| ".join(["SCORE", *map(_text, references), _text(tokens)])).split()
            for tokens, references in zip(captions, self.references, strict=True)
        ]
        return {"meteor": CorpusMetric(np.array(rows, np.float64), self._score)}

    def _score(self, sums: np.ndarray) -> np.ndarray:
        """METEOR of summed statistics (…, S)."""
        scores = []
        for row in sums.reshape(-1, sums.shape[-1]).tolist():
            scores.append(float(self._reply(f"EVAL ||| {' '.join(map(str, row))}")))
            self._reply()  # the score of all segments, of which there is one
        return np.array(scores).reshape(sums.shape[:-1])

    def _reply(self, line: str | None = None) -> str:
        """The jar's next line, to this line where there is one."""
        stdin, stdout = cast(IO[str], self._jar.stdin), cast(IO[str], self._jar.stdout)
        try:
            if line is not None:
                stdin.write(line + "\n")
            reply = stdout.readline()
        except BrokenPipeError:
            reply = ""
        if not reply:
            raise UserError(f"METEOR's jar '{os.environ[JARS['meteor']]}' ended without an answer")
        return reply


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def spice(captions: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> np.ndarray:
    """(N,) SPICE: F of each caption's scene graph."""
    rows = [
        {"image_id": row, "test": _text(tokens), "refs": [_text(r) for r in others]}
        for row, (tokens, others) in enumerate(zip(captions, references, strict=True))
    ]
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "in.json"), Path(folder, "out.json")
        source.write_text(json.dumps(rows))
        jar = os.environ[JARS["spice"]]
        command = [
            "java",
            "-Xmx8G",
            "-jar",
            jar,
            str(source),
            "-out",
            str(target),
            "-subset",
            "-silent",
        ]
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode or not target.is_file():
            reason = (result.stderr.strip().splitlines() or ["no message"])[-1]
            raise UserError(f"SPICE's jar '{jar}' failed: {reason:.200}")
        scores = {r["image_id"]: r["scores"]["All"]["f"] for r in json.loads(target.read_text())}
    return np.array([scores[row] for row in range(len(rows))], np.float64)


def _text(tokens: Tokens) -> str:
    return " ".join(tokens).replace("|||", "")
