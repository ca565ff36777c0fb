#!/usr/bin/env python
"""Say whether the library still gives the same results, to the bit: small runs of the tiny model, and a checksum of every file they leave.

    python tools/bits.py                 run all, and compare with tools/bits.json
    python tools/bits.py --write         run all, and write tools/bits.json
    python tools/bits.py --against REV   compare with the library of that commit, run on this machine: for any processor
    python tools/bits.py -k WORD         only runs whose names contain WORD
    python tools/bits.py --list          the names, and what no run covers

Exit codes: 0 the same; 1 something differs; 2 bits.json was made with another processor or other packages, so nothing can be said.
Checked are adapters, histories, scorecards, answers, graphs and names. Times are not, nor are config.yaml and state.json, whose form may change.
Only what `from fedai import X` and the command line give is used, so that the script runs on both sides of a move of modules.
"""
import os
os.environ.update({k: '1' for k in ('HF_HUB_OFFLINE', 'OMP_NUM_THREADS', 'MKL_NUM_THREADS', 'OPENBLAS_NUM_THREADS')}, MPLBACKEND='agg')
import argparse, hashlib, importlib.metadata, json, subprocess, sys, tempfile, time, warnings
from dataclasses import dataclass, field, fields
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIBRARY = Path(os.environ.get('BITS_LIBRARY', ROOT)).resolve()   # whose `fedai` is run
BITS = Path(__file__).resolve().with_suffix('.json')
sys.path.insert(0, str(LIBRARY))

import torch
from fedai import Callback, FedConfig, get_server, list_algorithms

# ---------------------------------------------------------------- data

SIZES = 12, 9, 7, 4   # training examples of each client; more clients begin again

def sums(k, n, start=0):
    "Examples that no other client has."
    return [dict(instruction=f'{i} + {100*k} =', output=str(i + 100*k), task=f'plus{k%2}') for i in range(start, start+n)]

def texts(K):
    "A language model's clients, of uneven size."
    return [{'train': sums(k, SIZES[k%4]), 'test': sums(k, 2, start=50)} for k in range(K)]

def points(K):
    "A plain module's clients: six numbers, and which of three classes."
    draw = torch.Generator().manual_seed(0)
    def pairs(n): return [(x, int(x[:3].argmax())) for x in torch.randn(n, 6, generator=draw)]
    return [{'train': pairs(2*SIZES[k%4]), 'test': pairs(5)} for k in range(K)]

def net(norm=False):
    "A plain module, with BatchNorm's buffers or without."
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(6, 8), *([torch.nn.BatchNorm1d(8)] if norm else []), torch.nn.ReLU(), torch.nn.Linear(8, 3))

# ---------------------------------------------------------------- what is done with a config

def whole(cfg, data=texts, **kwargs):
    "Train and test, beside the baselines."
    server = get_server(cfg, data(cfg.num_clients), callbacks=[], **kwargs)
    server.fit()
    server.test(baselines=True)

def plain(cfg, norm=False):
    "A run of a plain module."
    whole(cfg, points, model=net(norm), criterion=torch.nn.CrossEntropyLoss())

class Stop(Callback):
    "Ends a run in the middle of a round."
    def __init__(self, round): self.round = round
    def after_client(self, server, comm_round, id, metrics):
        if comm_round == self.round: raise KeyboardInterrupt

def stopped(cfg):
    "A run that is stopped in each round, and goes on."
    for t in range(cfg.rounds):
        try: get_server(cfg, texts(cfg.num_clients), callbacks=[Stop(t)]).fit()
        except KeyboardInterrupt: pass
        else: raise AssertionError(f'round {t} was not stopped')
    whole(cfg)

# ---------------------------------------------------------------- the runs

BASE = dict(model='tiny', device='cpu', num_clients=4, rounds=2, local_step=2, batch_size=3, lr=.02, r=4, max_new_tokens=3, keep_rounds=9,
            memory_gb=2., output_dir='run')
