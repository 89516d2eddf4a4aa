"""What mkdocs does beyond its own for the manual's site; see mkdocs.yml.

- Pages from outside `docs/` (results of benchmarks, CONTRIBUTING, CHANGELOG, the embedded model's card) become pages;
  the results are listed under "Measured".
- Links to them lead there; other links out of `docs/` lead to the repository, where REPOSITORY_URL names it, else they
  are plain text. So a page reads the same on GitHub, in an editor and on the site.
- `math` fences become MathML, which browsers draw by themselves: no script, no font, nothing from another server.
- The reference: a page for each public package, with everything that its `__all__` lists, read and not run.
"""

from __future__ import annotations

import ast
import os
import posixpath
import re
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
OUTSIDE = {
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "sd_ext/pretrained/drawings/README.md": "card.md",
}
"""File of the repository -> page of the site; those of benchmarks/results keep their path."""
RESULTS = "benchmarks/results"
REFERENCE = {
    "sd_ext": "What most people need, by the shortest names.",
    "sd_ext.schedulers": "What samplers are made of. Their classes are on [a page of their own](samplers.md).",
    "sd_ext.unets": "U-Nets with features, attention, guidance.",
    "sd_ext.modular": "Blocks for Modular pipelines.",
    "sd_ext.lora": "LoRA files: reading, writing, applying, merging, extracting.",
    "sd_ext.prompts": "Weighted and long prompts, learned words.",
    "sd_ext.models": "Models on disk.",
    "sd_ext.hub": "Publishing.",
    "sd_ext.calibration": "Fitting a sampler to a model.",
    "sd_ext.errors": "Every exception raised on purpose.",
}
LINK = re.compile(r"(?P<mark>!?)\[(?P<label>(?:[^\[\]]|\[[^\[\]]*\])*)\]\((?P<link>[^)\s]+)\)")
FENCE = re.compile(r"^(```|~~~).*?^\1\s*$", re.MULTILINE | re.DOTALL)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    url = os.environ.get("REPOSITORY_URL", "").rstrip("/")
    config.repo_url, config.repo_name = (url or None), ("source" if url else None)
    config.edit_uri = None
    (measured,) = (entry["Measured"] for entry in config.nav or () if "Measured" in entry)
    measured += [path for path in results() if path.endswith(".md")]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    outside = {**OUTSIDE, **{path: path for path in results()}}
    for source, page in outside.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    for page, text in reference().items():
        files.append(File.generated(config, page, content=text))
    return files


def results() -> list[str]:
    found = sorted([*(ROOT / RESULTS).glob("*.md"), *(ROOT / RESULTS).glob("*.png")])
    return [path.relative_to(ROOT).as_posix() for path in found]


def question(result: str) -> str:
    """What a benchmark says it answers: the beginning of its script, whose name the result's begins with."""
    scripts = [path for path in (ROOT / "benchmarks").glob("*.py") if f"{result}_".startswith(f"{path.stem}_")]
    if not scripts:
        return result
    script = max(scripts, key=lambda path: len(path.stem))
    told = re.split(r"[:.](?:\s|$)", ast.get_docstring(parsed(script)) or result)[0]
    rest = result.removeprefix(script.stem).strip("_").replace("_", " ")
    return f"{told} ({rest})" if rest else told


# ---- links and formulas ----------------------------------------------------------------------------------------------


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    here = page.file.src_uri
    if here.startswith(RESULTS) and not markdown.startswith("# "):
        markdown = f"# {question(Path(here).stem)}\n\n{markdown}"
    markdown = re.sub(r"^```math\n(.*?)^```", lambda m: formula(m[1], here), markdown, flags=re.MULTILINE | re.DOTALL)
    home = next((source for source, made in OUTSIDE.items() if made == here), here)
    home = home if home != here or here.startswith(RESULTS) else f"docs/{here}"
    parts, last = [], 0
    for fence in FENCE.finditer(markdown):
        parts += [relinked(markdown[last : fence.start()], home, here, files), fence[0]]
        last = fence.end()
    return "".join([*parts, relinked(markdown[last:], home, here, files)])


