"""Writes `fedai` and `README.md` from the notebooks, and cleans the notebooks.

    python tools/sync.py           # write
    python tools/sync.py --check   # work on a copy, and fail if anything would change
"""
import argparse, json, os, re, shutil, subprocess, sys, tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

def readme(nb):
    "The README's text: markdown cells as they are, code cells fenced, outputs below them."
    parts = []
    for cell in json.loads(Path(nb).read_text(encoding='utf-8'))['cells']:
        src = ''.join(cell['source']).strip()
        if cell['cell_type'] == 'markdown': parts.append(src)
        elif cell['cell_type'] == 'code' and not re.search(r'^#\|\s*(hide|export|default_exp)', src, re.M):
            src = re.sub(r'^#\|.*\n', '', src, flags=re.M)
            parts.append(f'```python\n{src}\n```')
            for out in cell['outputs']:
                text = ''.join(out.get('text', []) or out.get('data', {}).get('text/plain', []))
                if text.strip(): parts.append('\n'.join('    ' + o for o in text.strip('\n').splitlines()))
    note = '<!-- Written from nbs/index.ipynb by tools/sync.py: edit there. -->'
    return re.sub(r'\]\((images/|[\w/]+\.ipynb)', r'](nbs/\1', '\n\n'.join([note] + [p for p in parts if p])) + '\n'

def sync(root):
    "Export, clean and write the README of the checkout at `root`."
    for o in (root/'fedai').rglob('*.py'):
        if o.name not in ('__init__.py','__main__.py'): o.unlink()   # written by hand
    env = {**os.environ, 'PYTHONPATH': str(root)}
    for cmd in ('nbdev_export', 'nbdev_clean'):
        subprocess.run([str(Path(sys.executable).parent/cmd)], cwd=root, env=env, check=True)
    (root/'README.md').write_text(readme(root/'nbs'/'index.ipynb'), encoding='utf-8')

def files(root): return sorted(o.relative_to(root) for d in ('nbs', 'fedai') for o in (root/d).rglob('*')
                               if o.is_file() and o.suffix in ('.py', '.ipynb')) + [Path('README.md')]

def check(root):
    "Relative paths that `sync` would change."
    with tempfile.TemporaryDirectory() as tmp:
        copy = Path(tmp)/root.name
        copy.mkdir()
        for o in ('nbs', 'fedai'): shutil.copytree(root/o, copy/o, ignore=shutil.ignore_patterns('__pycache__', '.ipynb_checkpoints'))
        for o in ('settings.ini', 'README.md'): shutil.copy(root/o, copy/o)
        before = {o: (copy/o).read_bytes() for o in files(copy)}
        sync(copy)
        after = {o: (copy/o).read_bytes() for o in files(copy)}
    return sorted(str(o) for o in before.keys() | after.keys() if before.get(o) != after.get(o))

if __name__ == '__main__':
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--check', action='store_true', help='change nothing; fail if something would change')
    if not ap.parse_args().check: sync(ROOT)
    elif stale := check(ROOT): sys.exit('These differ from what the notebooks give; run `make sync` and commit: ' + ', '.join(stale))
    else: print('fedai/, notebooks and README.md agree')
