"""Builds the documentation site: Markdown from the notebooks, API pages from the docments, and HTML from both with MkDocs.

    python tools/docs.py            # the site in _docs, from Markdown in _proc/docs
    python tools/docs.py --out DIR  # in DIR/_docs, from DIR/_proc/docs
"""
import argparse, base64, dataclasses, functools, inspect, json, logging, os, re, shutil, sys, textwrap, types
from configparser import ConfigParser
from importlib import import_module
from pathlib import Path, PurePosixPath as Posix

from fastcore.docments import docments

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT/'tools'), str(ROOT)]   # the library of this checkout, whichever is installed
import rooms

def settings():
    cfg = ConfigParser(delimiters=['='])
    cfg.read(ROOT/'settings.ini', encoding='utf-8')
    return cfg['DEFAULT']

# ---- which file becomes which page

def notebook_cells(p):
    "(kind, source, outputs) of a notebook's cells."
    cells = json.loads(p.read_text(encoding='utf-8'))['cells']
    return [(c['cell_type'], ''.join(c['source']).strip(), c.get('outputs', [])) for c in cells]

def below(p): return p.relative_to(ROOT).as_posix()
def path(module): return module.replace('.', '/')
def module_of(page): return '.'.join(Posix(page).with_suffix('').parts[1:])   # of 'api/data/prompts.md' or 'fedai/data/prompts.py'

@functools.cache
def modules():
    "Module name -> the notebook it is exported from, in the order of the rooms."
    return rooms.modules()

@functools.cache
def pages():
    "Source, relative to the checkout -> page, relative to the site: what the site shows, in its order."
    res = {'nbs/index.ipynb': 'index.md', 'README.md': 'index.md'}
    res |= {below(p): f'tutorials/{p.stem.split("_", 1)[1]}.md' for p in rooms.lessons()}
    res |= {below(p): f'library/{path(m)}.md' for m,p in modules().items()}
    res |= {f'fedai/{path(m)}.py': f'api/{path(m)}.md' for m in modules()}
    res |= {f'benchmarks/{p.name}': f'benchmarks/{p.name}' for p in sorted((ROOT/'benchmarks').glob('*.md'))}
    return res | {f'{o}.md': f'{o.lower()}.md' for o in ('CONTRIBUTING', 'SECURITY', 'CHANGELOG')}

def beside_page(to, page):
    "From one page of the site to another, or to a picture."
    return os.path.relpath(to, Posix(page).parent)

def link(target, # a file, relative to the checkout
         page,   # the page that links to it
        )->str:
    "From `page` to the page of `target`, to an image of the notebooks, or to the repository for what the site doesn't show."
    target,mark,anchor = target.partition('#')
    if target in pages(): to = pages()[target]
    elif target.startswith('nbs/images/'): to = target[4:]
    else: return settings()['git_url'] + f'/blob/{settings()["branch"]}/{target}'
    return beside_page(to, page) + mark + anchor

# ---- Markdown

def split_code(text):
    "Pieces of Markdown that are prose (even) and code (odd): fenced blocks and `spans`."
    return re.split(r'(^```.*?^```[^\n]*$|`[^`\n]+`)', text, flags=re.M|re.S)

def formulas(text):
    "`text` with MathML, which browsers show by themselves, for $$LaTeX$$."
    from latex2mathml.converter import convert
    put = lambda s: re.sub(r'\$\$(.+?)\$\$', lambda m: convert(m[1].strip(), display='block'), s, flags=re.S)
    return ''.join(o if i%2 else put(o) for i,o in enumerate(split_code(text)))

@functools.cache
def symbols():
    "Exported name -> the page that explains it; not those that two modules export, or that are also settings or modules."
    res,fields = {},{f.name for f in dataclasses.fields(import_module('fedai.config').FedConfig)}
    for m in modules():
        for s in import_module(f'fedai.{m}').__all__: res.setdefault(s, []).append(f'api/{path(m)}.md#{s}')
    return {s: o[0] for s,o in res.items() if len(o) == 1 and s not in fields and s not in modules()}

