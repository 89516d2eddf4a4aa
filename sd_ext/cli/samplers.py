"""`sd-ext samplers`: list the samplers and timestep grids."""

from __future__ import annotations


def samplers() -> None:
    """List the samplers and the timestep grids."""
    from rich.console import Console
    from rich.table import Table

    import sd_ext

    console = Console()
    table = Table("sampler", "order", "calls\na step", "noise", "also called", "source", "note", title="Samplers")
    for sampler in sd_ext.list_samplers():
        noise, also = "fresh" if sampler.stochastic else "", ", ".join(sampler.aliases)
        order = str(sampler.order or "-")
        table.add_row(sampler.name, order, sampler.calls, noise, also, sampler.source, sampler.note)
    console.print(table)

    table = Table("grid", "timesteps", title="Grids")
    for grid in sd_ext.list_grids():
        table.add_row(grid.name, grid.description)
    console.print(table)
    console.print('Use them as: sd-ext generate "red apple" --sampler NAME --grid NAME', highlight=False)
