"""The options that gaze, bench and view share: where the server is, TLS, headers."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
from autogaze_client import InvalidInputError, TLSConfig
from autogaze_client._cli import build_parser, main
from autogaze_client._commands.connection import Connection, add_connection_options, chosen_connection


def chosen(*arguments: str) -> Connection:
    parser = argparse.ArgumentParser()
    add_connection_options(parser)
    return chosen_connection(parser.parse_args(arguments))


@pytest.fixture
def pem(tmp_path: Path) -> str:
    path = tmp_path / "file.pem"
    path.write_text("-----BEGIN CERTIFICATE-----\n")
    return str(path)


def test_without_options_the_connection_is_plain():
    assert chosen().arguments() == {"url": "localhost:8001", "tls": None, "headers": {}}


def test_every_option_of_tls_turns_it_on(pem):
    assert chosen("--tls").tls == TLSConfig()
    assert chosen("--tls-ca", pem).tls == TLSConfig(root_certificates=pem)
    mutual = chosen("--url", "gaze.example:8001", "--tls-cert", pem, "--tls-key", pem)
    assert mutual.url == "gaze.example:8001"
    assert mutual.tls == TLSConfig(private_key=pem, certificate_chain=pem)


def test_headers_are_read_up_to_the_first_equals_sign():
    given = chosen("--header", "Authorization=Bearer a=b", "--header", "x-camera=7")
    assert given.headers == {"authorization": "Bearer a=b", "x-camera": "7"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tls-cert", "PEM"], "--tls-cert has no --tls-key"),
        (["--tls-key", "PEM"], "--tls-key has no --tls-cert"),
        (["--tls-ca", "/nowhere.pem"], "--tls-ca is '/nowhere.pem', which is no file"),
        (["--header", "s3cret"], "one of them has no '='"),
        (["--header", "a b=s3cret"], "the name here is 'a b'"),
        (["--header", "key=s3cret\n"], "value of --header key is empty or has other"),
        (["--header", "key="], "value of --header key is empty"),
        (["--header", "key=s3cret", "--header", "KEY=s3cret"], "--header KEY is given twice"),
    ],
)
def test_what_is_refused_without_showing_the_value(pem, arguments, message):
    with pytest.raises(InvalidInputError) as caught:
        chosen(*(pem if argument == "PEM" else argument for argument in arguments))
    assert message in str(caught.value)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    "command", [["gaze", "video.mp4"], ["bench"], ["view"]], ids=lambda command: command[0]
)
def test_the_commands_that_ask_a_server_have_them(command, capsys):
    args = build_parser(command[0]).parse_args([*command, "--tls", "--header", "key=value"])
    assert chosen_connection(args) == Connection("localhost:8001", TLSConfig(), {"key": "value"})
    assert main([*command, "--tls-cert", "/nowhere.pem"]) == 1
    assert capsys.readouterr().err.startswith(f"autogaze {command[0]}: --tls-cert has no --tls-key")