def link_span(span, # `code` in prose
              page, # the page it is on
             )->str:
    "A name that fedai exports, or a file that the site shows, as a link to where it is explained."
    name = span.strip('`')
    file = next((o for o in (name, f'nbs/{name}', f'nbs/{name}.ipynb') if o in pages() and pages()[o] != page), None)
    if file: return f'[{span}]({link(file, page)})'
    to = symbols().get(name.split('(')[0].removeprefix('server.'))
    return f'[{span}]({beside_page(to, page)})' if to and not to.startswith(page) else span

def markdown(text,   # as a notebook or a file of the checkout has it
             source, # that file, relative to the checkout
             page,   # the page it goes to
            )->str:
    "`text` as MkDocs reads it: links to other files lead to their pages, and lists stand apart from the paragraph before."
    folder = Posix(source).parent
    def relink(m):
        if re.match(r'\w+:|#', m[2]): return m[0]
        return m[1] + link(os.path.normpath(folder/m[2]), page) + ')'
    parts = split_code(text)
    for i,o in enumerate(parts):
        if not i%2:
            o = re.sub(r'(\]\()([^)\s]+)\)', relink, o)
            parts[i] = re.sub(r'<(?=[^a-zA-Z/!])', '&lt;', o)
        elif not o.startswith('```'):
            linked = parts[i-1].endswith('[') and parts[i+1].startswith('](')
            heading = parts[i-1].rsplit('\n', 1)[-1].startswith('#')
            if not linked and not heading: parts[i] = link_span(o, page)
    lines,fenced = [],False
    for o in ''.join(parts).split('\n'):
        item = re.match(r'\s*([-*]|\d+\.) ', o)
        if item and not fenced and lines and lines[-1].strip() and not re.match(r'\s*([-*]|\d+\.) |\s+', lines[-1]): lines.append('')
        fenced ^= o.startswith('```')
        lines.append(o)
    return '\n'.join(lines)

def fence(text, kind='', title=''):
    tick = '`'*max(3, *(len(o) + 1 for o in re.findall('`+', text)), 3)
    return f'{tick}{kind}' + (f' title="{title}"' if title else '') + f'\n{text}\n{tick}'

def output(o, name, page, images):
    "What a cell printed, drew or returned; a picture goes into `images` as well."
    data = o.get('data', {})
    text = lambda k: ''.join(data.get(k, []))
    if 'image/png' in data:
        images[f'images/{name}.png'] = base64.b64decode(text('image/png'))
        return f'![What the cell above draws]({beside_page(f"images/{name}.png", page)})'
    if 'text/markdown' in data: return text('text/markdown')
    said = ''.join(o.get('text', [])) or text('text/plain')
    return f'<div class="output" markdown>\n{fence(said.rstrip(), "text")}\n</div>' if said.strip() else ''

def notebook_page(source, page, images):
    "A notebook's Markdown, code and outputs; code that a module is made of says which."
    parts = []
    module = next((m for m,p in modules().items() if p == ROOT/source), None)
    name,api = Posix(page).with_suffix('').as_posix().replace('/', '_'),module and beside_page(f'api/{path(module)}.md', page)
    for i,(kind,src,outs) in enumerate(notebook_cells(ROOT/source)):
        flags = re.findall(r'^#\|\s*(\w+)', src, re.M)
        if kind == 'markdown': parts.append(markdown(src, source, page))
        elif kind == 'code' and not {'hide','default_exp'} & set(flags):
            code = re.sub(r'^#\|.*\n?', '', src, flags=re.M).strip()
            exports = module and {'export','exporti'} & set(flags)
            if code: parts.append(fence(code, 'python', f'fedai.{module}' if exports else ''))
            parts += [output(o, f'{name}_{i}_{j}', page, images) for j,o in enumerate(outs)]
        if i == 0 and module: parts.append(f'*In short: [the API of `fedai.{module}`]({api}).*')
    return '\n\n'.join(o for o in parts if o) + '\n'

