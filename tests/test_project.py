"What holds of the project's files."
import ast, configparser, inspect, json, re, subprocess, sys
import pytest
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT/'nbs').glob('*.ipynb'))
code = lambda p: [''.join(c['source']) for c in json.loads(p.read_text())['cells'] if c['cell_type'] == 'code']
MODULES = {m[1]: p for p in NOTEBOOKS for s in code(p) if (m := re.search(r'^#\| default_exp (\w+)', s, re.M))}

def test_a_notebook_imports_only_lower_numbered_ones():
    for name,p in MODULES.items():
        src = '\n'.join(s for s in code(p) if re.search(r'^#\| export', s, re.M))
        for used in set(re.findall(r'^\s*from fedai\.(\w+) import', src, re.M)): assert MODULES[used].name < p.name or name == 'cli', f'{p.name} imports {used}'

def test_no_algorithm_is_known_by_name():
    named = r"""(algorithm|cfg\.name|self\.name|server\.name)\b['"\])]*\s*(==|!=|in\b)\s*[\[({]?['"]"""
    assert re.search(named, "x if o['algorithm'] == 'mira' else y") and re.search(named, "if cfg.name in ('a','b'):")
    for p in (ROOT/'fedai').glob('*.py'): assert not re.search(named, p.read_text()), p

def exported():
    for name in MODULES:
        mod = import_module(f'fedai.{name}')
        for s in mod.__all__:
            if inspect.isclass(o := getattr(mod, s)) or inspect.isfunction(o): yield f'{name}.{s}',o

@pytest.mark.parametrize('name,obj', list(exported()), ids=lambda o: o if isinstance(o, str) else '')
def test_every_export_says_what_it_is(name, obj):
    if hasattr(obj, '_fields'): return   # namedtuples
    assert obj.__doc__ and not obj.__doc__.startswith(obj.__name__ + '('), name

def test_no_export_has_the_name_of_a_module():
    "Or `from fedai import name` would be one the first time and the other after it."
    assert not {n.split('.')[1] for n,_ in exported()} & set(MODULES)

def test_every_export_is_used_in_its_notebook():
    "Shown or asserted, in a cell that isn't exported, or in a later notebook's."
    shown = '\n'.join(s for p in NOTEBOOKS for s in code(p) if not re.search(r'^#\| export', s, re.M))
    inside = '\n'.join(s for p in NOTEBOOKS for s in code(p))
    for name,_ in exported():
        s = name.split('.')[1]
        assert re.search(rf'\b{s}\b', shown) or len(re.findall(rf'\b{s}\b', inside)) > 1, f'{name} is used nowhere'

def test_versions_are_pinned_for_every_requirement():
    cfg = configparser.ConfigParser(delimiters=['='])
    cfg.read(ROOT/'settings.ini')
    norm = lambda s: re.sub(r'[-_.]+', '-', s).lower()
    pins = {norm(o.split('==')[0]) for o in (ROOT/'constraints.txt').read_text().splitlines() if '==' in o}
    wanted = ' '.join(cfg['DEFAULT'][k] for k in ('requirements','dev_requirements','demo_requirements','docs_requirements'))
    for r in wanted.split(): assert norm(re.split(r'[<>=!~]', r)[0]) in pins, r

def test_everything_exported_comes_from_fedai_lazily():
    out = subprocess.run([sys.executable, '-c', 'import sys, fedai; fedai.FedConfig; print("torch" in sys.modules); fedai.Server_mira; fedai.text_scores; print("torch" in sys.modules); print("evaluate" in sys.modules or "transformers" in sys.modules); print("Client_mira" in dir(fedai))'], capture_output=True, text=True, cwd=ROOT)
    assert out.stdout.split() == ['False','True','False','True'], out
    import fedai
    with pytest.raises(AttributeError, match="no attribute 'nothing'"): fedai.nothing

def test_readme_and_quickstart_show_the_same_job():
    "The README's Python is what the quickstart runs, with another model and folder."
    def job(p, first): return next(s for s in code(p) if first in s)
    strip = lambda s: re.sub(r"model='\w+'|output_dir=[^,]+", '', re.sub(r'^#\|.*\n', '', s, flags=re.M)).strip()
    mark = 'from fedai import FedConfig'
    assert strip(job(ROOT/'nbs'/'index.ipynb', mark)) == strip(job(ROOT/'nbs'/'20_quickstart.ipynb', mark))
    assert strip(job(ROOT/'nbs'/'index.ipynb', mark)).count('\n') < 12
