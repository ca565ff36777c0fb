"Clients of different LoRA ranks in one run."
import numpy as np, pytest, torch
from hypothesis import given, settings, strategies as st
from peft import PeftModel
from safetensors.torch import load_file
from conftest import client_data
from fedai.algorithms import get_server
from fedai.config import ConfigError
from fedai.graphs import mira_matrix, subgraph
from fedai.models import get_base_model, get_tokenizer
from fedai.store.products import product_mix
from fedai.evaluate.tracking import Callback
from test_algorithms import lora_steps
from test_product import dense

RANKS = [1,4,2,3]
def cut(state, r): return {n: (t[:r] if 'lora_A' in n else t[:,:r]) for n,t in state.items()}
def pad(state, r): return {n: torch.nn.functional.pad(t, (0,0,0,r-len(t)) if 'lora_A' in n else (0,r-t.shape[1])) for n,t in state.items()}
def beyond(state, r): return torch.cat([(t[r:] if 'lora_A' in n else t[:,r:]).flatten() for n,t in state.items()])
def files(s, i, round, kind='local_output'): return load_file(s.store.path(i, round, kind)/'adapter_model.safetensors')
def of(s, i): return {n: t.clone() for n,t in s.store.layout.views(s.row_of(s.client_list[i])).items()}

@pytest.mark.parametrize('engine', ['batched','sequential'])
def test_hetlora_against_the_paper(make_cfg, engine):
    "Clients with LoRAs of their own shapes, by peft alone; padded with zeros, weighted by the norm of B A, cut to what each can hold."
    cfg = make_cfg(name='hetlora', engine=engine, ranks=RANKS, m=.75, rounds=2, local_step=2, batch_size=3, optimizer='SGD', lr=.5,
                   grad_clip=100.)
    s = get_server(cfg, client_data(4), callbacks=[])
    shared = {n: t.double() for n,t in s.live.state().items()}
    start = dict(shared)
    s.fit()
    for t,ids in enumerate(s.selection):
        new,norms = [],[]
        for k in ids:
            small = cfg.replace(r=RANKS[k], ranks=[], lora_alpha=cfg.lora_alpha*RANKS[k]/cfg.r)
            w = lora_steps(small, cut({n: p.float() for n,p in shared.items()}, RANKS[k]), s.client_list[k].train_data.items, t, k,
                           list(shared))
            w = {n: p.double() for n,p in w.items()}
            norms.append(sum((w[n]@w[n.replace('lora_B', 'lora_A')]).square().sum().item() for n in w if 'lora_B' in n)**.5)
            new.append(pad(w, cfg.r))
        shared = {n: sum(x*w[n] for x,w in zip(norms, new))/sum(norms) for n in shared}
        assert max(norms) > 1.2*min(norms)   # or the weights would make no difference
    moved = max((shared[n] - start[n]).abs().max() for n in start)
    for k in range(4):
        got,whole = of(s, k),s.store.load(k)
        for n in shared: assert (whole[n] - shared[n]).abs().max() <= 2e-3*moved, (k, n)
        want = pad(cut(shared, RANKS[k]), cfg.r)
        for n in shared: assert (got[n] - want[n]).abs().max() <= 2e-3*moved and not beyond(got, RANKS[k]).any(), (k, n)
    again = get_server(cfg, client_data(4), callbacks=[])
    assert again.fit() == s.history

