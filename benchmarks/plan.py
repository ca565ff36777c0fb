"""What `fedai plan` says beside what real runs take, each in a process of its own.

    python benchmarks/plan.py --out benchmarks/plan.md

Each line plans a run in a fresh process, then makes the run in another: training and test as `fedai run` does them, or training alone.
Seconds are of the process's own time, so that other work on the machine doesn't count; with one thread and files in the page cache that
is nearly the time of the wall. The peak is the process's largest resident set, as the kernel counts it; the disk is what the folder's
blocks are at the end, links counted once, and the most that it was, looked at a hundred times a second; tokens are those of
`history.jsonl`.
"""
import argparse, json, os, shutil, subprocess, sys, tempfile, threading, time
from pathlib import Path

PLAN = """import json, sys, time
from fedai.config import load_config
from fedai.study.plan import make_plan
print(json.dumps(make_plan(load_config(sys.argv[1]), clock=time.process_time, began=0.)))"""
RUN = """import sys, time
from fedai.config import load_config
from fedai.algorithms import get_server
from fedai.data.clients import get_client_data
from fedai.evaluate.tracking import Callback, Curves, Progress
cfg = load_config(sys.argv[1])
class Watch(Callback):
    def before_fit(self, server): self.now = self.began = time.process_time()
    def after_fit(self, server): self.fit = time.process_time() - self.began
watch = Watch()
server = get_server(cfg, get_client_data(cfg), callbacks=[watch, Progress(), Curves()])
server.fit()
if sys.argv[2] == 'test': server.test(baselines=True)
print(watch.fit, time.process_time())"""

def gym(tasks, **kw): return dict(data='reasoning-gym', tasks={t: a for t,a in all_tasks.items() if t in tasks}, system_prompt='', **kw)
all_tasks = dict(chain_sum=dict(min_terms=2, max_terms=3, min_digits=1, max_digits=2),
                 products=dict(min_terms=2, max_terms=2, min_digits=1, max_digits=3), gcd=dict(min_value=2, max_value=120),
                 word_sequence_reversal=dict(min_words=3, max_words=3))
four = list(all_tasks)
tiny = dict(model='tiny', device='cpu', r=8, batch_size=4, max_new_tokens=8, **gym(four, train_size=32, test_size=16))
small = dict(model='smollm2', device='cpu', batch_size=3, max_new_tokens=14, graph='tasks', lr=2e-3, optimizer_args={'weight_decay': 0.},
             **gym(four, train_size=24, test_size=12, clients_per_task=2))

CASES = [   # what, settings, is there a test?
    ('smollm2, mira, 8 clients', dict(small, rounds=2, local_step=5), True),
    ('smollm2, fedavg one by one, 8 clients', dict(small, rounds=2, local_step=3, name='fedavg', engine='sequential'), True),
    ('smollm2, mira, last ten layers, kept prefix', dict(small, rounds=5, local_step=6, adapt_layers='last:10'), True),
    ('smollm2, mira, 16 clients, gradient checkpointing',
     dict(small, clients_per_task=4, rounds=2, local_step=3, gradient_checkpointing=True), False),
    ('tiny, mira, 8 clients', dict(tiny, rounds=12, local_step=20, graph='tasks'), True),
    ('tiny, one by one, 8 clients', dict(tiny, rounds=20, local_step=10, engine='sequential', graph='ring'), True),
    ('tiny, ditto, 40 clients, half a round, keep_trained',
     dict(tiny, clients_per_task=10, name='ditto', m=.5, rounds=8, local_step=10, keep_trained=True), True),
    ('tiny, fedavg with adam at the server, 40 clients',
     dict(tiny, clients_per_task=10, name='fedavg', rounds=8, local_step=10, server_optimizer='adam', keep_rounds=3), False),
    ('tiny, flora, 100 clients, a fifth a round', dict(tiny, clients_per_task=25, name='flora', m=.2, rounds=12, local_step=10), False),
]

def blocks(folder):
    seen = {}
    for d,_,fs in os.walk(folder):
        for p in (d, *(os.path.join(d, f) for f in fs)):
            try: s = os.lstat(p)
            except FileNotFoundError: continue
            seen[s.st_ino] = s.st_blocks*512
    return sum(seen.values())

