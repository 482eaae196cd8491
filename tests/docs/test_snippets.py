"""What the README and the pages show works as pasted.

Python is executed, on one tiny run that all pages share. Commands take too long for that: each is
parsed by the program that it calls, and recipes are resolved with the keys that it gives.
"""

from __future__ import annotations

import argparse
import importlib
import re
import runpy
import shlex
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import typer.main
import yaml
from tests.hub import Site
from tests.light_reports import make_light

from dsno.cli import main
from dsno.cli.entry import app
from dsno.recipes import load_recipe, shipped_recipes
from dsno.runs.request import sections

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md"]
PAGES += sorted([*ROOT.glob("docs/**/*.md"), *ROOT.glob("results/*.md")])
PAGES += [ROOT / "benchmarks" / "gpu" / "README.md", *ROOT.glob("examples/models/*/README.md")]
TINY = (
    "teacher.network.channels=[8]",
    "teacher.steps=2",
    "collect.count=8",
    "train.steps=2",
    "finish.steps=2",
    "finish.fake_first=0",
    "finish.checkpoint_every=2",
    "finish.watch_samples=20",
    "finish.watch_features=pixels",
    "evaluate.samples=20",
    "evaluate.pictures=4",
    "evaluate.curves=[]",
    "evaluate.baseline_steps=2",
    "evaluate.reference_steps=2",
    "evaluate.features=[pixels]",
    "evaluate.timing_rounds=1",
)
PLACEHOLDER = "RECIPE"  # any recipe
LAUNCHERS: dict[str, Callable[[], argparse.ArgumentParser]] = {
    "torchrun": lambda: importlib.import_module("torch.distributed.run").get_args_parser(),
    "accelerate": lambda: importlib.import_module(
        "accelerate.commands.launch"
    ).launch_command_parser(),
}
OTHERS = {"git", "export", "cd", ".ci/run", ".venv/bin/pre-commit", "tensorboard"}


def blocks(page: Path, language: str) -> list[str]:
    """The page's blocks of code in a language."""
    text = page.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def commands(block: str) -> list[list[str]]:
    """The words of each command, without comments and variables."""
    block = block.replace("\\\n", " ")
    for name, value in re.findall(r'^([A-Z_]+)="(.*)"$', block, re.MULTILINE):
        block = block.replace(f"${name}", value)
    block = re.sub(r"\$\(\(.*?\)\)|\$\w+", "1", block)
    found: list[list[str]] = []
    for line in block.splitlines():
        found.append([])
        words = shlex.shlex(line, posix=True, punctuation_chars=True)
        words.whitespace_split = True
        for word in words:
            if set(word) <= set(";&|"):
                found.append([])
            elif found[-1] or not re.fullmatch(r"[A-Z_]+=.*", word):
                found[-1].append(word)
    return [words for words in found if words]


