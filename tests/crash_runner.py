"""Runs a small federation in child processes and kills them; a script, so that nothing is forked from a process with threads.

    python crash_runner.py FOLDER calls 1,5,9     kill before these calls that touch the disk or take a training step, one in each run
    python crash_runner.py FOLDER calls all       the same for every such call
    python crash_runner.py FOLDER times 100       kill at that many random moments
A further argument is JSON with other fields of the config.
Each killed run is killed once more while it goes on, then finished, and must equal one that never stopped, to the bit. Prints a JSON line.
"""
import os, sys
os.environ['HF_HUB_OFFLINE'] = '1'
import builtins, json, random, shutil, signal, time, traceback, warnings
from pathlib import Path
import networkx, torch   # noqa: F401 (imported before any child is: what it opens isn't a call of the run's)
from conftest import client_data
from fedai.config import FedConfig
from fedai.algorithms import get_server
from fedai.evaluate.metrics import text_scores
from fedai.models import get_model
torch.set_num_threads(1)
warnings.simplefilter('ignore')

K,ROUNDS = 4,3
OTHER = json.loads(sys.argv[4]) if len(sys.argv) > 4 else {}
WATCHED = [*((os, n) for n in ('replace','link','fsync','truncate','unlink','mkdir','rmdir','pwrite')),
           (torch.optim.AdamW, 'step'), (builtins, 'open')]

SMALL = dict(model='tiny', r=2, device='cpu', num_clients=K, m=.75, rounds=ROUNDS, local_step=2, batch_size=2, keep_rounds=1,
             eval_every=2, max_new_tokens=2, clients_per_batch=2, adapt_layers='last:1', lora_dropout=.1, server_optimizer='adam')

def run(root):
    cfg = FedConfig(**{**SMALL, 'output_dir': str(root), **OTHER})
    get_server(cfg, client_data(K), callbacks=[]).fit()

def watch(kill_at, log):
    "Count the calls that change the disk, and training steps; die before number `kill_at`, half-way through it where it is a write."
    count = [0]
    def wrap(owner, name):
        old = getattr(owner, name)
        def new(*args, **kw):
            if name == 'open' and not set((args[1] if len(args) > 1 else kw.get('mode', 'r'))) & set('wa+'): return old(*args, **kw)
            count[0] += 1
            if count[0] == kill_at:
                if name == 'pwrite': old(args[0], args[1][:len(args[1])//2], args[2])
                if name == 'open': old(*args, **kw)   # an empty file
                os.kill(os.getpid(), signal.SIGKILL)
            return old(*args, **kw)
        setattr(owner, name, new)
    for o in WATCHED: wrap(*o)
    return count

def child(root, kill_at=None, after=None):
    "A run in a child; returns (was it killed, how many calls it made or None)."
    r,w = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(r)
        code = 1
        try:
            count = watch(kill_at, w)
            run(root)
            os.write(w, str(count[0]).encode())
            code = 0
        except Exception: traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    os.close(w)
    if after is not None:
        time.sleep(after)
        try: os.kill(pid, signal.SIGKILL)
        except ProcessLookupError: pass
    said = b''
    while part := os.read(r, 100): said += part
    os.close(r)
    status = os.waitpid(pid, 0)[1]
    if os.WIFEXITED(status) and os.WEXITSTATUS(status): sys.exit(f'a run in {root} failed')
    return os.WIFSIGNALED(status),int(said) if said else None

def files(root):
    there = [o for o in sorted(root.rglob('*')) if o.is_file() and o.name not in ('config.yaml','.lock')]
    return {str(o.relative_to(root)): o.read_bytes() for o in there}

def main(folder, mode, what, other=None):
    folder,rnd = Path(folder),random.Random(0)
    get_model(FedConfig(model='tiny')),text_scores(['a'], ['a'])   # what they import takes longer than a run, and starts no threads
    began = time.perf_counter()
    _,calls = child(folder/'whole')
    seconds,want = time.perf_counter() - began,files(folder/'whole')
    if mode == 'calls': plans = [(n, None) for n in (range(1, calls+1) if what == 'all' else [int(o) % calls + 1 for o in what.split(',')])]
    else: plans = [(None, rnd.uniform(0, seconds)) for _ in range(int(what))]
    kills = 0
    for j,(n,after) in enumerate(plans):
        root = folder/f'killed{j}'
        kills += child(root, n, after)[0]
        again = (rnd.randint(1, calls), None) if n else (None, rnd.uniform(0, seconds))
        kills += child(root, *again)[0]
        if child(root)[0]: sys.exit('the last run was killed')
        got = files(root)
        other = sorted(k for k in got.keys() | want.keys() if got.get(k) != want.get(k))
        if other: sys.exit(f'killed at {n or after}, then at {again}: differs in {other}')
        shutil.rmtree(root)
    print(json.dumps(dict(calls=calls, runs=len(plans), kills=kills, rounds=ROUNDS)))

if __name__ == '__main__': main(*sys.argv[1:])
