"""Tokens per second of training and generation, beside the alternatives, all in this run.

    python benchmarks/training.py --out benchmarks/training.md

plain peft   one client after another: peft's model, transformers' loss over all positions, an optimiser over the adapter's tensors
one by one   fedai's sequential engine: one client after another, the head at labelled positions only
batched      fedai's batched engine: all clients in one batch over the frozen model
Sequences have 48 to 64 tokens, the last 6 are the answer; AdamW, r = 8 on q and v. The alternatives take turns; each number is the median
of the repeats. Where K clients are alike, the one-by-one ways are measured for four of them and scaled.

FLOP/s: 4 per weight and token in the layers (2 forward, 2 backward; the frozen weights have no gradient), 4 per weight and label in the
head, attention not counted, of real tokens only, as a share of what one product of 2048 x 2048 matrices reaches in the same run.
"""
import argparse, json, os, subprocess, sys, time, warnings
from pathlib import Path
from statistics import median

import numpy as np, torch

def parts(model, layers, steps, batch_size, **kw):
    from fedai.config import FedConfig
    from fedai.models import get_model, get_tokenizer
    from fedai.train.live import LiveState
    from fedai.train.passes import decoder_layers
    from fedai.train.prefix import Prefix
    from fedai.train.tasks import TextTask
    cfg = FedConfig(model=model, adapt_layers=layers, local_step=steps, batch_size=batch_size, device=DEVICE, max_new_tokens=16,
                    dtype=DTYPE, mixed_precision='no', **kw)
    peft = get_model(cfg).to(DEVICE)
    live,task = LiveState(peft),TextTask(cfg, get_tokenizer(cfg))
    if decoder_layers(peft)[1]: task.prefix = Prefix(peft)
    return cfg,live,task

DEVICE,DTYPE = 'cpu','float32'

def examples(n, seed, vocab):
    from fedai.data.prompts import Encoded
    g = np.random.default_rng(seed)
    return [Encoded(g.integers(5, vocab, g.integers(42, 59)).tolist(), g.integers(5, vocab, 6).tolist()) for _ in range(n)]

def plain(live, task, cfg, items, k):
    "peft and transformers alone."
    from fedai.data.prompts import train_batch
    from fedai.train.local import batch_indices
    from fedai.utils import rng
    params = [p for p in live.model.parameters() if p.requires_grad]
    opt = torch.optim.AdamW(params, lr=cfg.lr)
    live.model.train()
    for idx in batch_indices(len(items), cfg.batch_size, cfg.local_step, rng(0, 'batches', 0, k)):
        live.model(**{n: t.to(DEVICE) for n,t in train_batch([items[i] for i in idx], task.pad).items()}).loss.backward()
        torch.nn.utils.clip_grad_norm_(params, 1.)
        opt.step()
        opt.zero_grad()

def sync():
    if DEVICE != 'cpu': torch.cuda.synchronize()

def timed(ways, repeats):
    "name -> median seconds; the ways take turns, after a first turn that isn't counted."
    got = {n: [] for n in ways}
    for i in range(repeats+1):
        for n,f in ways.items():
            sync()
            t = time.perf_counter()
            f()
            sync()
            if i: got[n].append(time.perf_counter() - t)
    return {n: median(v) for n,v in got.items()}

def training(model, layers, K, b, repeats):
    from fedai.train.stack import LoraStack
    from fedai.train.local import Job, local_steps
    steps = 1 if model != 'tiny' else 8
    cfg,live,task = parts(model, layers, steps, b)
    vocab = live.model.config.vocab_size if model != 'tiny' else 256
    clients = [examples(b*steps, k, vocab) for k in range(K)]   # of each, all are used
    start,stack,few = live.row.clone(),LoraStack(live, K) if K > 1 else live,min(K, 4)   # as the engine does
    tokens = lambda ks: sum(len(e) for k in ks for e in clients[k])
    pads = {}
    def alone():
        pads['one by one'] = 0
        for k in range(few):
            live.load(start)
            pads['one by one'] += local_steps(live, task, [Job(k, clients[k], cfg)], 0)[0]['padded']
    def together():
        for k in range(K): stack.load(start, k)
        pads['batched'] = sum(o['padded'] for o in local_steps(stack, task, [Job(k, clients[k], cfg) for k in range(K)], 0))
    def rival():
        for k in range(few):
            live.load(start)
            plain(live, task, cfg, clients[k], k)
    t = timed({'plain peft': rival, 'one by one': alone, 'batched': together}, repeats)
    rate = {n: tokens(range(K if n == 'batched' else few))/s for n,s in t.items()}
    return rate,1 - tokens(range(K))/pads['batched'],live.model

