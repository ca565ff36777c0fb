"What goes into the base model, and clients that share a model with their kind, against plain programs of the papers' formulas."
import json
import numpy as np
import pytest, torch
from hypothesis import given, strategies as st
from itertools import combinations
from peft import PeftModel
from safetensors.torch import load_file
from conftest import client_data
from test_algorithms import DATA, K, SIZES, lora_steps, mean, net, pairs, sgd
from fedai.algorithms import bipartition, get_server
from fedai.train.model import add_to_base
from fedai.config import ConfigError
from fedai.models import get_model
from fedai.utils import rng

def products(state):
    return {n.removeprefix('base_model.model.').replace('.lora_B.weight',
                                                        '.weight'): state[n].double()@state[n.replace('lora_B', 'lora_A')].double()
            for n in state if 'lora_B' in n}

def uneven(n=4):
    "Clients with different numbers of examples."
    return [{**d, 'train': d['train'][:12 - 2*k]} for k,d in enumerate(client_data(n))]

@pytest.mark.parametrize('engine', ['batched','sequential'])
@pytest.mark.parametrize('name', ['flora','fedex'])
def test_exact_averages_against_the_papers(make_cfg, name, engine):
    cfg,data = make_cfg(name=name, engine=engine, m=.5, rounds=3, local_step=2, batch_size=3, optimizer='SGD', lr=2., grad_clip=None,
                        optimizer_args=dict(weight_decay=0.), keep_rounds=5),uneven()
    s = get_server(cfg, data, callbacks=[])
    scale,state,change = cfg.lora_alpha/cfg.r,{n: t.clone() for n,t in s.live.state().items()},{}
    s.fit()
    items = [s.client_list[k].train_data.items for k in range(4)]
    for t,ids in enumerate(s.selection):
        new,n = [lora_steps(cfg, state, items[k], t, k, change=change) for k in ids],[len(data[k]['train']) for k in ids]
        exact = {w: sum(a*products(o)[w] for a,o in zip(n, new))/sum(n) for w in products(new[0])}
        average = {w: sum(a*o[w] for a,o in zip(n, new))/sum(n) for w in state}
        # what the base model and the LoRA together have to be from now on
        before = {w: change.get(w, 0) + scale*d for w,d in exact.items()}
        if name == 'fedex': state,change = average,{w: d - scale*products(average)[w] for w,d in before.items()}
        else:
            old,state = state,load_file(s.store.path(ids[0], t+1)/'adapter_model.safetensors')   # the fresh LoRA is drawn
            A = [w for w in state if 'lora_A' in w]
            assert all((state[w] == 0).all() for w in state if 'lora_B' in w) and all(not torch.equal(state[w], old[w]) for w in A)
            for w in A:
                assert state[w].abs().max() <= state[w].shape[1]**-.5 and state[w].std() == pytest.approx((3*state[w].shape[1])**-.5,
                    rel=.2)
            change = before
        change = {w: d.float() for w,d in change.items()}
    got = s.store.kept('base')
    assert got.keys() == change.keys() and len(got) == 4 and max(d.abs().max() for d in change.values()) > 1e-4
    for w,d in change.items(): assert (got[w] - d).abs().max() <= 5e-3*d.abs().max(), w
    final = s.store.layout.views(s.row_of(s.client_list[3]))
    for n,t in state.items(): assert (final[n] - t).abs().max() <= 5e-3*t.abs().max(), n

