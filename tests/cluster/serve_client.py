"""The client of the runs in which Ray Serve is killed: a runtime that asks a served router about every task.

    python serve_client.py {...}   inside a node: starts all that, keeps a few tasks open, and says how each was decided

What the checker judges is in `writer.jsonl`; `paths.jsonl` says who decided each task (`serve`, `local`, `nobody`).
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]  # `routing`, of the tests; `chaos_client`

from chaos_client import Writer, load_until  # noqa: E402
from chaos_work import HeadWork  # noqa: E402
from routing.routers import trained  # noqa: E402
from routing.sets import two_trades  # noqa: E402

import flowray as fr  # noqa: E402
from flowray.routing import estimator  # noqa: E402
from flowray.routing.config import ServingConfig  # noqa: E402

TEXTS = ("add multiply number", "rhyme verse sonnet")


class Asking(Writer):
    """Its tasks have a text that the router reads."""

    def request(self, key: str) -> dict[str, Any]:
        asked = super().request(key)
        asked["payload"]["ask"] = False
        return {**asked, "prompt": f"{TEXTS[len(key) % 2]} {key}", "needs": {"answer"}}


def main(settings: dict[str, Any]) -> None:
    from flowray.runtime.serving import deploy_router

    directory, home = Path(settings["directory"]), Path.home()
    estimator.save(home / "router", trained())
    history = two_trades(home / "trades")
    overrides: dict[str, Any] = {
        "name": "served",
        "journal": str(home / "journal"),
        "store.allow_filesystems": ["overlay", "overlayfs"],  # of a container that runs the tests
        "core.routing": {"enabled": True, "within_s": 1.0},
        "router": {"through": "serve", "asking": {"breaker": {"wait_s": 0.2, "longest_wait_s": 0.4}}},
        "seed": settings["seed"],
    }
    with fr.Runtime.start(overrides=overrides) as rt:
        for name in ("counter", "poet"):
            rt.agents.add(HeadWork, name=name, capabilities={"answer"}, num_cpus=0.001)
        deploy_router(
            ServingConfig(
                router=str(home / "router"),
                history=str(history),
                precision="float32",
                min_replicas=2,
                max_replicas=2,
                num_cpus=0.01,
                downscale_delay_s=3600.0,
            )
        )
        rt.wait_ready()
        writer = Asking(rt, settings)
        with (directory / "paths.jsonl").open("w", buffering=1) as file:

            def note(handle: fr.Handle) -> None:
                outcome = handle.outcome(timeout_s=0)
                receipt = outcome.choices[0].receipt if outcome.choices else None
                path = receipt.path if receipt is not None else "nobody"
                took_s = outcome.resolved_at - outcome.story[0].at
                file.write(json.dumps({"at": time.monotonic(), "path": path, "took_s": took_s}) + "\n")

            writer.on_outcome = note
            load_until(writer, directory / "phase", settings)
        (directory / "drained").write_text(f"{len(writer.tasks)} {writer.missing}")


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