ENGINES = 'batched', 'sequential'

@dataclass
class Case:
    "A run: its name, the settings that differ from `BASE`, and what is done with them."
    name: str
    settings: dict
    how: object = whole
    args: dict = field(default_factory=dict)   # of `how`

    def run(self):
        "Leave files in the current folder; what is returned is one more."
        return self.how(FedConfig(**{**BASE, **self.settings}), **self.args)

CASES = []
def case(label, how=whole, args={}, /, **settings): CASES.append(Case(label, settings, how, args))
def both(label, how=whole, args={}, /, **settings):
    "A run with each engine."
    for e in ENGINES: case(f"{label}-{e}", how, args, engine=e, **settings)

# algorithms
both('fedavg', name='fedavg', m=.75)
both('local', name='local')
both('fedavg_ft', name='fedavg_ft', m=.5)
both('fedprox', name='fedprox', algorithm_args={'mu': .3}, m=.75)
both('ditto', name='ditto', algorithm_args={'lam': .3}, m=.75)
both('fedu', name='fedu', optimizer='SGD', lr=.5, lambda_=.1)
both('ffa', name='ffa', m=.75)
both('fedsa', name='fedsa', m=.75)
both('rolora', name='rolora', rounds=3)
both('flora', name='flora', m=.75)
both('fedex', name='fedex', m=.75)
both('ifca', name='ifca', algorithm_args={'clusters': 2}, rounds=3, m=.75)
both('cfl', name='cfl', algorithm_args={'eps': .9}, rounds=3)
both('hetlora', name='hetlora', ranks=[1, 4, 2, 3], m=.75)
both('mira', name='mira', m=.75)

# graphs and steps of mira
case('mira-tasks', graph='tasks')
case('mira-complete', graph='complete', coupling=.9)
case('mira-ring', graph='ring', num_clients=5, graph_args={'neighbours': 1})
case('mira-erdos_renyi', graph='erdos_renyi', graph_args={'p': .6})
case('mira-lambda', lambda_=3., lr_schedule='cosine', rounds=3)
case('mira-coupling-0', coupling=0.)
case('mira-max_degree', normalise='max_degree')
case('mira-row', normalise='row', m=.75)
case('mira-symmetric', normalise='symmetric')
case('mira-renormalize', renormalize=True, normalise='symmetric', m=.5, rounds=3)
case('mira-learned-states', graph='learned', m=.75, rounds=3)
case('mira-learned-top_k', graph='learned', graph_args={'top_k': 1, 'every': 2}, rounds=3)
case('mira-learned-updates', graph='learned', graph_args={'measure': 'updates', 'temperature': .5}, m=.75, rounds=3)
case('mira-learned-data', graph='learned', graph_args={'measure': 'data'})

# who takes part
case('selection-uniform', selection='uniform', m=.5, rounds=3)
case('selection-weighted', selection='weighted', m=.5, rounds=3)
case('selection-round_robin', selection='round_robin', m=.5, rounds=3, name='fedavg')
case('selection-neighbourhood', selection='neighbourhood', m=.5, rounds=3)
case('selection-power_of_choice', selection='power_of_choice', m=.5, rounds=3)

# the server's step
for kind in 'momentum', 'adagrad', 'yogi', 'adam':
    case(f'server-{kind}-fedavg', name='fedavg', server_optimizer=kind, m=.75, rounds=3)
    case(f'server-{kind}-mira', server_optimizer=kind, server_lr=.05, server_optimizer_args={'beta1': .5}, m=.75, rounds=3)

# products and ranks
case('product-mira', space='product', m=.75)
case('product-fedavg', space='product', name='fedavg')
both('ranks-mira', ranks=[1, 4, 2, 3])
case('ranks-fedavg', ranks=[1, 4, 2, 3], name='fedavg', m=.75)
case('ranks-product', ranks=[1, 4, 2, 3], space='product')

