"""How a command line ends that was given something wrong: fastrnn's own and the laboratory's share their
types of options."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest


def check_usage(main: Callable[[Sequence[str]], int], arguments: str, message: str, capsys) -> None:
    """Before any work begins: exit status 2, the usage, and the message with the option's name."""
    with pytest.raises(SystemExit) as stopped:
        main(arguments.split())
    assert stopped.value.code == 2
    err = capsys.readouterr().err
    assert "usage:" in err
    assert message in err
    if "--" in arguments:
        assert f"argument {arguments.split()[-2]}: " in err
