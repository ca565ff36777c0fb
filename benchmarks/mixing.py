"""How fast is mixing, and what does it take in memory, beside the alternatives, all in this run.

    python benchmarks/mixing.py --out benchmarks/mixing.md

Every measurement is a process of its own, so that its peak memory is its own; the alternatives take turns, and the median of the repeats
is given. The page cache is warm.

copy        the same bytes read and written in user space through a buffer of 1 MiB, file by file
product     the K x K matrix times the K x P rows, which lie in memory, into memory that was used before: what no mixing can do without
            (of more than 1 GiB of rows, that much is measured and scaled)
mix         `fedai.store.mixing.mix_rows`, which makes the checksums too
... +flush  the same, and every file flushed to the disk
load all    every file loaded, one product per tensor, every file saved with safetensors
K² loop     for each client, load every other client's file with torch.load: measured for a few clients and scaled to all
"""
import argparse, json, os, shutil, subprocess, sys, tempfile, time
from pathlib import Path
from statistics import median

SIZES = {'smollm2': dict(layers=30, r=8, width=576, out=(576,192)), '7b': dict(layers=32, r=16, width=4096, out=(4096,4096))}

def shapes(size):
    s = SIZES[size]
    for l in range(s['layers']):
        for name,out in zip(('q_proj','v_proj'), s['out']):
            p = f'base_model.model.model.layers.{l}.self_attn.{name}'
            yield f'{p}.lora_A.weight',(s['r'], s['width'])
            yield f'{p}.lora_B.weight',(out, s['r'])

def graph_matrix(K, neighbours):
    "A mixing matrix on a random graph; every client has about that many neighbours."
    import numpy as np
    g = np.random.default_rng(0)
    A = np.triu(g.random((K,K))*(g.random((K,K)) < min(1., neighbours/max(1, K-1))), 1)
    A = A + A.T
    return np.eye(K) - .5/max(A.sum(1).max(), 1e-9)*(np.diag(A.sum(1)) - A)

# ---- one measurement, in a process of its own

