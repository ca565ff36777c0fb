"The documentation: its links lead somewhere, every export is explained, what it says to type works, and it needs no network."
import ast, importlib.util, io, json, re, shlex, subprocess, sys, tokenize
import numpy as np, pytest, yaml
from html.parser import HTMLParser
from importlib import import_module
from pathlib import Path
from urllib.parse import unquote
from conftest import client_data

ROOT = Path(__file__).parent.parent
spec = importlib.util.spec_from_file_location('fedai_docs', ROOT/'tools'/'docs.py')
docs = importlib.util.module_from_spec(spec)
spec.loader.exec_module(docs)

rooms = docs.rooms
NOTEBOOKS = rooms.notebooks()
TEXTS = [*NOTEBOOKS, *sorted(ROOT.glob('*.md')), *sorted((ROOT/'benchmarks').glob('*.md'))]
MODULES = sorted('.'.join(p.relative_to(ROOT/'fedai').with_suffix('').parts)
                 for p in (ROOT/'fedai').rglob('*.py') if not p.stem.startswith('_'))

def prose(p):
    "Markdown without fenced code."
    text = p.read_text(encoding='utf-8')
    if p.suffix == '.ipynb': text = '\n\n'.join(''.join(c['source']) for c in json.loads(text)['cells'] if c['cell_type'] == 'markdown')
    return re.sub(r'^```.*?^```', '', text, flags=re.M|re.S)

def broken(text, folder, root=ROOT):
    "Links and images that lead to no file, and files named in `code` that aren't there."
    links = re.findall(r'\]\(([^)\s]+)\)', re.sub(r'`[^`\n]*`', '', text)) + re.findall(r'<img[^>]+src="([^"]+)"', text)
    res = [o for o in links if not re.match(r'\w+:|#', o) and not (folder/unquote(o.split('#')[0])).exists()]
    ours = r'(?:nbs|fedai|tests|tools|configs|benchmarks|\.github)/[\w./-]+\.\w+'
    named = re.findall(rf'`({ours}|(?:\w+/)?\d\d_\w+(?:\.ipynb)?)`', text)
    return res + [o for o in named if not any((root/k).exists() for k in (o, f'nbs/{o}', f'nbs/{o}.ipynb'))]

def test_what_is_broken_is_found(tmp_path):
    (tmp_path/'there.md').touch()
    text = ('[a](there.md#x) [b](gone.md) ![c](gone.png) [d](https://x.org) [e](#here) '
            '`nbs/99_gone.ipynb` `99_none` `nbs/02_graphs.ipynb` `02_graphs` `f](x)`')
    assert broken(text, tmp_path) == ['gone.md','gone.png','nbs/99_gone.ipynb','99_none']

@pytest.mark.parametrize('p', TEXTS, ids=lambda p: p.name)
def test_links_lead_somewhere(p): assert broken(prose(p), p.parent) == []

# ---- API pages

def section(page, name): return page.split(f'{{ #{name} }}\n', 1)[1].split('\n## ', 1)[0]

def comments(src):
    "Line number -> comment."
    return {t.start[0]: t.string[1:].strip() for t in tokenize.generate_tokens(io.StringIO(src).readline) if t.type == tokenize.COMMENT}

def plain(s):
    "Markdown without links of code and escapes, on one line."
    s = re.sub(r'\[(`[^`]+`)\]\([^)]+\)', r'\1', s).replace('\\|', '|').replace('&lt;', '<')
    return re.sub(r'\s+', ' ', s).strip()

def patched(node):
    "The class that a function of a module is made a method of by `@patch`, as its first parameter is annotated; nothing for others."
    if not isinstance(node, ast.FunctionDef): return None
    names = [getattr(d.func if isinstance(d, ast.Call) else d, 'id', '') for d in node.decorator_list]
    return getattr(node.args.args[0].annotation, 'id', None) if 'patch' in names else None

def methods_of(cls, tree):
    "What a class has to explain: its constructor and public methods, those of its body, then those that are patched in."
    inside = [o for o in cls.body if isinstance(o, ast.FunctionDef) and (o.name == '__init__' or o.name[0] != '_')]
    return inside + [o for o in tree.body if patched(o) == cls.name and o.name[0] != '_']

def set_by(f): return any(getattr(d, 'attr', '') == 'setter' for d in f.decorator_list)

