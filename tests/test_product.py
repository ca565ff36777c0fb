"Mixing in product space against dense matrices."
import numpy as np, pytest, torch
from hypothesis import given, settings, strategies as st
from safetensors.torch import load_file
from conftest import client_data
from fedai.algorithms import get_server
from fedai.config import ConfigError
from fedai.store.products import product_mix
from fedai.servers import Server_mira
from fedai.evaluate.tracking import Callback

def dense(M, Bs, As, k, r):
    U,S,V = np.linalg.svd(sum(m*(B.double()@A.double()).numpy() for m,B,A in zip(M[k], Bs, As)), full_matrices=False)
    return (U[:,:r]*S[:r])@V[:r],S

@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 6), st.integers(1, 9), st.integers(1, 9))
def test_the_best_approximation_of_the_dense_sum(seed, K, out, inn):
    "Ranks of their own, also beyond what the layer has; rows that are the identity, that are equal, that have zeros and negative numbers."
    g = np.random.default_rng(seed)
    ranks = g.integers(1, 5, K)
    Bs,As = [torch.from_numpy(g.normal(size=(out,r))) for r in ranks],[torch.from_numpy(g.normal(size=(r,inn))) for r in ranks]
    if g.random() < .3: Bs = [B*0 for B in Bs]   # the common start of a run
    M = g.normal(size=(K,K))*(g.random((K,K)) < .7)
    if K > 1: M[-1] = np.eye(K)[-1]
    if K > 2: M[1],ranks[1] = M[0],ranks[1]
    new = product_mix(M, Bs, As)
    for k,(B,A) in enumerate(new):
        assert B.shape == Bs[k].shape and A.shape == As[k].shape and B.dtype == torch.float64
        if np.array_equal(M[k], np.eye(K)[k]): assert B is Bs[k] and A is As[k]
        else:
            want,S = dense(M, Bs, As, k, ranks[k])
            r,top = ranks[k],max(S.max(), 1e-9)
            got = (B@A).numpy()
            unique = r >= len(S) or S[r-1] - S[r] > 1e-6*top   # the best approximation; its error is unique in any case
            if unique: assert np.abs(got - want).max() < 1e-6*top
            full = dense(M, Bs, As, k, len(S))[0]
            assert np.linalg.norm(got - full) <= np.linalg.norm(S[r:]) + 1e-8*top

@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31))
def test_what_a_factorisation_cant_change(seed):
    "(B R, R⁻¹ A) gives the same products; so does another order of the clients."
    g = np.random.default_rng(seed)
    Bs,As = [torch.from_numpy(g.normal(size=(7,2))) for _ in range(4)],[torch.from_numpy(g.normal(size=(2,6))) for _ in range(4)]
    M = g.dirichlet(np.ones(4), 4)
    R = torch.from_numpy(g.normal(size=(2,2)) + 2*np.eye(2))
    a,b = product_mix(M, Bs, As),product_mix(M, [Bs[0]@R, *Bs[1:]], [torch.linalg.inv(R)@As[0], *As[1:]])
    p = g.permutation(4)
    c = product_mix(M[np.ix_(p,p)], [Bs[i] for i in p], [As[i] for i in p])
    for k in range(4):
        want = a[k][0]@a[k][1]
        assert torch.allclose(b[k][0]@b[k][1], want, atol=1e-7)
        j = list(p).index(k)
        assert torch.allclose(c[j][0]@c[j][1], want, atol=1e-7)

@pytest.mark.parametrize('kw', [dict(name='mira', graph='complete', coupling=.6), dict(name='fedavg'),
                                dict(name='mira', graph='ring', m=.5), dict(name='local')], ids=str)
def test_a_round_in_product_space(make_cfg, kw):
    "Every layer of every client of a round against the dense sum of what was trained, cut by a dense decomposition."
    rounds = []
    class See(Callback):
        def after_mix(self, server, t, M): rounds.append(M)
    cfg = make_cfg(space='product', lr=.05, keep_trained=True, keep_rounds=9, rounds=2, target_modules=['q_proj','down_proj'], r=3, **kw)
    s = get_server(cfg, client_data(4), callbacks=[See()])
    s.fit()
    for t,M in enumerate(rounds):
        ids = s.selection[t]
        old,new = [[load_file(s.store.path(i, t+1, kind)/'adapter_model.safetensors') for i in ids] for kind in ('trained','local_output')]
        for n in old[0]:
            if 'lora_B' not in n: continue
            a = n.replace('lora_B', 'lora_A')
            for k in range(len(ids)):
                want = dense(M, [o[n] for o in old], [o[a] for o in old], k, 3)[0]
                assert np.abs((new[k][n]@new[k][a]).numpy() - want).max() < 1e-5*max(np.abs(want).max(), 1e-3), (t, n, k)
    assert s.store.check() == []
    again = get_server(cfg, client_data(4), callbacks=[])
    assert again.fit() == s.history

def test_the_rest_of_a_row_is_mixed_as_it_is(make_cfg):
    "Embeddings of new tokens beside the LoRAs."
    cfg = make_cfg(space='product', add_tokens=['<new>'], rounds=1, keep_trained=True, graph='complete', coupling=.6, lr=.05)
    seen = []
    class See(Callback):
        def after_mix(self, server, t, M): seen.append(M)
    s = Server_mira(cfg, client_data(4), callbacks=[See()])
    s.fit()
    old,new = [[load_file(s.store.path(i, 1, kind)/'adapter_model.safetensors') for i in range(4)] for kind in ('trained','local_output')]
    rest = [n for n in old[0] if 'lora_' not in n]
    assert rest
    for n in rest:
        for k in range(4): torch.testing.assert_close(new[k][n], sum(float(m)*o[n] for m,o in zip(seen[0][k], old)), rtol=1e-5, atol=1e-6)

def test_where_there_is_no_product(make_cfg):
    data = [{'train': [(torch.ones(3), 0)]*4, 'test': [(torch.ones(3), 1)]*2} for _ in range(4)]
    with pytest.raises(ConfigError, match="`space`: expected 'factors' for a model without a LoRA"):
        Server_mira(make_cfg(space='product'), data, torch.nn.Linear(3, 2), callbacks=[], criterion=torch.nn.CrossEntropyLoss())
    for name in ('ffa','fedsa','rolora'):
        with pytest.raises(ConfigError, match=f"`space`: expected 'factors' for {name}"):
            get_server(make_cfg(name=name, space='product'), client_data(4), callbacks=[])