@pytest.mark.parametrize('engine', ['batched','sequential'])
@pytest.mark.parametrize('name', ['mira','fedavg','local','ditto','fedavg_ft'])
def test_zeros_stay_zeros(make_cfg, name, engine):
    """Under AdamW with weight decay and dropout, from the common start on; in what is trained, sent, tested with, and for clients with
    a state of their own in the file."""
    cfg = make_cfg(name=name, engine=engine, clients_per_batch=3, ranks=RANKS, m=.75, rounds=3, lr=.05, lora_dropout=.1,
                   optimizer_args=dict(weight_decay=.1), keep_trained=True, keep_rounds=9, graph='complete')
    s = get_server(cfg, client_data(4), callbacks=[])
    assert all(not beyond(of(s, i), RANKS[i]).any() for i in range(4))   # the common start
    s.fit()
    for t,ids in enumerate(s.selection):
        for i in ids:
            T = files(s, i, t+1, 'trained')
            used = [(p if 'lora_A' in n else p.T)[:RANKS[i]].any(1) for n,p in T.items()]
            assert not beyond(T, RANKS[i]).any() and torch.cat(used).all()
            assert beyond(files(s, i, t+1), RANKS[i]).any() == (name in ('fedavg','ditto','fedavg_ft')
                                                                and not (name == 'fedavg_ft' and t == cfg.rounds-1) and RANKS[i] < 4)
            assert not beyond(s.store.layout.views(s.test_row(s.client_list[i], t+1)), RANKS[i]).any()
    for i in range(4):
        assert not beyond(of(s, i), RANKS[i]).any() and not beyond(s.store.layout.views(s.test_row(s.client_list[i])), RANKS[i]).any()
    if name != 'mira': return
    A,ids = s.alk_connection,s.selection[-1]
    M,old = mira_matrix(subgraph(A, ids), .5/A.sum(1).max()),[files(s, i, 3, 'trained') for i in ids]
    for k,i in enumerate(ids):
        got,want = files(s, i, 3),{n: sum(m*o[n].double() for m,o in zip(M[k], old)) for n in old[0]}
        want = pad(cut(want, RANKS[i]), 4)
        for n in got: assert (got[n] - want[n]).abs().max() < 1e-6
    m = PeftModel.from_pretrained(get_base_model(cfg), s.store.path(ids[0])).eval()
    tokens = torch.tensor([get_tokenizer(cfg)('1 + 2 =').input_ids])
    s.send(s.client_list[ids[0]])
    with torch.no_grad(): assert torch.equal(m(tokens).logits, s.model.eval()(tokens).logits)

@pytest.mark.parametrize('name', [n for n,o in vars(torch.optim).items() if isinstance(o, type) and issubclass(o, torch.optim.Optimizer)
                                  and n not in ('Optimizer','LBFGS','SparseAdam')])
def test_no_optimiser_makes_something_of_nothing(name):
    g = torch.Generator().manual_seed(0)
    A,B = torch.randn(4, 5, generator=g),torch.randn(6, 4, generator=g)
    A[2:],B[:,2:] = 0,0
    A,B = torch.nn.Parameter(A),torch.nn.Parameter(B)
    cls = getattr(torch.optim, name)
    opt = cls([A,B], lr=.1, **({'weight_decay': .1} if 'weight_decay' in cls.__init__.__code__.co_varnames else {}))
    before = A.clone()
    for _ in range(5):
        opt.zero_grad()
        (torch.randn(7, 5, generator=g)@A.T@B.T).sin().square().sum().backward()
        opt.step()
    assert not torch.equal(A[:2], before[:2]) and not A[2:].any() and not B[:,2:].any()

@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 5), st.integers(1, 7), st.integers(1, 7))
def test_products_cut_to_ranks(seed, K, out, inn):
    g = np.random.default_rng(seed)
    n = int(g.integers(1, 5))
    ranks = g.integers(1, n+1, K).tolist()
    Bs,As = [torch.from_numpy(g.normal(size=(out,n))) for _ in ranks],[torch.from_numpy(g.normal(size=(n,inn))) for _ in ranks]
    M = g.normal(size=(K,K))
    M[-1] = np.eye(K)[-1]
    if K > 2: M[1] = M[0]   # equal rows, of other ranks
    for k,(B,A) in enumerate(product_mix(M, Bs, As, ranks)):
        assert B.shape == (out,n) and A.shape == (n,inn) and not B[:,ranks[k]:].any() and not A[ranks[k]:].any()
        want,S = dense(M, Bs, As, k, ranks[k])
        if ranks[k] >= len(S) or S[ranks[k]-1] - S[ranks[k]] > 1e-6*S.max(): assert np.abs((B@A).numpy() - want).max() < 1e-6*S.max()