def not_said(f, owner, where, said):
    "Parameters of a function, and comments beside them, that a part of a page doesn't have."
    args = [a for a in (*f.args.posonlyargs, *f.args.args, *f.args.kwonlyargs) if a.arg not in ('self','cls')]
    missing,end = [],f.body[0].lineno
    for a in args:
        if f'`{a.arg}`' not in where: missing.append((owner, f.name, a.arg))
        alone = sum(b.lineno == a.lineno for b in args) == 1
        if alone and a.lineno < end and (c := said.get(a.lineno)) and plain(c) not in where: missing.append((owner, f.name, a.arg, c))
    return missing

def explained(src, page):
    "What the source says of its exports, that the page doesn't: read from the source's text, not from the running code."
    tree,said,missing = ast.parse(src),comments(src),[]
    assigned = {getattr(o.targets[0], 'id', ''): o.value for o in tree.body if isinstance(o, ast.Assign)}
    names = ast.literal_eval(assigned['__all__'])
    assert re.findall(r'^## .*\{ #(\w+) \}$', page, re.M) == names
    for node in tree.body:
        if isinstance(node, ast.Assign) and (name := getattr(node.targets[0], 'id', '')) in names:
            if (c := said.get(node.lineno)) and plain(c) not in plain(section(page, name)): missing.append((name, c))
        if getattr(node, 'name', None) not in names or patched(node): continue
        part = plain(section(page, node.name))
        if (doc := ast.get_docstring(node)) and plain(doc.split('\n')[0]) not in part: missing.append((node.name, doc))
        if isinstance(node, ast.FunctionDef):
            missing += not_said(node, node.name, part.split('### ')[0], said)
            continue
        methods = [f for f in methods_of(node, tree) if not set_by(f)]
        public = dict.fromkeys(f'{node.name}.{f.name}' for f in methods if f.name != '__init__')
        shown = re.findall(r'^### .*\{ #([\w.]+) \}$', section(page, node.name), re.M)
        if (gone := [o for o in public if o not in shown]): missing.append((node.name, *gone))
        elif shown and [o for o in shown if o in public] != list(public): missing.append((node.name, 'order', shown))
        for f in methods:
            name = node.name if f.name == '__init__' else f'{node.name}.{f.name}'
            if name in gone: continue
            where = plain(section(page, name)).split('### ')[0]
            doc = f.name != '__init__' and ast.get_docstring(f)
            if doc and plain(doc.split('\n')[0]) not in where: missing.append((node.name, f.name, doc))
            missing += not_said(f, node.name, where, said)
    return missing

@pytest.mark.parametrize('module', MODULES)
def test_every_export_is_explained(module):
    src,page = (ROOT/'fedai'/f'{docs.path(module)}.py').read_text(encoding='utf-8'),docs.api_page(module)
    assert explained(src, page) == []
    names = import_module(f'fedai.{module}').__all__
    for s in names: assert re.search(rf'^{s}\b', section(page, s).split('```python\n')[1]), f'{s} has no signature'

@pytest.mark.parametrize('name', '''algorithms.get_server cli.main cli.run_export data.prompts.fill_template data.prompts.encode_all
    train.tasks.TextTask train.modules.ModuleTask ship.export_adapter study.report.write_report study.comparison.compare
    data.clients.get_client_data models.get_model servers.BaseServer utils.picture_text'''.split())
def test_all_parameters_are_explained(name):
    module,name = name.rsplit('.', 1)
    table = section(docs.api_page(module), name).split('</div>')[0]
    assert '| parameter |' in table and not re.findall(r'^\| `.*\| *\|$', table, re.M)

def test_what_is_not_explained_is_found():
    src = '__all__ = ["v", "f"]\nv = {} # a value\ndef f(a, # first\n      b=1, # second\n     ):\n    "What f does."\n'
    page = ('## v { #v }\n\na value\n\n## f { #f }\n\n```python\nf(a, b=1)\n```\n\nWhat f does.\n\n'
            '| `a` | | | first |\n| `b` | | `1` | second |\n')
    assert explained(src, page) == []
    assert explained(src, page.replace('a value', '')) == [('v','a value')]
    assert explained(src, page.replace('second', '')) == [('f','f','b','second')]
    assert explained(src, page.replace('| `a` | | | first |\n', '')) == [('f','f','a'), ('f','f','a','first')]
    assert explained(src, page.replace('What f does', '')) == [('f','What f does.')]

