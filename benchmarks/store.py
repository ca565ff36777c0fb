"""Putting a client into the live model, and a round's bookkeeping among ten thousand clients, beside the alternatives, in one run.

    python benchmarks/store.py --out benchmarks/store.md

Needs the embedded SmolLM2. Milliseconds, median; files are in the page cache.
"""
import argparse, copy, os, shutil, tempfile, time
from pathlib import Path
from statistics import median
import numpy as np, torch
from peft import set_peft_model_state_dict
from safetensors.torch import load_file
from fedai.config import FedConfig
from fedai.models import get_model
from fedai.store.adapters import AdapterStore
from fedai.train.live import LiveState

def ms(f, n=20):
    f()
    out = []
    for _ in range(n):
        began = time.perf_counter()
        f()
        out.append((time.perf_counter() - began)*1000)
    return median(out)

def loading(folder):
    "One client into SmolLM2, r=8 on q and v: 120 tensors, 1.8 MB."
    model = get_model(FedConfig())
    live = LiveState(model)
    store = AdapterStore(folder)
    with store.locked(): store.start(live.state())
    path = store.folder(0)/store.weights
    return {'store to live model, checksum verified': ms(lambda: live.load(store.load_row(0))),
            'of that, the copy into the model': ms(lambda row=store.load_row(0): live.load(row)),
            'peft: load_file and set_peft_model_state_dict': ms(lambda: set_peft_model_state_dict(model, load_file(path))),
            'copy.deepcopy of the model': ms(lambda: copy.deepcopy(model), 3)}

def rounds(folder, others):
    "Rounds of ten clients (64 KB each) in a store where `others` more have a state; returns ms for train, mix and commit."
    store,g = AdapterStore(folder),torch.Generator().manual_seed(0)
    state = {'w': torch.randn(16_000, generator=g)}
    with store.locked(): store.start(state, {'adapter_config.json': '{}'})
    if others:   # states of earlier rounds, written in one
        ids = list(range(10, others+10))
        for i in ids: store.save_trained(1, i, state)
        store.mix(ids, np.eye(others), 1)
        store.commit(1, ids)
    os.sync()   # earlier writes must not weigh on what is timed
    t = {'save_trained': [], 'mix': [], 'commit and prune': []}
    for r in range(store.round+1, store.round+32):
        marks = [time.perf_counter()]
        for i in range(10): store.save_trained(r, i, state)
        marks.append(time.perf_counter())
        store.mix(list(range(10)), np.full((10,10), .1), r)
        marks.append(time.perf_counter())
        store.commit(r, list(range(10)), {'round': r})
        marks.append(time.perf_counter())
        for k,a,b in zip(t, marks, marks[1:]): t[k].append((b-a)*1000)
    return {k: median(v) for k,v in t.items()}

def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--folder', default=tempfile.gettempdir(), help='a folder on the disk to measure')
    ap.add_argument('--out', help='a file for the tables; standard output always gets them')
    a = ap.parse_args()
    d = Path(tempfile.mkdtemp(dir=a.folder))
    try:
        load = loading(d/'load')
        few,many = [rounds(d/f'rounds{n}', n) for n in (0, 10_000)]
    finally: shutil.rmtree(d)
    lines = ['| one client into the live model | ms |', '|---|---|', *(f'| {k} | {v:.3g} |' for k,v in load.items()), '',
             '| ten clients a round, ms | no other clients | 10,000 others with a state |', '|---|---|---|',
             *(f'| {k} | {few[k]:.3g} | {many[k]:.3g} |' for k in few)]
    text = f"{os.cpu_count()} cores, torch {torch.__version__}.\n\n" + '\n'.join(lines) + '\n'
    print(text)
    head = f'# Store\n\n`python benchmarks/store.py --out {a.out}`. Milliseconds, median; files in the page cache.\n\n'
    if a.out: Path(a.out).write_text(head + text)

if __name__ == '__main__': main()