# plain modules
both('plain-fedavg', plain, name='fedavg', optimizer='SGD')
both('plain-mira', plain, m=.75)
both('plain-norm-own', plain, {'norm': True}, buffers='own')
both('plain-norm-mean', plain, {'norm': True}, buffers='mean', name='fedavg')

# stops
case('stopped-mira', stopped, m=.75, rounds=3)
case('stopped-fedex', stopped, name='fedex', rounds=3)

# ---------------------------------------------------------------- checksums

SEEN = 'history.jsonl', 'scorecard.json', 'generations.jsonl', 'graph.npy', 'names.json', 'adapter_config.json'

def short(data): return hashlib.sha256(data).hexdigest()[:12]

def when(path):
    "A sort key that goes with time: rounds first, and in a round training, graph, mixing."
    folder, *parts = path.split('/')[1:]
    if not folder.isdecimal(): return 1, 0, 0, path
    return 0, int(folder), [parts[0].startswith('trained'), parts[0] == 'graph.npy', True].index(True), path

def digests(folder):
    "File -> short checksum of its bytes, the earliest first; one for all adapter_config.json together."
    found = {str(p.relative_to(folder)): p for p in folder.rglob('*') if p.is_file() and (p.suffix == '.safetensors' or p.name in SEEN)}
    configs = [n for n in sorted(found) if n.endswith('/adapter_config.json')]
    out = {n: short(found[n].read_bytes()) for n in sorted(found.keys() - set(configs), key=when)}
    if configs: out['*/adapter_config.json'] = short(b''.join(n.encode() + found[n].read_bytes() for n in configs))
    return out

def run_case(case, folder):
    "The checksums of a case, run in a folder of its own."
    folder.mkdir()
    os.chdir(folder)   # so that no path of this machine comes into a file
    os.environ['FEDAI_CACHE'] = str(folder/'cache')
    try: said = case.run()
    except Exception as e: return {'FAILED': f'{type(e).__name__}: {e}'[:500]}
    return {**digests(folder), **{f'said/{k}': short(json.dumps(v, sort_keys=True).encode()) for k, v in (said or {}).items()}}

def run_all(cases, quiet=False):
    "Name -> file -> checksum."
    out, home = {}, Path.cwd()
    with tempfile.TemporaryDirectory() as tmp, warnings.catch_warnings():
        warnings.simplefilter('ignore')
        for n, c in enumerate(cases):
            began = time.perf_counter()
            try: out[c.name] = run_case(c, Path(tmp).resolve()/c.name)
            finally: os.chdir(home)
            if not quiet: print(f'[{n+1}/{len(cases)}] {c.name}: {len(out[c.name])} files, {time.perf_counter() - began:.1f} s', flush=True)
    return out

def made_with():
    "What else decides on bits."
    versions = {p: importlib.metadata.version(p) for p in ('torch', 'numpy', 'transformers', 'peft')}
    model = [l.split(':')[1].strip() for l in open('/proc/cpuinfo') if l.startswith('model name')] if Path('/proc/cpuinfo').exists() else []
    return {**versions, 'capability': torch.backends.cpu.get_cpu_capability(), 'processor': model[0] if model else 'unknown'}

# ---------------------------------------------------------------- comparing

def difference(name, old, new):
    "A line on how a run differs, or `None`."
    if 'FAILED' in new: return f"{name}: failed: {new['FAILED']}"
    if old is None: return f'{name}: not there before'
    if 'FAILED' in old: return f"{name}: failed before: {old['FAILED']}"
    order = [*new, *(f for f in old if f not in new)]
    differ = [f for f in order if old.get(f) != new.get(f)]
    if not differ: return None
    first = differ[0]
    how = 'differs' if first in old and first in new else 'is new' if first in new else 'is gone'
    return f'{name}: {first} {how}' + (f', and {len(differ)-1} more of {len(order)} files differ' if len(differ) > 1 else f', alone among {len(order)} files')

