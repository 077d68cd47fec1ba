"""What README and docs/ name is there: commands and their flags, links, pages, Python names."""

import contextlib
import functools
import io
import pkgutil
import re

import pytest
import yaml

from launch import cli
from launch.terminal.subcommands import COMMANDS, CommandGroup
from tests.support.paths import ROOT

DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "BUILD.md", *sorted(DOCS.rglob("*.md"))]
RUN_COMMANDS = ("train", "plan", "bench")  # a preset stands before their flags
FLAG = re.compile(r"(?<![\w-])--[a-z][\w.-]*")
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
each_page = pytest.mark.parametrize("page", PAGES, ids=NAMES)


def code(text):
    """Every line of fenced code, without its comment, and every inline stretch of code."""
    fences = re.findall(r"^```\w*\n(.*?)^```", text, re.M | re.S)
    for line in "".join(fences).splitlines():
        yield line.partition(" #")[0]
    outside = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    yield from (" ".join(part.split()) for part in re.findall(r"`([^`]+)`", outside))


def said(text):
    """The words of every `melllm …` that a page names."""
    for part in code(text):
        for command in re.split(r"&&|;", part):
            words = command.replace("\\|", "|").split()
            if len(words) > 1 and words[0].rpartition("/")[2] == "melllm":
                yield words[1:]


def commands(words):
    """The commands that the first words name; alternatives stand as a|b."""
    if words[0] not in COMMANDS or not isinstance(COMMANDS[words[0]], CommandGroup):
        return [(words[0],)]
    return [(words[0], second) for second in words[1].split("|")]


@functools.cache
def help_of(command):
    """What `melllm COMMAND --help` prints, with - for _ in names."""
    preset = ("digits",) if command[0] in RUN_COMMANDS else ()
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        assert cli.main([*command, *preset, "--help"]) == 0
    return set(FLAG.findall(out.getvalue().replace("_", "-")))


@each_page
def test_every_command_and_flag_that_a_page_names_exists(page):
    strange = []
    for words in said(page.read_text()):
        if words[0].startswith("-") or not words[0].islower():  # melllm --help, melllm COMMAND
            continue
        for command in commands(words):
            flags = {flag.replace("_", "-") for flag in FLAG.findall(" ".join(words))} - {"--help"}
            strange += [(*command, flag) for flag in flags - help_of(command)]
    run_flags = help_of(("train",)) | help_of(("plan",))
    known = run_flags.union(*map(help_of, {c for p in PAGES for c in named(p)}))
    for part in code(page.read_text()):
        if part.startswith("--"):
            strange += [f for f in FLAG.findall(part) if f.replace("_", "-") not in known]
    assert strange == []


def named(page):
    """The commands that a page names with an operand or a flag."""
    lower = (words for words in said(page.read_text()) if words[0].islower())
    return [command for words in lower if words[0] in COMMANDS for command in commands(words)]


def slugs(page):
    """The anchors of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", page, flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w\s-]", "", title).strip().lower().replace(" ", "-") for title in headings}


@each_page
def test_every_relative_link_resolves(page):
    missing = []
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if not target.exists() or anchor and anchor not in slugs(target.read_text()):
            missing.append(link)
    assert missing == []


def test_every_page_is_in_the_navigation_and_names_what_exists():
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    listed = re.findall(r"[\w./-]+\.md", str(nav))
    assert sorted(listed) == sorted(str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md"))
    text = "".join(page.read_text() for page in DOCS.rglob("*.md"))
    for name in re.findall(r"^::: (\S+)$", text, re.M):
        assert pkgutil.resolve_name(name).__doc__
    for file in re.findall(r'^--8<-- "(.+)"$', text, re.M):
        assert (ROOT / file).exists()


def test_pictures_of_results_are_the_results_own():
    shown = (DOCS / "assets/synthetic-losses.svg").read_bytes()
    assert shown == (ROOT / "benchmarks/results/synthetic/losses.svg").read_bytes()


def test_the_reference_names_every_command():
    words = set(named(DOCS / "commands.md"))
    every = {
        (name, *second)
        for name, entry in COMMANDS.items()
        for second in ([(s,) for s in entry.commands] if isinstance(entry, CommandGroup) else [()])
    }
    assert every - words == {("sweep", "cell")}  # what backends start