def measure(what, size, K, folder):
    import numpy as np, torch
    from safetensors.torch import load_file, save_file
    from fedai.store.mixing import mix_rows
    from fedai.store.rows import read_row
    from fedai.utils import sync_all
    src,dst = [Path(folder)/'src'/f'{k}.safetensors' for k in range(K)],[Path(folder)/'dst'/f'{k}.safetensors' for k in range(K)]
    layout = read_row(src[0])[0]
    P,scale = layout.nbytes//4,1
    M = np.eye(K) if what == 'identity' else graph_matrix(K, 8 if what == 'sparse' else K)
    Mt = torch.from_numpy(M.astype(np.float32))
    for _ in range(2): torch.mm(Mt, torch.ones(K, 4096))   # thread pools are made once in a server's life
    mix_rows(np.eye(1), src[:1], [Path(folder)/'dst'/'warm'], layout)
    if what == 'product': X,Y = (torch.ones(K, min(P, 2**28//K)) for _ in range(2))
    def peak(): return int(next(l for l in open('/proc/self/status') if l.startswith('VmHWM')).split()[1])/1024
    with open('/proc/self/clear_refs', 'w') as f: f.write('5')   # begin counting the peak here
    before,began = peak(),time.perf_counter()
    if what.startswith('copy'):
        buf = memoryview(bytearray(2**20))
        for s,d in zip(src, dst):
            i,o = os.open(s, os.O_RDONLY),os.open(d, os.O_WRONLY|os.O_CREAT|os.O_TRUNC)
            while n := os.readv(i, [buf]): os.write(o, buf[:n])
            os.close(i)
            os.close(o)
    elif what == 'product':
        torch.mm(Mt, X, out=Y)
        scale = P/X.shape[1]
    elif what in ('mix','mix+flush','sparse','identity'): mix_rows(M, src, dst, layout)
    elif what == 'load all':
        W = [load_file(p) for p in src]
        out = [{} for _ in range(K)]
        for n in list(W[0]):
            X = torch.stack([w.pop(n) for w in W])
            for o,y in zip(out, (Mt @ X.view(K, -1)).view(X.shape)): o[n] = y.contiguous()
        for p,o in zip(dst, out): save_file(o, p)
    elif what == 'K² loop':
        A,some = -M,min(K, max(1, 300//K))
        scale = K/some
        for k in range(some):
            w = torch.load(Path(folder)/'pt'/f'{k}.pt', weights_only=True)
            new = {n: t.clone() for n,t in w.items()}
            for l in range(K):
                if l == k: continue
                other = torch.load(Path(folder)/'pt'/f'{l}.pt', weights_only=True)
                for n in w: new[n] += float(A[k,l])*(w[n] - other[n])
            torch.save(new, dst[k])
    if what.endswith('+flush'): sync_all(dst)
    seconds,memory = (time.perf_counter() - began)*scale,peak() - before
    error = None
    if what in ('mix','sparse'):
        n,shape = next(iter(shapes(size)))
        W = np.stack([load_file(p)[n].double().numpy().ravel() for p in src[:K]])
        error = float(max(abs(load_file(dst[k])[n].double().numpy().ravel() - M[k]@W).max() for k in (0, K//2, K-1)))
        assert error < 1e-4, error
    print(json.dumps(dict(seconds=seconds, memory=memory, error=error, scaled=scale > 1)))

def make(size, K, folder, pickles):
    import torch
    from fedai.store.rows import Layout, write_row
    for d in ('src','dst','pt'): (Path(folder)/d).mkdir(parents=True, exist_ok=True)
    layout = Layout.of({n: torch.empty(s) for n,s in shapes(size)})
    for k in range(K):
        row = torch.randn(layout.nbytes//4, generator=torch.Generator().manual_seed(k)).view(torch.uint8)
        write_row(Path(folder)/'src'/f'{k}.safetensors', layout, row)
        if pickles: torch.save({n: t.clone() for n,t in layout.views(row).items()}, Path(folder)/'pt'/f'{k}.pt')

# ---- the table

def once(what, size, K, folder):
    for o in (Path(folder)/'dst').iterdir(): o.unlink()
    r = subprocess.run([sys.executable, __file__, '--measure', what, size, str(K), str(folder)], capture_output=True, text=True)
    if r.returncode: sys.exit(f'{what}, {size}, K={K}: {r.stderr[-2000:]}')
    return json.loads(r.stdout)

def row(size, K, repeats, folder, most):
    nbytes = sum(a*b for _,(a,b) in shapes(size))*4
    loop = K <= 50
    need = K*nbytes*(3 if loop else 2)
    if K*nbytes > most*2**30: return None
    memory = os.sysconf('SC_PAGE_SIZE')*os.sysconf('SC_PHYS_PAGES')
    if need > .8*shutil.disk_usage(folder).free or K*nbytes*2 > .8*memory: return None
    d = Path(tempfile.mkdtemp(dir=folder))
    try:
        make(size, K, d, loop)
        whats = ['copy','product','mix','copy+flush','mix+flush','sparse','identity']
        if K*nbytes*4 < memory: whats.append('load all')
        got = {w: [] for w in whats}
        for _ in range(repeats):
            for w in whats: got[w].append(once(w, size, K, d))
        if loop: got['K² loop'] = [once('K² loop', size, K, d)]
    finally: shutil.rmtree(d)
    t = {w: median(o['seconds'] for o in v) for w,v in got.items()}
    s = lambda w: f"{t[w]:.3g}" if w in t else '-'
    scaled = '*' if loop and got['K² loop'][0]['scaled'] else ''
    return [size, K, s('copy'), s('product'), s('mix'), f"{t['mix']/(t['copy'] + t['product']):.2f}",
            s('copy+flush'), s('mix+flush'), f"{t['mix+flush']/(t['copy+flush'] + t['product']):.2f}",
            f"{max(o['memory'] for o in got['mix']):.0f}", s('sparse'), s('identity'), s('load all'), s('K² loop') + scaled,
            f"{t['K² loop']/t['mix+flush']:.0f}" if loop else '-']

HEAD = ['adapter','K','copy','product','mix','mix / (copy + product)','copy+flush','mix+flush','flushed ratio','peak extra MiB',
        'sparse (8 neighbours)','identity','load all','K² loop','K² loop / mix+flush']
NOT = 'not measured: more than `--most`, or than the disk or the page cache holds'

def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--sizes', default='smollm2,7b')
    ap.add_argument('--clients', default='10,50,200,1000')
    ap.add_argument('--repeats', type=int, default=5)
    ap.add_argument('--most', type=float, default=2, help='GiB that all rows together may have')
    ap.add_argument('--folder', default=tempfile.gettempdir(), help='a folder on the disk to measure')
    ap.add_argument('--out', help='a file for the table; standard output when not given')
    ap.add_argument('--measure', nargs=4, help=argparse.SUPPRESS)
    a = ap.parse_args()
    if a.measure: return measure(a.measure[0], a.measure[1], int(a.measure[2]), a.measure[3])
    import torch
    lines = ['| ' + ' | '.join(HEAD) + ' |', '|' + '---|'*len(HEAD)]
    for size in a.sizes.split(','):
        for K in map(int, a.clients.split(',')):
            r = row(size, K, a.repeats, a.folder, a.most)
            lines.append('| ' + ' | '.join(map(str, r or [size, K, NOT])) + ' |')
            print(lines[-1], flush=True)
    machine = f'{os.cpu_count()} cores, {torch.get_num_threads()} threads, torch {torch.__version__}'
    sizes = 'smollm2: r=8 on q and v of 30 layers, P = 460,800; 7b: r=16 on q and v of 32 layers, P = 8,388,608'
    text = f"""Seconds, median of {a.repeats}; {machine}. {sizes}.
* measured for some clients and scaled to all.

{chr(10).join(lines)}
"""
    head = f'# Mixing\n\n`python benchmarks/mixing.py --out {a.out}`. What the columns mean stands at the head of the script.\n\n'
    if a.out: Path(a.out).write_text(head + text)

if __name__ == '__main__': main()