def test_a_patched_method_that_is_not_explained_is_found():
    src = '\n'.join(['__all__ = ["C"]', 'class C:', '    "A class."', '    def first(self): "Do this."',
                     '@patch', 'def m(self:C, a): # the way', '    "Go."',
                     '@patch(as_prop=True)', 'def p(self:C): "Its place."',
                     '@patch', 'def _h(self:C, b): "Inside."', '@patch', 'def other(self:D, c): "Not here."'])
    page = ('## C { #C }\n\nA class.\n\n### first { #C.first }\n\nDo this.\n\n### m { #C.m }\n\nGo.\n\n'
            '| `a` | | | the way |\n\n### p { #C.p }\n\nIts place.\n')
    assert explained(src, page) == []
    assert explained(src, page.replace('### m { #C.m }', '')) == [('C','C.m')]
    assert explained(src, page.replace('the way', '')) == [('C','m','a','the way')]
    assert explained(src, page.replace('Its place.', '')) == [('C','p','Its place.')]
    swapped = page.replace('#C.first', '#X').replace('#C.m', '#C.first').replace('#X', '#C.m')
    assert ('C','order',['C.m','C.first','C.p']) in explained(src, swapped)

def test_methods_come_in_the_order_of_definition():
    page = docs.api_page('servers')
    names = re.findall(r'^### .*\{ #BaseServer\.(\w+) \}$', page, re.M)
    round = ['send','aggregate','update','commit','one_round','fit']
    assert [o for o in names if o in round] == round
    assert 'learns_graph' in re.findall(r'^### .*\{ #Federation\.(\w+) \}$', docs.api_page('federation'), re.M)   # a property
    assert '{ #Committed.read }' in docs.api_page('store.adapters')   # a class method
    assert '| `holdout_ds` |' in section(page, 'BaseServer').split('### ')[0]          # what its direct base takes
    assert '| `holdout_ds` |' not in section(page, 'Server_mira').split('### ')[0]

def test_a_page_for_every_notebook_and_module_in_order():
    assert set(docs.modules().values()) == {p for p in NOTEBOOKS if '#| default_exp' in p.read_text()} and sorted(docs.modules()) == MODULES
    order = list(docs.pages())
    assert {docs.below(p) for p in NOTEBOOKS} <= set(order)
    lib = [o for o in order if docs.pages()[o].startswith('library/')]
    assert lib == [docs.below(p) for p in docs.modules().values()] and len(lib) == len(MODULES)

def test_links_between_pages():
    assert docs.link('nbs/02_graphs.ipynb', 'api/graphs.md') == '../library/graphs.md'
    assert docs.link('nbs/images/demo.png', 'index.md') == 'images/demo.png'
    assert docs.link('configs/demo.yaml', 'index.md').endswith('/blob/main/configs/demo.yaml')
    text = 'See `laplacian(A)`, `model`, [x](images/demo.png) and `02_graphs`:\n- a <- b, `x <- y`\n```\n[y](z.md) `02_graphs`\n```'
    assert docs.markdown(text, 'nbs/10_servers.ipynb', 'library/servers.md') == (
        'See [`laplacian(A)`](../api/graphs.md#laplacian), `model`, [x](../images/demo.png) and [`02_graphs`](graphs.md):\n\n'
        '- a &lt;- b, `x <- y`\n```\n[y](z.md) `02_graphs`\n```')

# ---- what the files say

def block(kind, start):
    text = (ROOT/'CONTRIBUTING.md').read_text(encoding='utf-8')
    return next(o for o in re.findall(rf'^```{kind}\n(.*?)^```', text, re.M|re.S) if o.startswith(start))

def test_the_algorithm_in_contributing_is_what_it_says(make_cfg, tmp_path):
    from fedai import get_server
    (tmp_path/'relay.py').write_text(block('python', 'import numpy'), encoding='utf-8')
    cfg = make_cfg(name='relay', imports=[str(tmp_path/'relay.py')], algorithm_args={'share': .25})
    server = get_server(cfg, client_data(4), callbacks=[])
    M = server.mixing_matrix([0,2,3], 0)
    np.testing.assert_allclose(M, [[.75,.25,0],[0,.75,.25],[.25,0,.75]])
    assert len(server.fit()) == 2

def test_the_command_in_contributing_runs(tmp_path, monkeypatch, capsys):
    from fedai.cli import main
    pytest.importorskip('reasoning_gym')
    monkeypatch.chdir(tmp_path)
    Path('relay.py').write_text(block('python', 'import numpy'), encoding='utf-8')
    program,*args = shlex.split(block('sh', '.venv/bin/fedai').replace('\\\n', ' '))
    assert main([*args, '--device', 'cpu']) == 0 and 'gcd-0' in capsys.readouterr().out
    assert (tmp_path/'runs'/'relay'/'2'/'local_output_3'/'adapter_model.safetensors').exists()

