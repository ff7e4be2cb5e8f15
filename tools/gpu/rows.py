"""Rows: what prompts, logs and exceptions say; and the stages that yield them until the time is up."""

from __future__ import annotations

import json
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tools.gpu.session import Session

# With less time left, no prompt is started.
LEAST_SECONDS = 2.0
LOG_TAIL, TRACEBACK_TAIL = 3000, 2000
TIME_UP = "the time was up"
NOT_ON_A_PROCESSOR = "not on a processor"

Row = dict[str, Any]
Prompt = dict[str, dict[str, Any]]
Stage = Callable[["Session"], Iterator[Row]]


class TimeUp(Exception):
    """There is no time left for another prompt."""


def failure(error: BaseException, trace: str) -> Row:
    """The part of a row that describes an exception."""
    text = f"{type(error).__name__}: {error}"[:1500]
    return {"ok": False, "error": text, "traceback": trace[-TRACEBACK_TAIL:]}


def facts_of(entry: Mapping[str, Any], prompt: Prompt) -> Row:
    """What a prompt's history says: the probe nodes' facts, and guidance's message and number of steps."""
    row: Row = {}
    for node, output in entry["outputs"].items():
        if "facts" in output:
            row |= json.loads(output["facts"][0])
        if "jepa_trace" in output:
            trace = output["jepa_trace"][0]
            row["trace"] = trace["message"]
            row["guided_steps"] = sum(step["guided"] for step in trace["steps"])
            if prompt[node]["inputs"]["strength"] != 0 and not row["guided_steps"]:
                row |= {"ok": False, "error": "no step was guided"}
    if row.get("finite") is False:
        row |= {"ok": False, "error": "the latent is not finite"}
    return row


def log_facts(log: str) -> Row:
    """What part of a server's log says: networks built, out-of-memory lines, and the first warnings."""
    lines = log.splitlines()
    loud = [line[:300] for line in lines if "[WARNING]" in line or "[ERROR]" in line or "JEPA" in line]
    return {
        "networks_built": sum("model weight dtype" in line for line in lines),
        "out_of_memory": sum("out of memory" in line.lower() for line in lines),
        "warnings": list(dict.fromkeys(loud))[:8],
    }


# --- stages ---------------------------------------------------------------------------------------------------------


def run_stages(
    stages: Mapping[str, Stage], session: Session, record: Row, write: Callable[[Row], object]
) -> None:
    """Run the stages in order until the time is up, and write the record after every row.

    A stage that fails keeps its rows and says how it failed; the next one runs.
    """
    begun = time.monotonic()

    def save() -> None:
        record["seconds"] = round(time.monotonic() - begun, 1)
        write(record)

    for name, stage in stages.items():
        if session.remaining() < LEAST_SECONDS:
            break
        started, session.hung = time.monotonic(), 0
        entry: Row = {"name": name, "ok": False, "seconds": 0.0, "rows": []}
        record["stages"].append(entry)
        try:
            for row in stage(session):
                entry["rows"].append(row)
                tell(name, row)
                save()
            entry["ok"] = all(row["ok"] for row in entry["rows"])
        except TimeUp:
            entry["error"] = TIME_UP
        except Exception as error:
            entry |= failure(error, traceback.format_exc()) | {"log": session.log_tail()}
        entry["seconds"] = round(time.monotonic() - started, 1)
        save()
    done = [entry for entry in record["stages"] if entry.get("error") != TIME_UP]
    record["finished"] = len(done) == len(stages)
    save()


def tell(stage: str, row: Row) -> None:
    """Print a line of progress."""
    how = "ok" if row["ok"] else f"FAILED: {row.get('error', '')[:160]}"
    print(f"  {stage} | {row['name']} | {row.get('seconds', '')} s | {how}", file=sys.stderr, flush=True)


def table(record: Row) -> str:
    """A line for each stage and for each row that failed."""
    lines = [f"{'stage':24} {'ok':>7} {'seconds':>8}"]
    for stage in record["stages"]:
        good = sum(row["ok"] for row in stage["rows"])
        lines.append(f"{stage['name']:24} {good:>3}/{len(stage['rows']):<3} {stage['seconds']:>8}")
        if "error" in stage:
            lines.append(f"    {stage['error'][:150]}")
        failed = {row["name"]: row.get("error") or "?" for row in stage["rows"] if not row["ok"]}
        lines += [f"    {name}: {error.splitlines()[0][:150]}" for name, error in failed.items()]
    lines.append(f"{'finished' if record['finished'] else 'not finished'} after {record['seconds']} s")
    return "\n".join(lines)
