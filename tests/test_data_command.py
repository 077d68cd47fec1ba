import pytest
from runs import refused

from launch import cli, data


def test_data_help_lists_what_there_is_and_each_has_its_own(capsys):
    assert cli.main(["data", "--help"]) == 0
    told = capsys.readouterr().out
    for what in data.COMMANDS:
        assert f"\n  {what} " in told
        with pytest.raises(SystemExit) as end:
            cli.main(["data", what, "--help"])
        assert not end.value.code
        assert f"usage: melllm data {what}" in capsys.readouterr().out


def test_data_of_nothing_or_of_another_thing_lists_what_there_is(capsys):
    names = ", ".join(data.COMMANDS)
    assert refused(["data"], capsys) == f"say what to do: {names}"
    said = refused(["data", "inspct"], capsys)
    assert said == f"data=inspct: is none of {names}; did you mean inspect?"