def test_project_files_agree_with_the_settings():
    cfg = docs.settings()
    cite = yaml.safe_load((ROOT/'CITATION.cff').read_text(encoding='utf-8'))
    assert cite['cff-version'] == '1.2.0' and cite['version'] == cfg['version'] and cite['repository-code'] == cfg['git_url']
    assert f'## {cfg["version"]}' in (ROOT/'CHANGELOG.md').read_text(encoding='utf-8')
    ci = yaml.safe_load((ROOT/'.github'/'workflows'/'ci.yml').read_text(encoding='utf-8'))['jobs']['test']
    assert cfg['min_python'] in ci['strategy']['matrix']['python'] and {'make test'} <= {o.get('run') for o in ci['steps']}
    rules = set(re.findall(r'^(\w+):', (ROOT/'Makefile').read_text(encoding='utf-8'), re.M))
    for p in TEXTS: assert set(re.findall(r'`make (\w+)`', prose(p))) <= rules, p.name

# ---- the site

class Page(HTMLParser):
    def __init__(self, p):
        super().__init__()
        self.ids,self.links,self.loads = set(),[],[]
        self.feed(p.read_text(encoding='utf-8'))
    def handle_starttag(self, tag, attrs):
        d = dict(attrs)
        self.ids.add(d.get('id'))
        if tag == 'a' and d.get('href'): self.links.append(d['href'])
        elif tag in ('img','script','iframe') and d.get('src'): self.loads.append(d['src'])
        elif tag == 'link' and d.get('rel') not in ('canonical','prev','next'): self.loads.append(d['href'])

@pytest.mark.slow
def test_the_site_is_whole_and_fetches_nothing(tmp_path):
    pytest.importorskip('mkdocs', reason="needs pip install '.[docs]'")
    pytest.importorskip('material', reason="needs pip install '.[docs]'")
    r = subprocess.run([sys.executable, ROOT/'tools'/'docs.py', '--out', tmp_path], capture_output=True, text=True)
    assert r.returncode == 0, r.stdout + r.stderr
    site = tmp_path/'_docs'
    html = {p: Page(p) for p in site.rglob('*.html') if p.name != '404.html'}
    assert {p.relative_to(site).with_suffix('.md').as_posix() for p in html} == {*docs.pages().values(), 'api/index.md'}
    for p,page in html.items():
        for o in page.loads:
            assert not re.match(r'\w+:|//', o), f'{p.name} fetches {o}'
            assert (p.parent/o).exists(), f'{p.name}: {o}'
        for o in page.links:
            if re.match(r'\w+:', o): continue
            to,_,anchor = unquote(o).partition('#')
            target = (p.parent/to).resolve() if to else p
            if target.is_dir(): target /= 'index.html'
            assert target.exists() and (not anchor or anchor in html[target].ids), f'{p.name}: {o}'
    for p in site.rglob('*.css'): assert not re.search(r'(url\(|@import )["\']?(https?:)?//', p.read_text(encoding='utf-8')), p
    texts = (site/'library'/'remote'/'sums.html').read_text(encoding='utf-8')
    assert texts.count('<math') == 2 and '$$' not in texts
    from browser import Browser, find
    if not find(): return
    with Browser(480) as b:   # on a telephone all of a parameter can be read
        for name in ('api/config','api/ship','index','tutorials/reading_the_scorecard'):
            b.open(site/f'{name}.html')
            assert b.js('document.documentElement.scrollWidth') <= 480 and not b.errors
            assert b.js("[...document.querySelectorAll('.parameters td')].filter(e => e.getBoundingClientRect().right > 480).length") == 0
            assert b.js("document.querySelectorAll('.parameters td').length > 20") == name.startswith('api/')
    with Browser(1300) as b:   # lines of 140 characters need no scroll bar
        for name in ('library/servers','library/store/adapters','library/train/passes'):
            b.open(site/f'{name}.html')
            wide = "[...document.querySelectorAll('pre > code')].filter(e => e.scrollWidth > e.clientWidth).length"
            assert b.js('document.documentElement.scrollWidth') <= 1300 and b.js(wide) == 0, name
            assert b.js("document.querySelectorAll('.md-nav--primary .md-nav__item--section').length") > 5   # the rooms that are folders