# ---- API

def type_name(t):
    if t is inspect.Parameter.empty or t is types.NoneType or t is None: return ''
    s = t if isinstance(t, str) else inspect.formatannotation(t)
    return re.sub(r'\bfedai\.(\w+\.)+', '', s)

def value(v):
    "A default, short enough for a table."
    s = getattr(v, '__name__', None) or re.sub(r' at 0x\w+', '', repr(v))
    return s if len(s) <= 60 else s[:57] + '...'

def cell(s): return re.sub(r'\s+', ' ', s.replace('|', '\\|')).strip()
def code_cell(s): return f'`{s}`' if s else ''   # a pipe in code separates nothing

def said_of(o, field):
    "The comment beside a field of a `NamedTuple` class; nothing for one that `namedtuple` made."
    if not o.__annotations__: return None
    said = re.search(rf'^\s+{field}:[^#\n]*# (.*)$', inspect.getsource(o), re.M)
    return said and said[1]

def fields_of(o):
    "The fields of a namedtuple, as `params` gives parameters."
    none,kinds,defaults = inspect.Parameter.empty,o.__annotations__,o._field_defaults
    return {f: dict(docment=said_of(o, f), anno=kinds.get(f, none), default=defaults.get(f, none)) for f in o._fields}

def made_defaults(o):
    "Field -> its default, for a dataclass's fields whose default is made anew for each object."
    if not dataclasses.is_dataclass(o): return {}
    made = [f for f in dataclasses.fields(o) if f.default_factory is not dataclasses.MISSING]
    return {f.name: dict(default=f.default_factory()) for f in made}

def params(o, above=()):
    "Parameter, without `self` -> what docments know of it, or of the first of those `above` that says something; a namedtuple's fields."
    if hasattr(o, '_fields'): return fields_of(o)
    if isinstance(o, type) and issubclass(o, Exception) and '__init__' not in vars(o): return {}
    if isinstance(o, type) and o.__init__ is object.__init__: return {}
    made = made_defaults(o)
    star = {inspect.Parameter.VAR_POSITIONAL: '*', inspect.Parameter.VAR_KEYWORD: '**'}
    known = [docments(b, args_kwargs=True) for b in above]
    said = lambda k: next((d[k] for d in known if d.get(k)), None)
    found = {k: d for k,d in docments(o, full=True, args_kwargs=True).items() if k not in ('self','cls')}
    return {star.get(d.get('kind'), '') + k: {**d, **made.get(k, {}), 'docment': d['docment'] or said(k)} for k,d in found.items()}

def signature(name, ps):
    "`name(a, b=1)`, broken between parameters where it is long; types stand in the table."
    args = [k + ('' if d['default'] is inspect.Parameter.empty else '=' + value(d['default'])) for k,d in ps.items() if k != 'return']
    out = type_name(ps.get('return', {}).get('anno'))
    tail = ')' + (f' -> {out}' if out else '')
    whole = f'{name}({", ".join(args)}{tail}'
    if len(whole) <= 100: return whole
    lines = ['']
    for a in args:
        if len(lines[-1]) + len(a) > 92: lines.append('')
        lines[-1] += a + ', '
    return f'{name}(\n    ' + '\n    '.join(o.rstrip() for o in lines)[:-1] + '\n' + tail

def table(ps, page):
    "Parameter, type, default and meaning of each, and what comes back, if anything is known of it."
    def row(k, d):
        default = d['default'] if k != 'return' else inspect.Parameter.empty
        default = '' if default is inspect.Parameter.empty else value(default)
        name = '*returns*' if k == 'return' else code_cell(k)
        said = cell(markdown(d['docment'] or '', 'README.md', page))
        return f'| {name} | {code_cell(type_name(d["anno"]))} | {code_cell(default)} | {said} |'
    rows = [row(k, d) for k,d in ps.items() if k != 'return' or d['docment']]
    if not rows: return ''
    head = ['| parameter | type | default | meaning |', '|---|---|---|---|']
    return '\n'.join(['<div class="parameters" markdown>\n', *head, *rows, '\n</div>'])

