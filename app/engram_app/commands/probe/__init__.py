"""`engram probe`: one probe of one checkpoint, its finding printed and its result saved."""

import typer

from engram_app.commands.probe.attention import attention
from engram_app.commands.probe.attribute import attribute
from engram_app.commands.probe.cka import cka
from engram_app.commands.probe.edit import edit
from engram_app.commands.probe.gates import gates
from engram_app.commands.probe.heads import heads
from engram_app.commands.probe.intervene import intervene
from engram_app.commands.probe.lens import lens
from engram_app.commands.probe.linear import linear
from engram_app.commands.probe.patch import patch
from engram_app.commands.probe.routing import routing
from engram_app.commands.probe.rows import rows
from engram_app.commands.probe.slots import slots
from engram_app.commands.probe.suppress import suppress

app = typer.Typer(
    help="One probe: print its finding, save its result.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
COMMANDS = (
    gates, lens, cka, attention, heads, routing, attribute, patch, edit, suppress, intervene,
    slots, rows, linear,
)  # fmt: skip
for command in COMMANDS:
    app.command()(command)