def model_flops(model):
    "Per token in the layers, and per label in the head."
    head = model.get_output_embeddings().weight
    layers = sum(p.numel() for n,p in model.named_parameters() if p.dim() == 2 and 'lora_' not in n and p is not head and 'embed' not in n)
    return 4*layers,4*head.numel()

def peak_flops():
    a = torch.randn(2048, 2048, device=DEVICE, dtype=getattr(torch, DTYPE))
    return 2*2048**3/timed({'mm': lambda: a @ a}, 7)['mm']

def generation(model, K, b, repeats):
    from fedai.train.stack import LoraStack
    from fedai.train.tasks import Prepared
    cfg,live,task = parts(model, 'all', 1, b)
    vocab = live.model.config.vocab_size if model != 'tiny' else 256
    datas = {k: Prepared(None, examples(b, k, vocab), 0, 0) for k in range(K)}
    stack = LoraStack(live, K)
    draw = torch.Generator().manual_seed(0)
    for k in range(K): stack.load((.02*torch.randn(live.layout.nbytes//4, generator=draw)).view(torch.uint8), k)
    count = {}
    def one():
        count['one by one'] = 0
        for k in range(K):
            live.load(stack.rows[k,:live.layout.nbytes])
            count['one by one'] += said(live, {0: datas[k]})
    def said(rows, datas):   # -1 is no token, so nothing ends early
        from fedai.train.generation import greedy
        todo = [(k,e.prompt) for k,d in datas.items() for e in d.items]
        return sum(map(len, greedy(live.model, [p for _,p in todo], {-1}, task.pad, 16, rows, [k for k,_ in todo])))
    def many(): count['together'] = said(stack if K > 1 else live, datas)   # as the engine does
    t = timed({'one by one': one, 'together': many}, repeats)
    return {n: count[n]/s for n,s in t.items()}

# ---- memory: a process for each number of clients, so that the peak is its own

def memory(model, K, option):
    from fedai.train.stack import LoraStack
    from fedai.train.local import Job, local_steps
    cfg,live,task = parts(model, 'all', 1, 1, **({option: True} if option != 'none' else {}))
    base = sum(t.numel()*t.element_size() for t in live.model.parameters())
    stack = LoraStack(live, K)
    clients = [examples(1, k, live.model.config.vocab_size) for k in range(K)]
    def now(key): return int(next(l for l in open('/proc/self/status') if l.startswith(key)).split()[1])/1024
    with open('/proc/self/clear_refs', 'w') as f: f.write('5')   # begin counting the peak here
    loaded,seconds = now('VmRSS'),[]
    for _ in range(3):
        began = time.perf_counter()
        local_steps(stack, task, [Job(k, clients[k], cfg) for k in range(K)], 0)
        seconds.append(time.perf_counter() - began)
    print(json.dumps(dict(K=K, base=base/2**20, row=live.layout.nbytes/2**20, loaded=loaded, peak=now('VmHWM'),
                          tokens=sum(len(e) for c in clients for e in c), seconds=median(seconds))))

# ---- the tables

def line(cells): return '| ' + ' | '.join(map(str, cells)) + ' |'

def table(head, rows): return '\n'.join([line(head), '|' + '---|'*len(head), *map(line, rows)]) + '\n'

def training_table(model, clients, sequences, repeats, peak):
    "Tokens per second of each way to train, in a row for each number of clients and sequences."
    head = ['adapters in','K','sequences each','plain peft','one by one','batched','batched / one by one','batched / plain',
            'padding','FLOP/s reached']
    rows,grid = [],[('all',K,b) for K in clients for b in sequences]
    if model == 'smollm2': grid += [('last:10',K,2) for K in (1,4,8,16)]
    for layers,K,b in grid:
        r,pad,m = training(model, layers, K, b, repeats)
        per_token,per_label = model_flops(m)
        share = r['batched']*(per_token + per_label*6/55)/peak if layers == 'all' else None
        rows.append([layers, K, b, *(f'{r[n]:.0f}' for n in ('plain peft','one by one','batched')),
                     f"{r['batched']/r['one by one']:.2f}", f"{r['batched']/r['plain peft']:.2f}", f'{pad:.0%}',
                     f'{share:.0%}' if share else '(cached prefix)'])
        print(*rows[-1], flush=True)
    return head,rows

def generation_table(models, repeats):
    head,rows = ['model','K','prompts each','one by one','together','together / one by one'],[]
    for model in models:
        for K in (1,2,4,8,16):
            r = generation(model, K, 2, repeats)
            rows.append([model, K, 2, *(f'{r[n]:.0f}' for n in ('one by one','together')), f"{r['together']/r['one by one']:.2f}"])
            print(*rows[-1], flush=True)
    return head,rows

def memory_table():
    head = ['K','option','tokens in a pass','base model','K rows, gradients and moments','process before the step','peak','seconds']
    rows = []
    for K,option in ((1,'none'),(4,'none'),(16,'none'),(32,'none'),(16,'gradient_checkpointing'),(16,'offload_activations')):
        r = subprocess.run([sys.executable, __file__, '--memory', 'smollm2', str(K), option], capture_output=True, text=True)
        if r.returncode: sys.exit(r.stderr[-2000:])
        o = json.loads(r.stdout.splitlines()[-1])
        rows.append([K, option, o['tokens'], f"{o['base']:.0f}", f"{4*K*o['row']:.0f}", f"{o['loaded']:.0f}", f"{o['peak']:.0f}",
                     f"{o['seconds']:.2f}"])
    return head,rows

def arguments():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--models', default='smollm2,tiny')
    ap.add_argument('--clients', default='1,2,4,8,16,32')
    ap.add_argument('--sequences', default='1,2,4', help='of each client in a step')
    ap.add_argument('--repeats', type=int, default=3)
    ap.add_argument('--device', default='cpu')
    ap.add_argument('--dtype', default='float32')
    ap.add_argument('--out', help='a file for the tables; standard output when not given')
    ap.add_argument('--memory', nargs=3, help=argparse.SUPPRESS)
    return ap.parse_args()

def main():
    global DEVICE, DTYPE
    a = arguments()
    DEVICE,DTYPE,models = a.device,a.dtype,a.models.split(',')
    if a.memory: return memory(a.memory[0], int(a.memory[1]), a.memory[2])
    warnings.filterwarnings('ignore')
    peak = peak_flops()
    where = torch.cuda.get_device_name() if DEVICE != 'cpu' else f'{os.cpu_count()} cores, {torch.get_num_threads()} threads'
    out = ['`python benchmarks/training.py --out benchmarks/training.md`. What is compared stands at the head of the script.\n\n'
           f'{where}, torch {torch.__version__}, {DTYPE}, median of {a.repeats}; '
           f'a product of 2048 x 2048 matrices reaches {peak/1e9:.0f} GFLOP/s.\n']
    def show(title, head, rows):
        out.append(f'## {title}\n\n{table(head, rows)}')
        print(out[-1], flush=True)
    clients,sequences = (list(map(int, o.split(','))) for o in (a.clients, a.sequences))
    for model in models: show(f'Training, {model}: tokens/s', *training_table(model, clients, sequences, a.repeats, peak))
    show('Generation, 16 tokens after prompts of 42 to 58: tokens/s', *generation_table(models, a.repeats))
    if DEVICE == 'cpu' and 'smollm2' in models:
        show('Peak memory and seconds of a step, smollm2, one sequence a client: MiB', *memory_table())
    if a.out: Path(a.out).write_text('# Training\n\n' + '\n'.join(out))

if __name__ == '__main__': main()
