"""`eosin zoo list | show`: published encoders, what is known of them, and how to get their weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from eosin.models.zoo import ZooEntry

zoo = typer.Typer(no_args_is_help=True, help="Published encoders: what they are and how to get their weights.")


@zoo.command("list")
def list_(
    plain: Annotated[bool, typer.Option("--plain", help="Names only, one a line.")] = False,
) -> None:
    """One line each. tested: what the network was checked against without its weights, see docs/zoo.md."""
    from eosin.models.zoo import zoo as entries

    if plain:
        typer.echo("\n".join(entries()))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in ("name", "architecture"):
        table.add_column(column, no_wrap=True)
    for column in ("params", "size", "µm/px", "pooling", "width"):
        table.add_column(column, justify="right", no_wrap=True)
    for column in ("licence", "gated", "tested"):
        table.add_column(column, no_wrap=True)
    for entry in entries().values():
        table.add_row(
            *(entry.name, architecture(entry), f"{entry.parameters / 1e6:,.0f} M", str(entry.input_size)),
            *(_scales(entry), entry.pooling, str(entry.embedding), entry.licence.name),
            *("yes" if entry.gated else "no", entry.tested),
        )
    # Cut cells say less than lines that run over, and output that goes into a file has no width at all.
    Console(width=max(Console().width, 200), soft_wrap=True).print(table)
    typer.echo("\nAny timm name and any exported folder is a MODEL as well. `eosin zoo show NAME` says more.")


@zoo.command()
def show(
    name: Annotated[str, typer.Argument(metavar="NAME", help="kaiko/midnight-12k; uni2-h where it is unambiguous.")],
) -> None:
    """Everything that is known of an encoder, where that was read, and how to get its weights."""
    from eosin.errors import WeightsError
    from eosin.models.zoo import close_names, find_entry

    entry = find_entry(name)
    if entry is None:
        close = close_names(name)
        hint = f"; is {' or '.join(close)} meant?" if close else "; see `eosin zoo list`"
        raise WeightsError(f"the zoo has no {name!r}{hint}")
    for line in _page(entry):
        typer.echo(line)


def architecture(entry: ZooEntry) -> str:
    """The network in a few characters: width/patch x layers, registers, what else is not plain."""
    config = entry.encoder
    if config is None:
        return entry.timm.name
    parts = [f"ViT-{config.width}/{config.patch} x{config.depth}"]
    parts += [f"{config.registers} reg"] * bool(config.registers)
    parts += ["SwiGLU"] * (config.ffn == "swiglu") + ["rotary"] * (config.positions == "rotary")
    return ", ".join(parts)


def _scales(entry: ZooEntry) -> str:
    if entry.mpp is None:
        return "none"
    if isinstance(entry.mpp, tuple):
        return f"{min(entry.mpp):g}-{max(entry.mpp):g}"
    return f"{entry.mpp:g}"


def _page(entry: ZooEntry) -> list[str]:
    """The lines of `eosin zoo show`."""
    network = f"timm.create_model({entry.timm.name!r}" + "".join(f", {k}={v!r}" for k, v in entry.timm.args.items())
    rows = {
        "aliases": ", ".join(entry.aliases),
        "architecture": f"{architecture(entry)}; {entry.parameters / 1e6:,.1f} M parameters",
        "in timm": network + (", SwiGLUPacked)" if entry.encoder and entry.encoder.ffn == "swiglu" else ")"),
        "input": f"{entry.input_size} x {entry.input_size} px, mean {list(entry.mean)}, std {list(entry.std)}",
        "µm/px": str(entry.mpp).strip("()") if entry.mpp else "none: not trained on slides",
        "embedding": f"{entry.pooling}, {entry.embedding} numbers",
        "licence": f"{entry.licence.name} ({entry.licence.url})",
        "gated": "yes" if entry.gated else "no",
        "weights": f"{entry.weights.url}, {' or '.join(entry.weights.files)}, {entry.layout} names",
        "revision": entry.weights.revision or "the newest (none pinned)",
        "tested": entry.tested,
        "note": entry.note,
    }
    lines = [entry.name, *(f"  {name:<13} {said}" for name, said in rows.items() if said), "", "read in"]
    lines += [f"  {fact:<13} {'; '.join(where)}" for fact, where in entry.facts.items()]
    return [*lines, "", "how to get it", *(f"  {line}" for line in _ways(entry))]


def _ways(entry: ZooEntry) -> list[str]:
    from eosin.models.zoo import cached_file

    here = cached_file(entry)
    if here is not None:
        return [f"in the hub's cache: {here}", f"MODEL is {entry.name}"]
    ways = ["not in the hub's cache"]
    if entry.gated:
        ways.append(f"accept the licence at {entry.weights.url}, then `hf auth login` or set HF_TOKEN")
    ways.append(f"MODEL {entry.name} fetches it on first use")
    return [*ways, f"or MODEL {entry.name} with --weights FILE, in timm's, Meta's or the transformers library's names"]