@pytest.mark.parametrize('name', ['flora','fedex'])
def test_what_a_run_leaves_is_what_was_tested(make_cfg, name):
    """The saved adapter on the base model with the saved change computes what the live model computes; another server with the same model
    begins from the model as it was; a resumed run has the same bits."""
    cfg = make_cfg(name=name, rounds=2, lr=.05)
    s = get_server(cfg, client_data(4), callbacks=[])
    first = {n: p.clone() for n,p in get_model(cfg).named_parameters()}
    history,scores = s.fit(),s.test()
    ids = torch.tensor([[5,6,7,8,9]])
    s.send(s.client_list[1])
    live = s.model(input_ids=ids).logits
    base = get_model(cfg).unload()
    other = add_to_base(base, load_file(s.store.folder(2)/'kept_base.safetensors'))
    torch.testing.assert_close(PeftModel.from_pretrained(other, str(s.store.path(1))).eval()(input_ids=ids).logits, live, rtol=1e-4,
                               atol=1e-5)
    assert not torch.allclose(PeftModel.from_pretrained(get_model(cfg).unload(), str(s.store.path(1))).eval()(input_ids=ids).logits, live,
                              atol=1e-4)
    for part in (1,2):
        again = get_server(cfg.replace(output_dir=cfg.output_dir + 'b', rounds=part), client_data(4), callbacks=[]); h = again.fit()
    assert h == history and again.test() == scores
    assert (again.store.folder(2)/'kept_base.safetensors').read_bytes() == (s.store.folder(2)/'kept_base.safetensors').read_bytes()
    third = get_server(cfg.replace(output_dir=cfg.output_dir + 'c', name='fedavg'), client_data(4), s.model, callbacks=[])
    assert third.store.identity['base_model'] == s.store.identity['base_model']
    for n,p in s.model.named_parameters(): assert 'lora' in n or torch.equal(p, first[n]), n

@pytest.mark.parametrize('name', ['flora','fedex','ifca','cfl'])
def test_every_loss_is_that_of_the_model_it_speaks_of(make_cfg, name):
    """In the history that of the round's end, on the clients' tests and on the server's own examples; beside the scores that of the model
    before the first round."""
    cfg,data = make_cfg(name=name, rounds=2, lr=.1, eval_every=1),client_data(4)
    hold = data[2]['test']
    s = get_server(cfg, data, None, hold, callbacks=[])
    history,scores = s.fit(),s.test(baselines=True)
    if name != 'ifca':   # whose clients choose anew among the models that a round left
        assert history[-1]['test_loss'] == pytest.approx({str(k): m['loss'] for k,m in scores.items()}, rel=1e-5)
        shorter = get_server(cfg.replace(output_dir=cfg.output_dir + 'b', rounds=1), data, None, hold, callbacks=[])
        shorter.fit()
        assert history[0]['test_loss'] == pytest.approx({str(k): m['loss'] for k,m in shorter.test().items()},
                                                        rel=1e-5) != history[-1]['test_loss']
    if name in ('flora','fedex'): assert history[-1]['holdout_loss'] == pytest.approx(scores[2]['loss'], rel=1e-5)   # one model for all
    untrained = get_server(cfg.replace(output_dir=cfg.output_dir + 'c', name='local', rounds=0), data, callbacks=[])
    assert {i: m['loss'] for i,m in s.scorecard['base']['clients'].items()} == pytest.approx({str(i): m['loss']
        for i,m in untrained.test().items()}, rel=1e-5)
    assert s.test() == scores   # the change is back

def test_what_exact_averages_refuse(make_cfg):
    for name in ('flora','fedex'):
        with pytest.raises(ConfigError, match='without a LoRA'):
            get_server(make_cfg(name=name), DATA, net(), callbacks=[], criterion=torch.nn.MSELoss())
        with pytest.raises(ConfigError, match='server_optimizer'):
            get_server(make_cfg(name=name, server_optimizer='adam'), client_data(4), callbacks=[])
    with pytest.raises(ConfigError, match='names of weights'): add_to_base(net(), {'x': torch.zeros(1)})

