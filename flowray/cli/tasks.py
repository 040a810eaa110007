"""Commands about tasks of a running runtime: submit, follow, story, grade, dead-letters."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from flowray.cli.lifecycle import connected
from flowray.cli.screen import Address, Json, Name, Screen, plain_data
from flowray.errors import ConfigError, InvalidTask, TaskError

_TaskId = Annotated[str, typer.Argument(metavar="TASK_ID", help="As `flowray submit` printed it.")]


def add_to(app: typer.Typer) -> None:
    """Register these commands."""
    app.command()(submit)
    app.command()(follow)
    app.command()(story)
    app.command()(grade)
    group = typer.Typer(help="Tasks that failed for good.", no_args_is_help=True, rich_markup_mode=None)
    group.command("list")(list_letters)
    group.command("show")(show)
    group.command("replay")(replay)
    group.command("purge")(purge)
    app.add_typer(group, name="dead-letters")


def submit(
    prompt: Annotated[str, typer.Argument(help="What the task asks for.")],
    needs: Annotated[
        list[str] | None, typer.Option("--needs", help="A capability that is needed; may be repeated.")
    ] = None,
    payload_json: Annotated[str | None, typer.Option("--payload-json", help="The payload, as JSON.")] = None,
    priority: Annotated[int, typer.Option("--priority", help="Higher runs first.")] = 0,
    deadline_s: Annotated[float | None, typer.Option("--deadline-s", help="Seconds from now to the end.")] = None,
    max_attempts: Annotated[int, typer.Option("--max-attempts", help="Attempts that may fail.")] = 3,
    key: Annotated[str, typer.Option("--key", help="Idempotency key: the same key is the same task.")] = "",
    tier: Annotated[str, typer.Option("--tier", help="Only agents of this tier.")] = "",
    agent: Annotated[str, typer.Option("--agent", help="Only agents of this class name.")] = "",
    quality: Annotated[
        float | None, typer.Option("--quality", help="Share of the best expected success that is enough, 0..1.")
    ] = None,
    least_quality: Annotated[
        float | None, typer.Option("--least-quality", help="Answers reported to be worth less are tried again, 0..1.")
    ] = None,
    max_cost_usd: Annotated[
        float | None, typer.Option("--max-cost-usd", help="Dollars that an attempt should cost at most.")
    ] = None,
    weight: Annotated[
        list[str] | None,
        typer.Option("--weight", metavar="NAME=NUMBER", help="Of the routing policy, for this task; may be repeated."),
    ] = None,
    idempotent: Annotated[
        bool, typer.Option("--idempotent", help="Running it twice does no harm: a second attempt may run beside it.")
    ] = False,
    fallback: Annotated[
        str, typer.Option("--fallback", help="Agent class that gets it when the others are not up to it.")
    ] = "",
    exclusive: Annotated[
        bool, typer.Option("--exclusive", help="No two attempts at the same time, even if one must wait for that.")
    ] = False,
    builds_on: Annotated[
        str, typer.Option("--builds-on", help="Id of the agent whose answer this task goes on from.")
    ] = "",
    entity: Annotated[
        str,
        typer.Option("--entity", help="What an input of a stateful agent is about: those of one go to one instance."),
    ] = "",
    choice: Annotated[
        list[str] | None, typer.Option("--choice", help="An answer to choose from, for a router; may be repeated.")
    ] = None,
    tools_json: Annotated[
        str | None,
        typer.Option(
            "--tools-json", help='Tools, for a router, as JSON: [{"name": ..., "description": ..., "parameters": ...}].'
        ),
    ] = None,
    count: Annotated[
        list[str] | None,
        typer.Option("--count", metavar="NAME=NUMBER", help="Of n_tools, n_params, n_options; may be repeated."),
    ] = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait for the result and print it.")] = True,
    timeout_s: Annotated[float | None, typer.Option("--timeout-s", help="Longest wait; the task goes on.")] = None,
    name: Name = "default",
    address: Address = "",
    as_json: Json = False,
) -> None:
    """Give a running runtime one task, and wait for its result."""
    payload = _json("--payload-json", payload_json)
    tools = _json("--tools-json", tools_json) or ()
    if not isinstance(tools, list | tuple):
        raise InvalidTask("--tools-json", "wants a list of tools")
    weights, counts = _numbers("--weight", weight or []), _numbers("--count", count or [])
    screen = Screen(as_json=as_json)
    with connected(name, address, screen) as runtime:
        handle = runtime.submit(
            prompt,
            payload=payload,
            needs=needs or (),
            priority=priority,
            deadline_s=deadline_s,
            max_attempts=max_attempts,
            key=key,
            tier=tier,
            agent=agent,
            quality=quality,
            least_quality=least_quality,
            max_cost_usd=max_cost_usd,
            weights=weights,
            idempotent=idempotent,
            fallback=fallback,
            exclusive=exclusive,
            builds_on=builds_on,
            entity=entity,
            choices=choice or (),
            tools=tools,
            counts=counts,
        )
        if not wait:
            screen.answer(handle.task_id, {"task_id": handle.task_id, "state": handle.state})
            return
        screen.say(f"task {handle.task_id}")
        outcome = handle.outcome(timeout_s=timeout_s)
        document: dict[str, Any] = {"task_id": handle.task_id, "state": outcome.state.value}
        document |= {"agent_id": outcome.agent_id, "attempts": outcome.attempts, "run_s": outcome.run_s}
        try:
            value = handle.result(timeout_s=0.0)
        except TaskError as error:
            if not as_json:
                raise
            failure = outcome.failure
            screen.document({**document, "error": error.detail, "traceback": failure.traceback if failure else ""})
            raise typer.Exit(1) from error
        screen.answer(_as_text(value), {**document, "value": value})


def follow(
    task_id: _TaskId,
    start: Annotated[int, typer.Option("--start", min=0, help="Number of the first chunk.")] = 0,
    name: Name = "default",
    address: Address = "",
    as_json: Json = False,
) -> None:
    """Print the chunks of a task as it gives them out, one a line, until it ends."""
    from flowray.chunks import Restarted

    screen = Screen(as_json=as_json)
    with connected(name, address, screen) as runtime:
        for item in runtime.handle(task_id).stream(start):
            if isinstance(item, Restarted):
                screen.item(f"-- void from chunk {item.seq} on, others follow --", {"restarted": item.seq})
            else:
                screen.item(_as_text(item.value), {"seq": item.seq, "value": item.value})


def story(
    task_id: _TaskId,
    explain: Annotated[bool, typer.Option("--explain", help="In whole sentences: why these agents.")] = False,
    name: Name = "default",
    address: Address = "",
    as_json: Json = False,
) -> None:
    """Tell what happened to a task, and why its agents were chosen."""
    screen = Screen(as_json=as_json)
    with connected(name, address, screen) as runtime:
        told = runtime.handle(task_id).story()
        if explain and not as_json:
            from flowray.runtime.render import explain as in_words

            screen.line(in_words(told))
        else:
            screen.view(told)


def grade(
    task_id: _TaskId,
    quality: Annotated[float, typer.Argument(help="What its answer turned out to be worth, 0 to 1.")],
    by: Annotated[str, typer.Option("--by", help="Who or what says so.")] = "",
    name: Name = "default",
    address: Address = "",
    as_json: Json = False,
) -> None:
    """Say what the answer of a task turned out to be worth: a router learns by it. The newest grade counts."""
    screen = Screen(as_json=as_json)
    with connected(name, address, screen) as runtime:
        runtime.grade(task_id, quality, by=by)
    screen.answer(f"task {task_id} is graded {quality:g}", {"task_id": task_id, "quality": quality, "by": by})


def list_letters(
    limit: Annotated[int, typer.Option("--limit", min=1, max=10_000, help="How many.")] = 100,
    after: Annotated[str, typer.Option("--after", help="Last task id of the page before.")] = "",
    name: Name = "default",
    address: Address = "",
    as_json: Json = False,
) -> None:
    """List dead letters, newest first."""
    screen = Screen(as_json=as_json)
    with connected(name, address, screen) as runtime:
        screen.view(runtime.dead_letters(limit=limit, after=after))


def show(task_id: _TaskId, name: Name = "default", address: Address = "", as_json: Json = False) -> None:
    """Show one dead letter: what was asked, and what came of it."""
    screen = Screen(as_json=as_json)
    with connected(name, address, screen) as runtime:
        screen.view(runtime.dead_letter(task_id))


def replay(
    task_id: _TaskId,
    weight: Annotated[
        list[str] | None,
        typer.Option("--weight", metavar="NAME=NUMBER", help="Of the routing policy, for this task; may be repeated."),
    ] = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait for the result and print it.")] = False,
    name: Name = "default",
    address: Address = "",
    as_json: Json = False,
) -> None:
    """Try a dead letter again, as a new task."""
    screen = Screen(as_json=as_json)
    with connected(name, address, screen) as runtime:
        handle = runtime.replay(task_id)
        document = {"task_id": handle.task_id, "replay_of": task_id}
        if wait:
            value = handle.result()
            screen.answer(_as_text(value), {**document, "value": value})
        else:
            screen.answer(handle.task_id, document)


def purge(task_id: _TaskId, name: Name = "default", address: Address = "", as_json: Json = False) -> None:
    """Forget a dead letter. Exit code 1 when there is none of this id."""
    screen = Screen(as_json=as_json)
    with connected(name, address, screen) as runtime:
        purged = runtime.purge(task_id)
    text = f"dead letter {task_id} is forgotten" if purged else f"there is no dead letter {task_id}"
    screen.answer(text, {"task_id": task_id, "purged": purged})
    if not purged:
        raise typer.Exit(1)


def _numbers(option: str, said: list[str]) -> dict[str, float]:
    numbers = {}
    for each in said:
        name, _, number = each.partition("=")
        try:
            numbers[name] = float(number)
        except ValueError:
            raise ConfigError(option, f"wants NAME=NUMBER, got {each!r}") from None
    return numbers


def _json(option: str, text: str | None) -> Any:
    if text is None:
        return None
    try:
        return json.loads(text)
    except ValueError as error:
        raise InvalidTask(option, f"is not JSON: {error}") from error


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(plain_data(value), indent=2, ensure_ascii=False)