def function_of(v):
    "The function behind a method, property, or class or static method, also one that `@patch` made."
    return next((f for k in ('__func__','fget','func','f') if (f := getattr(v, k, None))), v)

def methods(o):
    "What a class itself says it can do: public functions, properties and class methods, in the order in which they are defined."
    if hasattr(o, '_fields'): return
    for k,v in vars(o).items():   # first what stands in the class, then what was patched in, cell by cell
        f = function_of(v)
        if not k.startswith('_') and inspect.isfunction(f): yield k, f, not isinstance(v, (property, functools.cached_property))

def constructor(o):
    "The class in which the constructor that a class explains is written: itself or a direct base; nothing where it is further up."
    return next((c for c in (o, *o.__bases__) if '__init__' in vars(c) and c.__module__.split('.')[0] == o.__module__.split('.')[0]), None)

def beside(name, page):
    "The comment beside an assignment, which explains a value or a namedtuple's fields."
    src = Path(import_module(f'fedai.{module_of(page)}').__file__).read_text(encoding='utf-8')
    said = re.search(rf'^{name}\b[^\n]*?=[^\n]*?\s# (.*)$', src, re.M)
    return markdown(said[1], 'README.md', page) if said else ''

def entry(name,      # what it is called
          o,         # a function, a class, or a value
          page,      # the API page it stands on
          level=2,   # of its heading
          call=True, # False: a property, which takes nothing
          above=(),  # what it overrides
         )->str:
    "Signature, sentence and table of one export, and of its methods."
    head = '#'*level + f' {name.split(".")[-1]} {{ #{name} }}'
    if not callable(o):
        shown = value(o)
        if isinstance(o, dict): shown = textwrap.fill('{' + ', '.join(f'{k!r}: ...' for k in o) + '}', 100, subsequent_indent=' ')
        return '\n\n'.join(filter(None, [head, fence(f'{name}: {type(o).__name__} = {shown}', 'python'), beside(name, page)]))
    if isinstance(o, type): above = [b for b in o.__mro__[1:] if '__init__' in vars(b) and b.__module__.startswith('fedai.')]
    ps = params(o, above) if call else {}
    parts = [head, fence(signature(name, ps) if call else name, 'python')]
    bare = hasattr(o, '_fields') and o.__doc__.startswith(name + '(')   # a namedtuple whose docstring nobody wrote
    inherits = isinstance(o, type) and not constructor(o) and not hasattr(o, '_fields')   # a class further up explains what it takes
    parts += [beside(name, page)] if bare else [markdown(inspect.getdoc(o) or '', 'README.md', page), '' if inherits else table(ps, page)]
    if isinstance(o, type):
        bases = [b.__name__ for b in o.__bases__ if b not in (object,tuple) and b.__name__[0] != '_']
        bases = [f'[`{b}`]({os.path.relpath(symbols()[b], Posix(page).parent)})' if b in symbols() else f'`{b}`' for b in bases]
        if bases: parts.insert(2, 'A subclass of ' + ', '.join(bases) + '.')
        overridden = lambda k: [vars(b)[k] for b in o.__mro__[1:] if callable(vars(b).get(k))]
        parts += [entry(f'{name}.{k}', f, page, level + 1, call, overridden(k)) for k,f,call in methods(o)]
    return '\n\n'.join(o for o in parts if o)

def summary(module):
    "The sentence under a notebook's title."
    return re.search(r'^> (.+?)(?:\n\n|\Z)', notebook_cells(modules()[module])[0][1], re.M|re.S)[1].replace('\n> ', ' ')

def api_page(module):
    "All exports of `module`."
    mod,page = import_module(f'fedai.{module}'),f'api/{path(module)}.md'
    source = below(modules()[module])
    parts = [f'# fedai.{module}', '> ' + markdown(summary(module), source, page), f'*With examples: [`{source}`]({link(source, page)}).*']
    return '\n\n'.join(parts + [entry(s, getattr(mod, s), page) for s in mod.__all__]) + '\n'