def compare(old, new, whole=True):
    "Print each run that differs; the exit code."
    lines = [l for n in new if (l := difference(n, old.get(n), new[n]))] + [f'{n}: not there any more' for n in old if whole and n not in new]
    print('\n'.join(lines) or f'{len(new)} runs, {sum(map(len, new.values()))} files: the same to the bit')
    if lines: print(f'{len(lines)} of {len(new)} runs differ')
    return int(bool(lines))

def against(rev, word, cases):
    "Compare with the library of a commit, which runs beside this one."
    git = lambda *args: subprocess.run(['git', '-C', str(ROOT), *args], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    with tempfile.TemporaryDirectory() as tmp:
        there, to = Path(tmp)/'library', Path(tmp)/'found.json'
        git('worktree', 'add', '--detach', str(there), rev)
        try:
            other = subprocess.Popen([sys.executable, __file__, '--to', str(to), '-k', word], env={**os.environ, 'BITS_LIBRARY': str(there), 'PYTHONPATH': ''})
            new = run_all(cases)
            if other.wait(): sys.exit(f'the runs with the library of {rev} failed')
            return compare(json.loads(to.read_text()), new)
        finally: git('worktree', 'remove', '--force', str(there))

def uncovered():
    "Algorithms and values of settings that no run has."
    used = {f.name: [{**BASE, **c.settings}.get(f.name, f.default) for c in CASES] for f in fields(FedConfig)}
    out = [f'algorithm {a["name"]}' for a in list_algorithms() if a['name'] not in used['name']]
    out += [f'{f.name}: {v}' for f in fields(FedConfig) for v in f.metadata['choices'] or () if v not in used[f.name]]
    return out + [f'{n}: any value but the default' for n, v in used.items() if all(o == v[0] for o in v) and n not in BASE]

def check(cases, word):
    "Run, and compare with bits.json; the exit code."
    kept, now = json.loads(BITS.read_text()), made_with()
    if kept['made_with'] != now:
        print('bits.json can say nothing here, since floating-point bits may differ:')
        for k in now: print(f"  {k}: {kept['made_with'].get(k)} there, {now[k]} here" if kept['made_with'].get(k) != now[k] else f'  {k}: {now[k]}')
        print('compare with a commit instead: python tools/bits.py --against REV')
        return 2
    return compare(kept['runs'], run_all(cases), not word)

def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--write', action='store_true', help='write bits.json')
    ap.add_argument('--against', metavar='REV', help='a commit to compare with')
    ap.add_argument('-k', metavar='WORD', default='', help='only runs whose names contain WORD')
    ap.add_argument('--list', action='store_true', help='only names, and what no run covers')
    ap.add_argument('--to', help=argparse.SUPPRESS)   # a file for what was found, for `against`
    args = ap.parse_args()
    torch.set_num_threads(1)
    import fedai
    if Path(fedai.__file__).resolve().parent.parent != LIBRARY: sys.exit(f'fedai is {fedai.__file__}, not that of {LIBRARY}')
    cases = [c for c in CASES if args.k in c.name]
    if not cases: sys.exit(f'no run has {args.k!r} in its name')
    if args.list: print('\n'.join(c.name for c in cases), '\nnot covered:', *uncovered(), sep='\n'); return 0
    if args.against: return against(args.against, args.k, cases)
    if args.to: return Path(args.to).write_text(json.dumps(run_all(cases, True))) and 0
    if not args.write: return check(cases, args.k)
    if args.k: sys.exit('--write writes all runs')
    found = run_all(cases)
    if bad := [f"{n}: {o['FAILED']}" for n, o in found.items() if 'FAILED' in o]: sys.exit('\n'.join(bad))
    BITS.write_text(json.dumps(dict(made_with=made_with(), runs=found), indent=0) + '\n')
    print(f'wrote {BITS} ({BITS.stat().st_size/1e3:.0f} KB): {len(found)} runs')
    return 0

if __name__ == '__main__': sys.exit(main())
