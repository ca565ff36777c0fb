"""Mixing in product space through the factors, beside the dense computation, in this run.

    python benchmarks/product.py --out benchmarks/product.md

factors   `fedai.store.products.product_mix`: QR of the stacked factors, a small core, its singular value decomposition
dense     Σ_l M_kl B_l A_l as an out x in matrix for each client, and torch's full decomposition of it, in float32; measured for one client
          and scaled to K
One layer, out = in = d, rank 8, float32 factors, a random mixing matrix.
"""
import argparse, time
from pathlib import Path
from statistics import median
import numpy as np, torch
from fedai.store.products import product_mix

def timed(f, repeats=3):
    s = []
    for _ in range(repeats):
        t = time.perf_counter()
        out = f()
        s.append(time.perf_counter() - t)
    return median(s),out

def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--out')
    ap.add_argument('--sizes', default='576,1024,2048')
    ap.add_argument('--clients', default='4,16')
    a = ap.parse_args()
    lines = ['| d | K | factors, s | dense, s | dense / factors | largest difference, relative |','|---|---|---|---|---|---|']
    for d in map(int, a.sizes.split(',')):
        for K in map(int, a.clients.split(',')):
            g,r = torch.Generator().manual_seed(0),8
            Bs,As = [torch.randn(d, r, generator=g) for _ in range(K)],[torch.randn(r, d, generator=g) for _ in range(K)]
            M = np.random.default_rng(0).dirichlet(np.ones(K), K)
            few,new = timed(lambda: product_mix(M, Bs, As))
            def dense():
                U,S,V = torch.linalg.svd(sum(float(m)*(B@A) for m,B,A in zip(M[0], Bs, As)), full_matrices=False)
                return (U[:,:r]*S[:r])@V[:r]
            one,want = timed(dense, 1)
            err = float((new[0][0]@new[0][1] - want).abs().max()/want.abs().max())
            assert err < 1e-3, err
            lines.append(f'| {d} | {K} | {few:.3f} | {one*K:.2f} | {one*K/few:.0f} | {err:.0e} |')
            print(lines[-1], flush=True)
    how = '`python benchmarks/product.py --out benchmarks/product.md`. What is compared stands at the head of the script.'
    if a.out: Path(a.out).write_text(f'# Mixing in product space\n\n{how}\n\n' + '\n'.join(lines) + '\n')

if __name__ == '__main__': main()
