"""From a folder of 1,000 files with 1,000 examples each to the tokens of a hundred clients, beside the alternatives.

    python benchmarks/data.py --out benchmarks/data.md

Each start is in a process of its own. Seconds and memory are from when the libraries and the tokenizer are loaded until the tokens of a
hundred clients, SmolLM2's with its chat template, have been read; the files are in the page cache. All three tokenise with fedai's
`Prompter`, so they differ in how they read and keep. `datasets` keeps what it read and mapped in its own cache, by a fingerprint that we
give it. Memory is what the process holds beyond its libraries at its peak; what is mapped from files counts too, but the system may drop
it. Lists start the same way every time, and are timed once.
"""
import argparse, json, os, shutil, subprocess, sys, tempfile, time
from pathlib import Path

TEXT = ('In one sentence, and in plain words that a visitor without any training would follow at once: what is {} plus {}, '
        'and how does one find it without a machine?')
EXAMPLES,USED = 1000,100

def write(folder, clients):
    for k in range(clients):
        with open(folder/f'client{k}.jsonl', 'w') as f:
            for i in range(EXAMPLES):
                f.write(json.dumps(dict(instruction=TEXT.format(i, k), output=f'It is {i+k}, by counting on from {k}.',
                                        task=f'task{k%10}')) + '\n')

def kb(name): return next(int(l.split()[1]) for l in open('/proc/self/status') if l.startswith(name + ':'))

def prompter():
    from fedai.config import FedConfig
    from fedai.models import get_tokenizer
    from fedai.data.prompts import Prompter
    return Prompter(get_tokenizer(FedConfig()))

def mapped(folder, p):
    "fedai: tables on the disk; a client's tokens when it is used."
    from fedai.config import FedConfig
    from fedai.data.clients import get_client_data
    data = get_client_data(FedConfig(data=str(folder)))
    return data,sum(len(e) for d in data[:USED] for e in d['train'].encoded(p)[1])

def lists(folder, p):
    "A list of dicts a client, all tokenised at the start."
    from fedai.data.prompts import encode_all
    data = [[json.loads(l) for l in open(f)] for f in sorted(folder.glob('*.jsonl'))]
    items = [encode_all(p, d, '')[1] for d in data]
    return (data,items),sum(len(e) for d in items[:USED] for e in d)

def library(folder, p):
    "The datasets library: load_dataset, map with the same tokens in batches (its cache is on), and a filter by client as index lists."
    import datasets
    datasets.disable_progress_bars()
    files = sorted(map(str, folder.glob('*.jsonl')))
    ds = datasets.load_dataset('json', data_files=files, split='train', cache_dir=os.environ['HF_DATASETS_CACHE'])
    def tokens(b):
        got = p.encode_many([dict(instruction=i, output=o) for i,o in zip(b['instruction'], b['output'])], ['']*len(b['output']))
        return dict(prompt=[e.prompt for e in got], answer=[e.answer for e in got])
    tok = ds.map(tokens, batched=True, batch_size=1000, new_fingerprint=f'tokens{p.key}{ds._fingerprint}')
    n = len(tok)//len(files)
    return tok,sum(len(a) + len(b) for k in range(USED) for rows in [tok[k*n:(k+1)*n]] for a,b in zip(rows['prompt'], rows['answer']))

WAYS = {'nothing': lambda folder, p: (None,0), 'fedai': mapped, 'lists': lists, 'datasets': library}

def one(way, folder):
    "Measured in this process; prints JSON."
    import torch, transformers   # noqa: F401 (loaded before memory is measured)
    p = prompter()
    began,rss,own = time.perf_counter(),kb('VmRSS'),kb('RssAnon')
    kept,tokens = WAYS[way](Path(folder), p)   # kept: all that a run would keep
    print(json.dumps(dict(seconds=time.perf_counter() - began, peak=(kb('VmHWM') - rss)/1024, own=(kb('RssAnon') - own)/1024,
                          tokens=tokens)))

def start(way, folder, env):
    out = subprocess.run([sys.executable, __file__, '--one', way, '--folder', str(folder)], capture_output=True, text=True, env=env)
    if out.returncode: sys.exit(out.stderr)
    print(way, out.stdout.splitlines()[-1], file=sys.stderr, flush=True)
    return json.loads(out.stdout.splitlines()[-1])

def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--clients', type=int, default=1000)
    ap.add_argument('--folder', default=tempfile.gettempdir(), help='a folder on the disk to measure')
    ap.add_argument('--out', help='a file for the table; standard output always gets it')
    ap.add_argument('--one', help=argparse.SUPPRESS)
    a = ap.parse_args()
    if a.one: return one(a.one, a.folder)
    d = Path(tempfile.mkdtemp(dir=a.folder))
    try:
        (d/'data').mkdir()
        write(d/'data', a.clients)
        size = sum(f.stat().st_size for f in (d/'data').iterdir())
        env = {**os.environ, 'FEDAI_CACHE': str(d/'fedai'), 'HF_DATASETS_CACHE': str(d/'hf'), 'HF_HUB_OFFLINE': '1'}
        start('nothing', d/'data', env)   # makes the model's own files, which are no part of this
        got = {w: [start(w, d/'data', env) for _ in range(1 if w == 'lists' else 2)] for w in list(WAYS)[1:]}
    finally: shutil.rmtree(d)
    names = dict(fedai='fedai', lists='lists of dicts and of tokens in memory', datasets='datasets: `load_dataset` and `map`')
    columns = 'first start, s | later starts, s | peak memory, first, MB | later, MB | of that not mapped, MB'
    lines = [f'| {a.clients:,} clients x {EXAMPLES:,} examples, {size/1e6:,.0f} MB | {columns} |', '|---|---|---|---|---|---|',
             *(f"| {names[w]} | {x['seconds']:.1f} | {y['seconds']:.1f} | {x['peak']:,.0f} | {y['peak']:,.0f} | {y['own']:,.0f} |"
               for w,(x,*rest) in got.items() for y in [rest[0] if rest else x])]
    text = f"{os.cpu_count()} cores, tokens of {USED} clients read.\n\n" + '\n'.join(lines) + '\n'
    print(text)
    if a.out:
        head = f'`python benchmarks/data.py --out {a.out}`. What is compared and measured stands at the head of the script.'
        Path(a.out).write_text(f'# Data\n\n{head}\n\n{text}')

if __name__ == '__main__': main()