@pytest.mark.parametrize('name', ['mira','fedavg','hetlora'])
def test_product_space_with_ranks(make_cfg, name):
    "Each client uses the best approximation, of its rank, of the dense sum; for one model for all, of that of rank r."
    seen = []
    class See(Callback):
        def after_mix(self, server, t, M): seen.append(M)
    cfg = make_cfg(name=name, space='product', ranks=RANKS, r=4, rounds=2, m=.75, lr=.05, keep_trained=True, keep_rounds=9,
                   graph='complete', coupling=.6)
    s = get_server(cfg, client_data(4), callbacks=[See()])
    s.fit()
    for t,M in enumerate(seen):
        ids = s.selection[t]
        old,new = [[files(s, i, t+1, kind) for i in ids] for kind in ('trained','local_output')]
        for n in old[0]:
            if 'lora_B' not in n: continue
            a = n.replace('lora_B', 'lora_A')
            for k,i in enumerate(ids):
                row = s.store.layout.views(s.test_row(s.client_list[i], t+1))
                for r,got in ((RANKS[i],row), (4 if s.one_model else RANKS[i],new[k])):
                    want = dense(M, [o[n] for o in old], [o[a] for o in old], k, r)[0]
                    assert np.abs((got[n]@got[a]).numpy() - want).max() < 1e-5*max(np.abs(want).max(), 1e-3), (t, n, k)
    assert s.store.check() == []

@pytest.mark.parametrize('name', ['mira','hetlora'])
def test_a_stopped_run_with_ranks_goes_on(make_cfg, name):
    kw = dict(name=name, ranks=RANKS, m=.5, rounds=3, lr=.05)
    a,b = make_cfg(**kw),make_cfg(**kw)
    s = get_server(a, client_data(4), callbacks=[])
    s.fit()
    class Stop(Callback):
        def after_client(self, server, comm_round, id, metrics):
            if comm_round == 1: raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): get_server(b, client_data(4), callbacks=[Stop()]).fit()
    again = get_server(b, client_data(4), callbacks=[])
    assert again.fit() == s.history
    for i in range(4): assert torch.equal(again.store.load_row(i), s.store.load_row(i))
    with pytest.raises(ConfigError, match='`ranks`: expected .*as in the run in'):
        get_server(b.replace(ranks=[1,1,1,1]), client_data(4), callbacks=[])

def test_ranks_that_can_not_be(make_cfg):
    for bad in ([1,2,3], [0,1,2,3], [1,2,3,5], [1,2,3,4.], [1,2,3,True], ['1','2','3','4']):
        with pytest.raises(ConfigError, match=r'`ranks`: expected 4 integers from 1 to 4 \(`r`\), one a client'): make_cfg(ranks=bad)
    pairs = [{'train': [(torch.ones(3), 0)]*4, 'test': [(torch.ones(3), 1)]*2} for _ in range(4)]
    kw = dict(callbacks=[], criterion=torch.nn.CrossEntropyLoss())
    with pytest.raises(ConfigError, match='`ranks`: expected none, for a model without a LoRA'):
        get_server(make_cfg(ranks=RANKS), pairs, torch.nn.Linear(3, 2), **kw)
    with pytest.raises(ConfigError, match='`name`: expected an algorithm for models without a LoRA'):
        get_server(make_cfg(name='hetlora'), pairs, torch.nn.Linear(3, 2), **kw)
    from peft import LoraConfig, get_peft_model
    own = get_peft_model(get_base_model(make_cfg()), LoraConfig(task_type='CAUSAL_LM', r=3, target_modules=['v_proj']))
    with pytest.raises(ConfigError, match="`ranks`: expected at most 3, the rank of the model's LoRA"):
        get_server(make_cfg(ranks=RANKS), client_data(4), own, callbacks=[])

def test_what_all_share_is_stepped_in_full(make_cfg):
    "The first client's rank, 1, isn't the shared model's: FedAvgM goes on from all of it."
    cfg = make_cfg(name='fedavg', ranks=RANKS, rounds=3, lr=.05, keep_trained=True, keep_rounds=5, server_optimizer='momentum',
                   server_optimizer_args=dict(beta1=.5))
    s = get_server(cfg, client_data(4), callbacks=[])
    shared,m = {n: t.double() for n,t in s.live.state().items()},{}
    s.fit()
    for t in range(3):
        trained = s.trained_states(range(4), t)
        m = {n: .5*m.get(n, 0) + sum(o[n].double() for o in trained)/4 - w for n,w in shared.items()}   # all have twelve examples
        shared = {n: w + m[n] for n,w in shared.items()}
        for n,x in files(s, 0, t+1).items(): torch.testing.assert_close(x.double(), shared[n], rtol=1e-4, atol=1e-6)
    assert beyond(shared, 1).abs().max() > .01
