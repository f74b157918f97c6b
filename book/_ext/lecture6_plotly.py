"""The part of Plotly's script that the book's figures need, cut from the whole when it is built.

The Python package ships the whole alone, 4.8 MB. That is what esbuild made of CommonJS modules,
`var a=W((exports,module)=>{…})`, that call one another as `a()`, and of a few ES modules, which
are started as `b()` by `b=Ea(()=>{…})`. The last module registers the kinds of traces; without
those that no figure has, most modules are called by none.
"""

import re
from pathlib import Path

import plotly

WHOLE = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"
KINDS = {"scatter", "bar", "contour", "heatmap"}  # Plotly's core brings the first
WRAPPERS = re.compile(r"\b([\w$]+)=\(e,t(?:,r)?\)=>\(\)=>")  # of ES modules, of CommonJS modules
REGISTER = re.compile(r"\.register\(\[([\w$(),]+)\]\)")
CALL = re.compile(r"([\w$]+)\(\)")
PASSED_ON = re.compile(r"\.exports=([\w$]+)\(\)\}")
TRACE = re.compile(r'moduleType:"trace",name:"(\w+)"')
TOKEN = re.compile(r"""//[^\n]*|/\*.*?\*/|"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|[`/{}]""", re.DOTALL)
PATTERN = re.compile(r"/(?:[^/\\\[\n]|\\.|\[(?:[^\]\\\n]|\\.)*\])+/")
BEFORE_PATTERN = re.compile(
    r"(?:[=(,;:!&|?{}\[+\-*%<>~^]|\b(?:return|typeof|case|in|of|delete|void))$"
)
TEMPLATE = re.compile(r"\\.|\$\{|`", re.DOTALL)


def end(code, at):
    """Return where the brace at ``at`` is closed."""
    depth = 0
    while True:
        token = TOKEN.search(code, at)
        at = token.end()
        if token[0] == "`":
            while (part := TEMPLATE.search(code, at))[0] != "`":
                at = end(code, part.end() - 1) if part[0] == "${" else part.end()
            at = part.end()
        elif token[0] == "/":
            if BEFORE_PATTERN.search(code[token.start() - 10 : token.start()]):
                at = PATTERN.match(code, token.start()).end()
        elif token[0] == "{":
            depth += 1
        elif token[0] == "}":
            depth -= 1
            if not depth:
                return at


def split(code):
    """Return the pieces of a bundle, in order: the names that each is called by, and its text."""
    es, common = WRAPPERS.findall(code)[:2]
    module = re.compile(rf"(?<=;)var ([\w$]+)={re.escape(common)}\(")
    started = re.compile(rf"([\w$]+)={re.escape(es)}\(\(")
    pieces, at = [], 0
    while found := module.search(code, at):
        between = code[at : found.start()]
        pieces.append((set(started.findall(between)), between))
        at = end(code, code.index("{", found.end())) + len(")")
        pieces.append(({found[1]}, code[found.start() : at]))
    return [*pieces, (set(), code[at:])]


def part(code):
    """Return Plotly's script with no other kinds of traces than `KINDS`.

    Raises:
        ValueError: the script is not built as this module expects.
    """
    pieces = split(code)
    text = {name: piece for names, piece in pieces for name in names}

    def kind(entry):
        """What an entry of the list registers, which a module in between may pass on."""
        passed_on = PASSED_ON.search(text[entry])
        found = TRACE.search(text[passed_on[1]] if passed_on else text[entry])
        return found and found[1]

    lists = [
        (names, found) for names, piece in pieces if (found := REGISTER.search(piece)) and names
    ]
    if len(lists) != 1:
        raise ValueError(f"Plotly's script has {len(lists)} lists of what it registers, not one")
    [((last,), register)] = lists
    entries = {kind(entry): entry for entry in CALL.findall(register[1])}
    if missing := KINDS - {"scatter"} - set(entries):
        raise ValueError(f"Plotly's script registers no {', '.join(sorted(missing))}")
    kept = ",".join(f"{entries[name]}()" for name in entries if name in KINDS)
    text[last] = text[last].replace(register[0], f".register([{kept}])")

    needed, todo = {last}, [text[last]]
    todo += [piece for names, piece in pieces if not names]
    whole = {name: names for names, _ in pieces for name in names}
    while todo:
        for name in set(CALL.findall(todo.pop())) & set(text) - needed:
            needed |= whole[name]
            todo.append(text[name])
    return "".join(
        text[last] if names == {last} else piece if not names or names & needed else ";"
        for names, piece in pieces
    )


def write_part(target):
    """Write the part into a file, unless one of the same sources is there."""
    sources = max(path.stat().st_mtime for path in (WHOLE, Path(__file__)))
    if not target.exists() or target.stat().st_mtime < sources:
        target.write_text(part(WHOLE.read_text("utf8")), "utf8")