def relinked(text: str, home: str, here: str, files: Files) -> str:
    """Text whose links, written in the file `home` of the repository, lead on from the page `here`.

    Raises:
        PluginError: for a link to nothing.
    """
    base = os.environ.get("REPOSITORY_URL", "").rstrip("/")

    def led(link: str) -> str | None:
        """Where a link leads from the page; None if to what is not on the site."""
        path, hash_, anchor = link.partition("#")
        if not path or "://" in link or path.startswith("mailto:"):
            return link
        target = posixpath.normpath(posixpath.join(posixpath.dirname(home), path))
        inside = target[5:] if target.startswith("docs/") else OUTSIDE.get(target, target)
        if files.get_file_from_path(inside):
            return posixpath.relpath(inside, posixpath.dirname(here) or ".") + hash_ + anchor
        if not (ROOT / target).exists():
            raise PluginError(f"{home}: {link} leads nowhere")
        return f"{base}/blob/main/{target}{hash_}{anchor}" if base else None

    def one(match: re.Match[str]) -> str:
        link = led(match["link"])
        return match["label"] if link is None else f"{match['mark']}[{match['label']}]({link})"

    text = LINK.sub(one, text)
    return re.sub(r'(<img [^>]*src=")([^"]+)"', lambda m: f'{m[1]}{led(m[2]) or m[2]}"', text)


def formula(latex: str, where: str) -> str:
    """A block of MathML.

    Raises:
        PluginError: for a command that is not known.
    """
    flat = " ".join(latex.split())
    try:
        made = convert(flat, display="block")
    except Exception as error:
        raise PluginError(f"{where}: no MathML for {flat}: {error!r}") from None
    left = re.search(r"<m[a-z]+[^>]*>\\[a-zA-Z]+<", made)
    if left:
        raise PluginError(f"{where}: {left[0]} is not known in {flat}")
    return f'<div class="formula">{made}</div>\n'


# ---- reference -------------------------------------------------------------------------------------------------------


def reference() -> dict[str, str]:
    """Page -> its Markdown, for mkdocstrings."""
    pages = {f"api/{package.removeprefix('sd_ext.')}.md": page(package, about) for package, about in REFERENCE.items()}
    options = "[the options of every scheduler](../samplers/README.md#options-of-every-scheduler)"
    text = ["# Classes of samplers", "", f"Each also takes {options}, and has the methods of `TableScheduler`.", ""]
    for family in sorted((ROOT / "sd_ext/schedulers/samplers").glob("[!_]*.py")):
        text += [f"## {family.stem}", ""]
        if (ROOT / "docs/samplers" / f"{family.stem}.md").exists():
            text += [f"[The family's page](../samplers/{family.stem}.md).", ""]
        for name in listed(parsed(family)):
            text += shown(f"sd_ext.schedulers.samplers.{family.stem}.{name}", f"sd_ext.{name}", "members: false")
    return {**pages, "api/samplers.md": "\n".join(text)}


def page(package: str, about: str) -> str:
    tree = parsed(file_of(package))
    names = listed(tree) or [node.name for node in tree.body if isinstance(node, ast.ClassDef)]
    text = [f"# {package}", "", about, "", "```text", ast.get_docstring(tree) or "", "```", ""]
    for name in sorted(names, key=str.lower):
        place = home(package, name)
        room = next((room for room in REFERENCE if room != "sd_ext" and place.startswith(f"{room}.")), package)
        if room == package:
            text += shown(place, f"{package}.{name}")
        else:
            text.insert(-1, f"- [`{package}.{name}`]({room.removeprefix('sd_ext.')}.md#{place})")
    return "\n".join(text)


def shown(place: str, heading: str, *options: str) -> list[str]:
    options = (f"heading: {heading}", f"toc_label: {heading.split('.')[-1]}", *options)
    return [f"::: {place}", "    options:", *(f"      {option}" for option in options), ""]


def parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text("utf-8"))


def file_of(module: str) -> Path:
    folder = ROOT / module.replace(".", "/")
    return folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")


def listed(tree: ast.Module) -> list[str]:
    """The names that `__all__` spells out, or the keys of `_OTHERS` in a package that makes its `__all__` itself."""
    for node in tree.body:
        names = [getattr(each, "id", "") for each in getattr(node, "targets", [])]
        if "__all__" in names and isinstance(node, ast.Assign):
            return [each.value for each in ast.walk(node.value) if isinstance(each, ast.Constant)]
        if "_OTHERS" in names and isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            return [key.value for key in node.value.keys if isinstance(key, ast.Constant)]
    return []


def home(package: str, name: str) -> str:
    """The full name of where a public name is defined."""
    tree = parsed(file_of(package))
    for node in tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "_OTHERS":
            return home(ast.literal_eval(node.value)[name], name)
    for node in own_imports(tree):
        if any((each.asname or each.name) == name for each in node.names):
            return home(f"{package}.{node.module}", name)
    stars = [node.module for node in own_imports(tree) if node.names[0].name == "*"]
    inner = next((star for star in stars if name in listed(parsed(file_of(f"{package}.{star}")))), None)
    return home(f"{package}.{inner}", name) if inner else f"{package}.{name}"


def own_imports(tree: ast.Module) -> list[ast.ImportFrom]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level == 1]
