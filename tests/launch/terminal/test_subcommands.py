import ast
import importlib.util
import pathlib

import pytest

from launch import cli
from launch.terminal import subcommands
from tests.support.runs import refused


def test_data_help_lists_what_there_is_and_each_has_its_own(capsys):
    assert cli.main(["data", "--help"]) == 0
    told = capsys.readouterr().out
    for what in subcommands.DATA.commands:
        assert f"\n  {what} " in told
        with pytest.raises(SystemExit) as end:
            cli.main(["data", what, "--help"])
        assert not end.value.code
        assert f"usage: melllm data {what}" in capsys.readouterr().out


def test_data_of_nothing_or_of_another_thing_lists_what_there_is(capsys):
    names = ", ".join(subcommands.DATA.commands)
    assert refused(["data"], capsys) == f"say what to do: {names}"
    said = refused(["data", "inspct"], capsys)
    assert said == f"data=inspct: is none of {names}; did you mean inspect?"


def leaves():
    """Every command with the words that name it."""
    for name, entry in subcommands.COMMANDS.items():
        if isinstance(entry, subcommands.Command):
            yield pytest.param(entry, id=name)
        else:
            yield from (pytest.param(x, id=f"{name} {word}") for word, x in entry.commands.items())


@pytest.mark.parametrize("command", [*leaves()])
def test_listed_command_is_a_function_of_its_module(command):
    tree = ast.parse(pathlib.Path(importlib.util.find_spec(command.module).origin).read_text())
    functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert command.function in functions


@pytest.mark.parametrize(
    "name", [n for n, x in subcommands.COMMANDS.items() if isinstance(x, subcommands.CommandGroup)]
)
def test_help_of_a_group_lists_its_commands_with_their_lines(name, capsys):
    assert cli.main([name, "--help"]) == 0
    told = capsys.readouterr().out
    assert told.startswith(f"usage: melllm {name} WHAT ")
    for word, command in subcommands.COMMANDS[name].commands.items():
        assert any(row.split() == [word, *command.summary.split()] for row in told.splitlines())
