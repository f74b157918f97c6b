"""What the book weighs: what is taken out of it, and how it is served."""

import gzip
import threading
import urllib.request
from pathlib import Path

import lecture6_plotly
import pytest
import serve
from lecture6_weight import UNUSED, only_icons

ROOT = Path(__file__).parents[2]
HTML = ROOT / "_build" / "html"
STATIC = HTML / "_static"
MB = 1e6
LIST = 'e=(e,t)=>()=>c=(e,t)=>()=>{};var a=c((e,t)=>{moduleType:"trace",name:"pie"});'


def compressed(path):
    return len(gzip.compress(path.read_bytes(), 6))


@pytest.mark.skipif(not HTML.exists(), reason="the book is not built: `make book`")
class TestBuilt:
    def test_the_site_is_small(self):
        assert sum(path.stat().st_size for path in HTML.rglob("*") if path.is_file()) <= 20 * MB

    def test_nothing_unused_is_left(self):
        assert [path for pattern in UNUSED for path in STATIC.glob(pattern)] == []

    @pytest.mark.parametrize(
        ("script", "most"), [("plotly.min.js", 0.5), ("scripts/fontawesome.js", 0.05)]
    )
    def test_a_script_is_the_part_that_is_used(self, script, most):
        assert compressed(STATIC / script) <= most * MB


def test_only_the_icons_that_are_named_stay():
    bar, sun = '"bar-x":[1,2,["old-bar"],"f0","M0"],', 'sun:[1,2,[],"f1",["M1","M2"]]'
    script = f"a={{{bar}{sun}}};"
    assert only_icons(script, {"sun"}) == f"a={{{sun}}};"
    assert only_icons(script, {"old-bar"}) == f"a={{{bar}}};"


@pytest.mark.parametrize("code", [LIST, f"{LIST}var z=c((e,t)=>{{x.register([a()])}});end"])
def test_another_plotly_is_refused(code):
    with pytest.raises(ValueError, match="Plotly's script"):
        lecture6_plotly.part(code)


def test_what_no_kind_of_trace_calls_is_left_out():
    def module(name, text):
        return f"var {name}=c((e,t)=>{{{text}}});"

    def trace(kind):
        return f'e.exports={{x:/[{{]/,y:"}}",z:`${{1}}{{`,moduleType:"trace",name:"{kind}"}}'

    kinds = ["bar", "contour", "heatmap"]
    code = "e=(e,t)=>()=>0,c=(e,t)=>()=>0;" + module("p", f"q();{trace('pie')}") + module("q", "")
    code += "".join(module(kind, trace(kind)) for kind in kinds)
    entries = "p(),bar(),contour(),heatmap()"
    code += module("all", f"core.register([{entries}])") + "return all();"
    kept = lecture6_plotly.part(code)
    assert "var p=" not in kept
    assert "var q=" not in kept
    assert ".register([bar(),contour(),heatmap()])" in kept
    assert kept.endswith("return all();")


def test_a_text_is_served_compressed_to_who_accepts_it(tmp_path):
    (tmp_path / "index.html").write_text("word " * 1000)
    (tmp_path / "picture.png").write_bytes(b"\0" * 1000)
    with serve.server(tmp_path) as at:
        threading.Thread(target=at.serve_forever, daemon=True).start()

        def answer(path, accept):
            address = f"http://127.0.0.1:{at.server_port}/{path}"
            request = urllib.request.Request(address, headers={"Accept-Encoding": accept})
            with urllib.request.urlopen(request) as reply:
                return reply.headers["Content-Encoding"], reply.read()

        for path in ("", "index.html", "index.html?digest=1"):
            encoding, body = answer(path, "gzip")
            assert encoding == "gzip"
            assert gzip.decompress(body) == b"word " * 1000
        assert answer("index.html", "identity") == (None, b"word " * 1000)
        assert answer("picture.png", "gzip") == (None, b"\0" * 1000)
        at.shutdown()