def process(args, folder=None):
    "Seconds, peak memory, largest folder, standard output."
    peak,over = 0,threading.Event()
    def look():
        nonlocal peak
        while not over.wait(.01): peak = max(peak, blocks(folder))
    began = time.perf_counter()
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        p = subprocess.Popen(args, stdout=out, stderr=err, env=dict(os.environ, PYTHONWARNINGS='ignore'))
        if folder:
            t = threading.Thread(target=look)
            t.start()
        _,status,use = os.wait4(p.pid, 0)
        took = time.perf_counter() - began
        over.set()
        if folder: t.join()
        out.seek(0); err.seek(0)
        if os.waitstatus_to_exitcode(status): sys.exit(err.read().decode()[-3000:])
        return took,use.ru_maxrss*1024,peak,out.read().decode()

def case(what, settings, test, work):
    import yaml
    cfg,run = work/'config.yaml',work/'run'
    shutil.rmtree(run, ignore_errors=True)
    cfg.write_text(yaml.safe_dump(dict(settings, output_dir=str(run))))
    planning,_,_,text = process([sys.executable, '-c', PLAN, str(cfg)])
    assert not run.exists()
    plan = json.loads(text)
    _,memory,most,text = process([sys.executable, '-c', RUN, str(cfg), 'test' if test else 'no'], str(run))
    rounds,took = map(float, text.splitlines()[-1].split())
    t,picture = plan['time'],(run/'curves.png').stat().st_size
    said = dict(tokens=plan['tokens']['run'], rounds=sum(t.get(k, 0) for k in ('train','mix','commit','evaluate','prefix','tokenise')),
                total=t['total'] - (0 if test else t['test']), peak=plan['memory']['peak'],
                end=plan['disk']['end'] - (0 if test else plan['disk']['parts']['answers'] - picture), most=plan['disk']['peak'])
    real = dict(tokens=sum(json.loads(l)['tokens'] for l in (run/'history.jsonl').read_text().splitlines()), rounds=rounds, total=took,
                peak=memory, end=blocks(run), most=most)
    return dict(what=what, planning=planning, measuring=plan['measured']['seconds'], said=said, real=real, time=t)

SHOWN = dict(tokens=lambda v: f'{v:,}', rounds=lambda v: f'{v:.1f} s', total=lambda v: f'{v:.1f} s', peak=lambda v: f'{v/1e6:,.0f} MB',
             end=lambda v: f'{v/1e3:,.0f} kB', most=lambda v: f'{v/1e3:,.0f} kB')

def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--only', default='', help='cases whose name has this in it')
    ap.add_argument('--out', help='a file for the table')
    a = ap.parse_args()
    import torch
    memory = os.sysconf('SC_PAGE_SIZE')*os.sysconf('SC_PHYS_PAGES')
    lines = ['# Plan\n\n`python benchmarks/plan.py --out benchmarks/plan.md`. What the columns mean stands at the head of the script; '
             'in each cell is what the plan says, what the run took, and how far the plan is off.\n\n'
             f'{os.cpu_count()} cores, {torch.get_num_threads()} threads, {memory/2**30:.0f} GiB of memory, torch {torch.__version__}.\n',
             '| run | tokens | rounds | total | peak memory | disk at the end | disk at most | planning (of it measuring) |',
             '|' + '---|'*8]
    worst = {}
    with tempfile.TemporaryDirectory() as d:
        for c in CASES:
            if a.only not in c[0]: continue
            o = case(*c, Path(d))
            off = {k: o['said'][k]/o['real'][k] - 1 for k in SHOWN}
            for k,v in off.items(): worst[k] = max(worst.get(k, 0), abs(v))
            cells = [f"{f(o['said'][k])} / {f(o['real'][k])} ({off[k]:+.0%})" for k,f in SHOWN.items()]
            lines.append(f"| {o['what']} | {' | '.join(cells)} | {o['planning']:.0f} s ({o['measuring']:.0f} s) |")
            print(lines[-1], {k: round(v, 2) for k,v in o['time'].items()}, flush=True)
            if a.out:
                last = '| furthest off | ' + ' | '.join(f'{worst[k]:.0%}' for k in SHOWN) + ' | |'
                Path(a.out).write_text('\n'.join([*lines, last]) + '\n')

if __name__ == '__main__': main()