def api_index():
    rows = [f'| [`fedai.{m}`]({path(m)}.md) | {cell(markdown(summary(m), "README.md", "api/index.md"))} |' for m in modules()]
    head = 'What each module exports. All of it can be had from `fedai` itself, too: `from fedai import FedConfig`.'
    return '\n'.join(['# API', '', head, '', '| module | what it is for |', '|---|---|', *rows]) + '\n'

# ---- the site

def site_files():
    "Path below the site's source -> Markdown, or a picture's bytes."
    res = {f'images/{p.name}': p.read_bytes() for p in (ROOT/'nbs'/'images').iterdir()}
    for source,page in pages().items():
        if source == 'README.md': continue   # it is written from the index
        if source.endswith('.ipynb'): res[page] = notebook_page(source, page, res)
        elif source.endswith('.py'): res[page] = api_page(module_of(source))
        else: res[page] = markdown((ROOT/source).read_text(encoding='utf-8'), source, page)
    first = '---\nhide: [navigation]\n---\n\n' + res['index.md']   # it has no neighbours
    return res | {'api/index.md': api_index(), 'index.md': first}

def nav(files):
    "Start, tutorials, the library in the notebooks' order, API, benchmarks, and the project."
    entry = lambda page: {re.sub('[`*]', '', re.search('^# (.+)$', files[page], re.M)[1]): page}
    def of(folder):
        out,there = [],{}   # a folder of the library is a section, where its first page is
        for p in pages().values():
            if not p.startswith(folder + '/'): continue
            if len(parts := Posix(p).parts) == 2: out.append(entry(p))
            elif parts[1] in there: there[parts[1]].append(entry(p))
            else: out.append({parts[1]: there.setdefault(parts[1], [entry(p)])})
        return out
    return [{'Start': 'index.md'}, {'Tutorials': of('tutorials')}, {'Library': of('library')},
            {'API': [{'Overview': 'api/index.md'}, *of('api')]}, {'Benchmarks': of('benchmarks')},
            {'Project': [entry(p) for p in ('contributing.md', 'security.md', 'changelog.md')]}]

def build(out):
    "Write the pages and make the site of them; a warning, such as for a link to nowhere, is an error."
    try:
        import latex2mathml   # noqa: F401 (`formulas` needs it)
        from mkdocs.commands.build import build as make
        from mkdocs.config import load_config
    except ImportError as e: sys.exit(f"{e}. `make docs` installs what is needed, as does: pip install -c constraints.txt '.[docs]'")
    logging.basicConfig(level=logging.WARNING, format='%(levelname)s %(message)s')
    docs,site,files,cfg = out/'_proc'/'docs',out/'_docs',site_files(),settings()
    shutil.rmtree(docs, ignore_errors=True)
    shutil.copytree(ROOT/'tools'/'site', docs/'assets')
    for name,o in files.items():
        (docs/name).parent.mkdir(parents=True, exist_ok=True)
        (docs/name).write_bytes(o if isinstance(o, bytes) else formulas(o).encode())
    mk = load_config(str(ROOT/'mkdocs.yml'), nav=nav(files), docs_dir=str(docs), site_dir=str(site),
                     site_name=cfg['title'], site_description=cfg['description'],
                     site_url=cfg['doc_host'] + cfg['doc_baseurl'] + '/', strict=True)
    # not `repo_url`, with which each reader's browser would ask GitHub for its stars
    mk.extra['social'] = [dict(icon='fontawesome/brands/git-alt', link=cfg['git_url'], name='Source')]
    make(mk)
    print(f'{len(list(site.rglob("*.html")))} pages, from {site/"index.html"} on')

if __name__ == '__main__':
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--out', type=Path, default=ROOT, metavar='DIR', help='where _docs and _proc are made [the checkout]')
    build(ap.parse_args().out.resolve())