def kinds(k, n):
    "Two kinds of client: the sign of the target."
    return [(x, (y + 2)*(1,-1)[k % 2]) for x,y in pairs(k//2, n)]
TWO = [{'train': kinds(k, n), 'test': kinds(k, 4)} for k,n in enumerate([6,9,12,5])]

def loss(w, data):
    model = net()
    model.load_state_dict(w)
    x,y = map(torch.stack, zip(*data))
    return ((model(x) - y)**2).mean().item()

@pytest.mark.parametrize('engine', ['batched','sequential'])
@pytest.mark.parametrize('m', [1.,.5])
def test_ifca_against_its_algorithm(make_cfg, engine, m):
    cfg = make_cfg(name='ifca', engine=engine, m=m, rounds=5, local_step=3, batch_size=4, optimizer='SGD', lr=.1, grad_clip=None)
    s = get_server(cfg, TWO, net(), callbacks=[], criterion=torch.nn.MSELoss())
    history = s.fit()
    dealt,models = rng(cfg.seed, 'clusters').permutation(K) % 2,{}
    def choose(k): return int(np.argmin([loss(models[c], TWO[k]['train']) for c in range(2)])) if len(models) == 2 else int(dealt[k])
    for t,ids in enumerate(s.selection):
        at = {k: choose(k) for k in ids}
        assert history[t]['clusters'] == {str(k): c for k,c in at.items()}
        new = {k: sgd(cfg, models.get(at[k], net().state_dict()), TWO[k]['train'], t, k) for k in ids}
        for c in set(at.values()):
            mine = [k for k in ids if at[k] == c]
            models[c] = mean([new[k] for k in mine], [SIZES[k] for k in mine])
    for k in range(K):
        got = s.store.layout.views(s.row_of(s.client_list[k]))
        for n,t in got.items(): torch.testing.assert_close(t, models[choose(k)][n], rtol=1e-6, atol=1e-8)
    if m == 1: assert choose(0) == choose(2) != choose(1) == choose(3)   # it finds the kinds

@pytest.mark.parametrize('engine', ['batched','sequential'])
def test_cfl_against_its_algorithm(make_cfg, engine):
    cfg = make_cfg(name='cfl', algorithm_args=dict(eps=.5), engine=engine, rounds=4, local_step=3, batch_size=4, optimizer='SGD', lr=.1,
                   grad_clip=None)
    s = get_server(cfg, TWO, net(), callbacks=[], criterion=torch.nn.MSELoss())
    history = s.fit()
    clusters = [(list(range(K)),net().state_dict())]
    for t in range(4):
        after = []
        for mine,w in clusters:
            new = {k: sgd(cfg, w, TWO[k]['train'], t, k) for k in mine}
            up = {k: torch.cat([(new[k][n] - w[n]).flatten() for n in w]).double() for k in mine}
            whole = sum(SIZES[k]*up[k] for k in mine)/sum(SIZES[k] for k in mine)
            parts = [mine]
            if len(mine) > 1 and whole.norm() < .5*max(u.norm() for u in up.values()):
                cos = lambda a, b: (up[a]@up[b]/up[a].norm()/up[b].norm()).item()
                splits = [(list(p),[k for k in mine if k not in p]) for r in range(1, len(mine)) for p in combinations(mine, r)]
                parts = min(splits, key=lambda p: max(cos(a, b) for a in p[0] for b in p[1]))
            after += [(sorted(p),mean([new[k] for k in p], [SIZES[k] for k in p])) for p in parts]
        clusters = after
        found = history[t]['clusters']
        assert sorted(p for p,_ in clusters) == sorted([k for k in range(K) if found[str(k)] == c] for c in set(found.values()))
    assert [0,2] in [p for p,_ in clusters] and len(clusters) >= 2
    for mine,w in clusters:
        for k in mine:
            got = s.store.layout.views(s.row_of(s.client_list[k]))
            for n,x in got.items(): torch.testing.assert_close(x, w[n], rtol=1e-6, atol=1e-8)

def test_cfl_compares_directions_and_the_longest_update(make_cfg, monkeypatch):
    """The short update points as the second does, though its inner product with the third is larger; the mean is short beside the longest,
    not beside the shortest."""
    s = get_server(make_cfg(name='cfl', num_clients=3), [{'train': pairs(k, 4), 'test': pairs(k, 2)} for k in range(3)], net(),
                   callbacks=[], criterion=torch.nn.MSELoss())
    monkeypatch.setattr(s, 'updates', lambda ids, t: [{'w': torch.tensor(u)} for u in ([.1,0.],[1.,.5],[2.,20.])])
    assert s.clusters([0,1,2], 0) == [0,0,1]
    s.args['eps'] = .3
    assert s.clusters([0,1,2], 0) == [0,0,0]
    s.lst_data_dict[0] = {**s.lst_data_dict[0], 'train': pairs(0, 32)}   # a mean weighted by examples is shorter
    assert s.clusters([0,1,2], 0) == [0,0,1]

def test_momentum_is_a_clusters(make_cfg):
    "FedAvgM within each cluster: its members share one model and its momentum."
    cfg = make_cfg(name='ifca', rounds=4, local_step=3, batch_size=4, optimizer='SGD', lr=.05, grad_clip=None, server_optimizer='momentum',
                   server_optimizer_args=dict(beta1=.5))
    s = get_server(cfg, TWO, net(), callbacks=[], criterion=torch.nn.MSELoss())
    history,models,m = s.fit(),{},{}
    for t in range(4):
        for c in (0,1):
            mine = [k for k in range(K) if history[t]['clusters'][str(k)] == c]
            if not mine: continue
            w = models.get(c, net().state_dict())
            y = mean([sgd(cfg, w, TWO[k]['train'], t, k) for k in mine], [SIZES[k] for k in mine])
            m[c] = {n: .5*m.get(c, {}).get(n, 0) + y[n] - w[n] for n in w}
            models[c] = {n: w[n] + m[c][n] for n in w}
    for k in range(K):
        got = s.store.layout.views(s.row_of(s.client_list[k]))
        for n,x in got.items(): torch.testing.assert_close(x, models[s.clusters([k])[0]][n], rtol=1e-6, atol=1e-8)

@given(st.integers(2, 7), st.integers(0, 10**6))
def test_bipartition_is_the_best_of_all(n, seed):
    "Against all splits, also where similarities are equal."
    S = np.random.default_rng(seed).integers(-4, 5, (n,n))/4
    S = (S + S.T)/2
    a,b = bipartition(S)
    across = lambda p, q: max(S[i,j] for i in p for j in q)
    assert a and b and sorted(a + b) == list(range(n)) and a[0] == 0
    best = min(across(p, [i for i in range(n) if i not in p]) for r in range(1, n) for p in combinations(range(n), r))
    assert across(a, b) == best

@pytest.mark.parametrize('name', ['ifca','cfl'])
def test_clusters_of_loras_resume_to_the_bit(make_cfg, name):
    cfg = make_cfg(name=name, rounds=3, lr=.02, server_optimizer='momentum', **(dict(m=.5) if name == 'ifca' else {}))
    s = get_server(cfg, client_data(4), callbacks=[])
    history,scores = s.fit(),s.test()
    for part in (1,2,3):
        again = get_server(cfg.replace(output_dir=cfg.output_dir + 'b', rounds=part), client_data(4), callbacks=[]); h = again.fit()
    assert json.dumps(h) == json.dumps(history) and again.test() == scores

@pytest.mark.parametrize('args,message', [(dict(name='cfl', m=.5), '`m`: expected 1 for cfl'),
                                          (dict(name='ifca', algorithm_args=dict(clusters=9)),
                                           '`algorithm_args: clusters`: expected from 1 to num_clients, 4, got 9'),
                                          (dict(name='ifca', algorithm_args=dict(clusters=1.5)),
                                           '`algorithm_args: clusters`: expected a whole number'),
                                          (dict(name='ifca', algorithm_args=dict(clusters=0)), 'from 1 to num_clients')])
def test_bad_settings_of_clusters(make_cfg, args, message):
    with pytest.raises(ConfigError, match=message): get_server(make_cfg(**args), client_data(4), callbacks=[])
