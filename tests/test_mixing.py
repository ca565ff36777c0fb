"Mixing against a float64 oracle written plainly, for any matrix, dtype and layout."
import numpy as np, tempfile, torch
from hypothesis import given, settings, strategies as st
from pathlib import Path
from safetensors.torch import load_file
from xxhash import xxh3_64
from fedai.graphs import average_matrix, laplacian, mira_matrix, random_graph
from fedai.store.adapters import AdapterStore
from fedai.store.mixing import mix_rows
from fedai.store.rows import Layout, write_row

TOL = {torch.float32: 1e-6, torch.bfloat16: 2**-8, torch.float16: 2**-11, torch.float64: 1e-6}

def mixed(M, states, own=(), memory=2**24, sparse=.1):
    layout = Layout.of(states[0])
    with tempfile.TemporaryDirectory() as d:
        src,dst = [Path(d)/f's{k}' for k in range(len(states))],[Path(d)/f'd{k}' for k in range(len(states))]
        for p,s in zip(src, states): write_row(p, layout, layout.pack(s))
        before = [p.read_bytes() for p in src]
        sums = mix_rows(M, src, dst, layout, own, memory, sparse)
        for k,c in sums.items(): assert xxh3_64(dst[k].read_bytes()).hexdigest() == c
        assert [p.read_bytes() for p in src] == before
        return [{n: t.clone() for n,t in load_file(p).items()} for p in dst]

@st.composite
def problems(draw):
    K = draw(st.integers(1, 6))
    seed = draw(st.integers(0, 2**31))
    g = np.random.default_rng(seed)
    dtype = draw(st.sampled_from(list(TOL)))
    shapes = draw(st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=3).map(tuple), min_size=1, max_size=4))
    kind = draw(st.sampled_from(['dense','sparse','identity','average','graph']))
    M = g.normal(size=(K,K))
    if kind == 'sparse': M *= g.random((K,K)) < .3
    if kind == 'identity': M[::2] = np.eye(K)[::2]
    if kind == 'average': M = average_matrix(g.random(K) + .1)
    if kind == 'graph': M = np.eye(K) - .05*laplacian(random_graph(K, seed))
    gen = torch.Generator().manual_seed(seed)
    names = [f't{i}' for i in range(len(shapes))]
    states = [{n: torch.randn(s, generator=gen).to(dtype) for n,s in zip(names, shapes)} | {'count': torch.tensor([k])} for k in range(K)]
    own,memory,sparse = draw(st.sets(st.sampled_from(names))),draw(st.integers(1, 2000)),draw(st.sampled_from([0,.1,2]))
    return M,states,own,memory,sparse

@settings(max_examples=300, deadline=None)
@given(problems())
def test_any_matrix_equals_float64(problem):
    M,states,own,memory,sparse = problem
    new = mixed(M, states, own, memory, sparse)
    for n in states[0]:
        W = np.stack([s[n].double().numpy() for s in states])
        kept = n in own or n == 'count'
        want = W if kept else np.einsum('kl,l...->k...', M, W)
        got = np.stack([s[n].double().numpy() for s in new])
        if kept: assert (got == want).all()
        else: assert np.abs(got - want).max() <= TOL[states[0][n].dtype]*(1 + np.abs(M).sum(1).max()*np.abs(W).max())

@settings(max_examples=50, deadline=None)
@given(st.integers(2, 8), st.integers(0, 2**31), st.floats(0, 1))
def test_mira_matrix_is_the_papers_sum(K, seed, coupling):
    A = random_graph(K, seed)
    s = .9*coupling/max(A.sum(1).max(), 1e-9) if A.any() else 0.
    W = np.random.default_rng(seed).normal(size=(K,7))
    want = np.array([W[k] - s*sum(A[k,l]*(W[k] - W[l]) for l in range(K)) for k in range(K)])
    M = mira_matrix(A, s)
    assert np.allclose(M@W, want, atol=1e-12)
    assert np.allclose(M.sum(1), 1) and np.allclose(M, M.T) and (M >= -1e-12).all()
    assert np.allclose((M@W).mean(0), W.mean(0))

def test_all_rows_come_from_the_same_old_rows():
    "With a swap, updating one after another would give two equal rows."
    new = mixed(np.array([[0,1],[1,0]]), [{'w': torch.zeros(3)}, {'w': torch.ones(3)}])
    assert new[0]['w'].eq(1).all() and new[1]['w'].eq(0).all()

def test_a_row_of_zeros():
    new = mixed(np.zeros((2,2)), [{'w': torch.ones(3)}]*2)
    assert new[0]['w'].eq(0).all() and new[1]['w'].eq(0).all()

def test_order_of_ids_does_not_matter(tmp_path):
    ids,g = [5,0,9,3],torch.Generator().manual_seed(0)
    states = {i: {'w': torch.randn(1000, generator=g)} for i in ids}
    A = random_graph(10, 0)
    got = []
    for j,order in enumerate((ids, sorted(ids), ids[::-1])):
        store = AdapterStore(tmp_path/str(j))
        store.start({'w': torch.zeros(1000)})
        for i in order: store.save_trained(1, i, states[i])
        store.mix(order, mira_matrix(A[np.ix_(order, order)], .1), 1)
        store.commit(1, order)
        got.append({i: store.load(i)['w'].clone() for i in ids})
    for i in ids: assert torch.equal(got[0][i], got[1][i]) and torch.equal(got[0][i], got[2][i])
