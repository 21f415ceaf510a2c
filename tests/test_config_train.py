"""The settings and their flags."""

from __future__ import annotations

import inspect
import re
from dataclasses import fields

import pytest

from config_train import PAPER, TrainConfig, parse_arguments


def test_without_flags_the_published_settings():
    assert parse_arguments([]) == TrainConfig()


def test_every_field_is_a_flag_with_a_help_text(capsys):
    with pytest.raises(SystemExit, match="0"):
        parse_arguments(["--help"])
    printed = capsys.readouterr().out
    headings = re.findall(r"^(\w.*):$", printed, flags=re.MULTILINE)
    titles = re.findall(r"# -- (.*) --$", inspect.getsource(TrainConfig), flags=re.MULTILINE)
    assert headings == ["options", *titles]
    text = " ".join(printed.split())
    for field in fields(TrainConfig):
        assert f"--{field.name.replace('_', '-')} " in text
    assert text.count("(default: ") == len(fields(TrainConfig))
    assert "what is frozen: the text tower (paper)" in text


def test_flags_of_every_type():
    numbers = ["--lr", "2e-5", "--epochs", "7", "--mlp-lr", "1e-3", "--mlp-milestones", "2,9"]
    config = parse_arguments([*numbers, "--freeze", "none", "--resume"])
    expected = TrainConfig(lr=2e-5, epochs=7, mlp_lr=1e-3, mlp_milestones=(2, 9), freeze="none", resume=True)
    assert config == expected
    assert not parse_arguments(["--save-text-tower", "no"]).save_text_tower


def test_flags_go_over_the_preset():
    config = parse_arguments(["--focal", "batch", "--equations", "paper"])
    assert config == TrainConfig(**(PAPER | {"focal": "batch"}))


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--lr", "0"),
        ("--lr", "nan"),
        ("--batch-size", "1"),
        ("--epochs", "0"),
        ("--weight-decay", "-1"),
        ("--save-every", "0"),
        ("--mlp-milestones", "0,3"),
        ("--clip-norm", "inf"),
        ("--dropout", "1"),
        ("--factor-weight", "-1"),
    ],
)
def test_values_out_of_range_name_the_flag(flag, value):
    with pytest.raises(ValueError, match=f"^{flag} must be"):
        parse_arguments([flag, value])


def test_choices_hold_in_python_too():
    with pytest.raises(ValueError, match=r"^--freeze must be one of text-tower, published, none, trunk; it is every"):
        TrainConfig(freeze="everything")


@pytest.mark.parametrize("arguments", [["--lr", "much"], ["--frieze", "none"], ["--resume", "perhaps"]])
def test_unreadable_flags_exit_with_2(arguments, capsys):
    with pytest.raises(SystemExit, match="2"):
        parse_arguments(arguments)
    assert arguments[0] in capsys.readouterr().err
