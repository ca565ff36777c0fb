"""The rooms of the house, in the order in which they may import each other: a room imports only rooms above it.

`tests/test_project.py` holds the code to this list; the documentation shows the pages in its order.
"""
import json, re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NBS = ROOT/'nbs'
ROOMS = ('config', 'utils', 'graphs', 'selection', 'models', 'data', 'store', 'evaluate', 'train', 'clients', 'engines', 'checks', 'hooks',
         'federation',
         'servers', 'algorithms',
         'study', 'remote', 'reading', 'ship', 'commands', 'cli')   # modules of `fedai`, and its folders

def room(module): return module.split('.')[0]

def notebooks(folder=NBS):
    "All notebooks, those of a folder in the order of their numbers."
    return sorted(p for p in folder.rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts)

def cells(p, kind='code'):
    "Sources of a notebook's cells of a kind."
    return [''.join(c['source']) for c in json.loads(p.read_text(encoding='utf-8'))['cells'] if c['cell_type'] == kind]

def modules(folder=NBS):
    "Module name, such as 'data.prompts' -> the notebook that it is exported from, in the order of the rooms."
    found = {m[1]: p for p in notebooks(folder) for s in cells(p) if (m := re.search(r'^#\| default_exp ([\w.]+)', s, re.M))}
    place = lambda m: (ROOMS.index(room(m)) if room(m) in ROOMS else len(ROOMS), found[m].name)
    return {m: found[m] for m in sorted(found, key=place)}

def lessons(folder=NBS):
    "Tutorials, in the order in which they are read."
    return sorted((folder/'tutorials').glob('*.ipynb'))

def imports(p):
    "Modules of `fedai` that a notebook's exported cells import."
    src = '\n'.join(s for s in cells(p) if re.search(r'^#\| export', s, re.M))
    return set(re.findall(r'^\s*from fedai\.([\w.]+) import', src, re.M))