COMMANDS = [
    pytest.param(words, id=f"{page.stem}: {' '.join(words)[:80]}")
    for page in PAGES
    for block in blocks(page, "sh")
    for words in commands(block)
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where `dsno run digits` was run, with few steps."""
    path = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patch:
        make_light(patch)
        patch.chdir(path)
        assert main(["run", "digits", *TINY, "--out", "runs/digits"]) == 0
        assert main(["export", "runs/digits", "--out", "model"]) == 0
        yield path


def test_the_readmes_sampling_example_gives_what_it_says(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (snippet,) = [block for block in blocks(PAGES[0], "python") if "DSNOPipeline" in block]
    scope: dict[str, object] = {}
    exec(snippet, scope)
    assert len(scope["sevens"]) == 16  # type: ignore[arg-type]
    assert (folder / "digits.png").stat().st_size > 0
    assert "torch.Size([4, 1, 8, 8])" in capsys.readouterr().out


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "python")], ids=lambda p: p.stem)
@pytest.mark.usefixtures("folder")
def test_python_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[str | None] = []
    Site(tmp_path, monkeypatch)
    monkeypatch.setattr(torch.nn.Module, "compile", lambda _, mode=None: modes.append(mode))
    start = "import torch\nfrom dsno import DSNOPipeline\n"
    for block in blocks(page, "python"):
        if re.match(r"(from|import) fastgen\b", block):  # for another toolkit, which is not here
            compile(block, str(page), "exec")
            continue
        here = block.replace("runs/NAME", "runs/digits").replace('"cuda"', '"cpu"')
        here = here.replace('"examples/', f'"{ROOT}/examples/')
        exec(start + here, {})
    assert set(modes) <= {None, "reduce-overhead"}


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "yaml")], ids=lambda p: p.stem)
def test_sections_of_a_recipe_are_valid(page: Path, tmp_path: Path) -> None:
    for block in blocks(page, "yaml"):
        recipe = {**load_recipe("digits", []).model_dump(mode="json"), **yaml.safe_load(block)}
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(recipe))
        load_recipe(str(path), [])


def parsed(words: list[str]) -> tuple[str, dict[str, object]]:
    """The command that `dsno WORDS` is, and its parameters, checked by its own parser."""
    while words and words[0] == "--adapter":
        assert (ROOT / words[1]).is_file()
        words = words[2:]
    if words[0] in ("--install-completion", "--help", "--version"):
        return words[0], {}
    command, names = typer.main.get_command(app), []
    while inner := getattr(command, "commands", None):
        assert words[0] in inner, f"there is no command {words[0]}"
        command, names, words = inner[words[0]], [*names, words[0]], words[1:]
        if not words or words == ["--help"]:  # its name alone
            return " ".join(names), {}
    # as the program does: a command keeps its option for help, and other tests ask for it
    context = command.make_context(names[-1], list(words), **(app.info.context_settings or {}))
    return " ".join(names), context.params


def check_dsno(words: list[str]) -> None:
    """Parse a command of `dsno`, and resolve the recipe or the keys that it names."""
    name, params = parsed(words)
    keys = list(params.get("overrides") or [])  # type: ignore[call-overload]
    target = params.get("recipe") or params.get("target")
    if target == PLACEHOLDER:
        target = "digits"
    if name == "import":
        keys, target = [f"teacher.{key}" for key in params.get("options") or []], "distill"  # type: ignore[attr-defined]
    elif name == "evaluate" and isinstance(target, str) and "=" in target:
        keys, target = [target, *keys], None
    if target in shipped_recipes():
        load_recipe(str(target), keys)
    elif name == "evaluate":
        sections({}, keys)
    else:
        assert not keys or name == "sample" or str(target).endswith(".yaml"), f"{target}?"


class _ParsedError(Exception):
    """A script has read its arguments."""


def check_script(path: str, arguments: list[str]) -> None:
    """Start a script and stop it when it has read its arguments."""
    assert (ROOT / path).is_file(), path
    real = argparse.ArgumentParser.parse_args

    def parse(self: argparse.ArgumentParser, *given: object) -> None:
        real(self, *given)  # type: ignore[call-overload]
        raise _ParsedError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", parse)
        patch.setattr(sys, "argv", [path, *arguments])
        patch.syspath_prepend(str((ROOT / path).parent))
        with pytest.raises(_ParsedError):
            runpy.run_path(str(ROOT / path), run_name="__main__")


@pytest.mark.parametrize("words", COMMANDS)
def test_a_command_is_one_that_its_program_takes(words: list[str]) -> None:
    program, *rest = words
    program = program.removeprefix(".venv/bin/")
    if "-m" in rest and rest[rest.index("-m") + 1] == "dsno":
        cut = rest.index("-m")
        if program == "python":
            assert rest[:cut] == []
        else:
            LAUNCHERS[program]().parse_args([*rest[program == "accelerate" : cut], "script"])
        check_dsno(rest[cut + 2 :])
    elif program == "dsno":
        check_dsno(rest)
    elif program == "make":
        targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert set(rest) <= set(targets)
    elif program == "pip":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        for extra in re.findall(r"dsno\[(.*?)\]", " ".join(rest)):
            assert set(extra.split(",")) <= set(extras["optional-dependencies"])
    elif program == "python" and rest[0] == "-m":
        importlib.import_module(rest[1])
    elif program == "python":
        check_script(rest[0], rest[1:])
    else:
        assert words[0] in OTHERS, f"{words[0]} is not checked by anything"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_and_keys_in_the_text_exist(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.M)
    for code in re.findall(r"(?<!`)`([^`\n]+)`(?!`)", text):
        if re.fullmatch(r"(data|teacher|collect|student|train|finish|evaluate)\.[a-z_]+=\S+", code):
            load_recipe("imagenet64", [code])
        elif re.match(r"dsno [a-z]", code) and "..." not in code:
            words = shlex.split(code)[1:]
            asked = words[0] in ("import", "export") and "--out" not in words
            check_dsno([*words, "--out", "FOLDER"] if asked and len(words) > 1 else words)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_link_to_a_file_leads_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.M)
    for link in re.findall(r"\]\((?!http)([^)#]+)(?:#[^)]*)?\)", text):
        assert (page.parent / link).exists(), link
