"""The data dir: one run at a time, tokens that stay, and a `stack.env` that a shell understands."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from local.errors import StackError
from local.stack import DataDir, Tokens, read_stack_env, stack_env_values
from settings import Settings

TOKENS = Tokens(client="of clients", courier="it's", admin='$HOME "quoted"')


@pytest.fixture(name="data_dir")
def _data_dir(tmp_path: Path) -> DataDir:
    data_dir = DataDir(tmp_path / "data")
    data_dir.create()
    return data_dir


def test_only_one_run_at_a_time(data_dir: DataDir) -> None:
    taken = rf"Another `make up` \(process {os.getpid()}\) runs on {data_dir.path}"
    with data_dir.locked(), pytest.raises(StackError, match=taken), DataDir(data_dir.path).locked():
        pass
    with DataDir(data_dir.path).locked():
        pass


def test_tokens_are_made_once_and_differ(data_dir: DataDir) -> None:
    tokens = data_dir.tokens(Settings())
    assert len({tokens.client, tokens.courier, tokens.admin}) == 3
    assert DataDir(data_dir.path).tokens(Settings()) == tokens
    given = data_dir.tokens(Settings(admin_token="given"))
    assert (given.client, given.admin) == (tokens.client, "given")
    assert data_dir.tokens(Settings()) == tokens
    assert tokens.admin not in repr(tokens)


def test_a_shell_can_source_stack_env(data_dir: DataDir) -> None:
    url = "postgresql://waybill:p%40ss&word@127.0.0.1:5433/waybill?application_name=a b"
    values = stack_env_values(url, "127.0.0.1:7233", "http://127.0.0.1:8000", TOKENS)
    data_dir.write_stack_env(values)
    sourced = subprocess.run(
        ["/bin/sh", "-c", "set -a; . ./stack.env; /usr/bin/env"],
        cwd=data_dir.path,
        env={},
        capture_output=True,
        text=True,
        check=True,
    )
    seen = dict(line.split("=", 1) for line in sourced.stdout.splitlines())
    assert {name: seen.get(name) for name in values} == values
    assert read_stack_env(data_dir.stack_env) == values
    assert data_dir.stack_env.stat().st_mode & 0o777 == 0o600
