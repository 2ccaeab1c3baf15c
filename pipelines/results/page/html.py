"""The templates beside this file; text from files becomes no markup and moves no cursor."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, pass_eval_context, select_autoescape
from jinja2.nodes import EvalContext
from markupsafe import Markup

from pipelines.command.errors import printable
from pipelines.results import verdicts, words


def visible(value: object) -> str:
    """``value`` as text, with escapes for control characters other than line feeds."""
    text = str(value)
    return text if text.isprintable() else "\n".join(map(printable, text.split("\n")))  # images are long addresses


def prose(value: object) -> str:
    """A sentence of a claim or a trial as a line of Markdown, or a cell of its tables, without HTML."""
    return printable(" ".join(str(value).split())).replace("<", "&lt;").replace("|", "\\|")


@pass_eval_context
def _finalize(context: EvalContext, value: object) -> object:
    """Each printed value: HTML is escaped afterwards, Markdown gets a line of prose."""
    return value if isinstance(value, Markup) else visible(value) if context.autoescape else prose(value)


TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=select_autoescape(("html",)),
    undefined=StrictUndefined,
    finalize=_finalize,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
TEMPLATES.globals |= {"words": words, "verdicts": verdicts}
TEMPLATES.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}


def render(name: str, **values: object) -> str:
    """The template ``name`` with these values."""
    return TEMPLATES.get_template(name).render(values)
