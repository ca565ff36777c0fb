"Each algorithm against a plain program of its paper's formulas."
import json
import pytest, torch
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file
from conftest import client_data
from fedai.algorithms import get_server, import_user_code
from fedai.cli import main
from fedai.config import ConfigError
from fedai.data.prompts import train_batch
from fedai.models import get_model
from fedai.train.local import batch_indices
from fedai.utils import rng

K,SIZES = 4,[6,9,12,5]
def net():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1)).double()

def pairs(k, n):
    g = torch.Generator().manual_seed(k)
    x = torch.randn(n, 3, generator=g, dtype=torch.float64)
    return [(a, (a*torch.tensor([1.,k,-1.])).sum()[None].sin()) for a in x]

DATA = [{'train': pairs(k, n), 'test': pairs(k+10, 4)} for k,n in enumerate(SIZES)]

def sgd(cfg, w, items, t, id, grad_of_term=None):
    "`local_step` steps of plain gradient descent from `w`, float64; `id` keys the batches."
    model = net()
    w = {n: p.clone() for n,p in w.items()}
    for idx in batch_indices(len(items), min(cfg.batch_size, len(items)), cfg.local_step, rng(cfg.seed, 'batches', t, id)):
        model.load_state_dict(w)
        model.zero_grad()
        x,y = torch.stack([items[i][0] for i in idx]),torch.stack([items[i][1] for i in idx])
        ((model(x) - y)**2).mean().backward()
        for n,p in model.named_parameters(): w[n] = w[n] - cfg.lr*(p.grad + (grad_of_term(n, w[n]) if grad_of_term else 0))
    return w

def mean(ws, sizes): return {n: sum(s*w[n] for w,s in zip(ws, sizes))/sum(sizes) for n in ws[0]}

def plain_fedavg(cfg, selection, term=None, last_local=False):
    w = net().state_dict()
    for t,ids in enumerate(selection):
        new = [sgd(cfg, w, DATA[k]['train'], t, k, term(w) if term else None) for k in ids]
        if last_local and t == len(selection)-1: return new
        w = mean(new, [SIZES[k] for k in ids])
    return [w]*K

def plain_local(cfg, selection):
    ws = [net().state_dict() for _ in range(K)]
    for t,ids in enumerate(selection):
        for k in ids: ws[k] = sgd(cfg, ws[k], DATA[k]['train'], t, k)
    return ws

def plain_ditto(cfg, selection, lam=.3):
    w,vs = net().state_dict(),[net().state_dict() for _ in range(K)]
    for t,ids in enumerate(selection):
        for k in ids: vs[k] = sgd(cfg, vs[k], DATA[k]['train'], t, K+k, lambda n,v: lam*(v - w[n]))
        w = mean([sgd(cfg, w, DATA[k]['train'], t, k) for k in ids], [SIZES[k] for k in ids])
    return vs

def plain_fedu(cfg, selection, A):
    "W_k <- W_k - ηλ Σ_l a_kl (W_k - W_l), over the round's clients."
    ws,eta = [net().state_dict() for _ in range(K)],cfg.lr*cfg.local_step
    for t,ids in enumerate(selection):
        new = {k: sgd(cfg, ws[k], DATA[k]['train'], t, k) for k in ids}
        for k in ids: ws[k] = {n: new[k][n] - eta*cfg.lambda_*sum(A[k,l]*(new[k][n] - new[l][n]) for l in ids) for n in new[k]}
    return ws

def stepped(kind, sent, mixed, state, eta, b1, b2=None, tau=None):
    "FedAvgM, and Algorithm 2 of Reddi et al., on one tensor; `state` is (m, v) and changed."
    d = mixed - sent
    if kind == 'momentum':
        state[0] = b1*state[0] + d
        return sent + eta*state[0]
    m,v = state
    m = b1*m + (1 - b1)*d
    if kind == 'adagrad': v = v + d**2
    if kind == 'yogi': v = v - (1 - b2)*d**2*torch.sign(v - d**2)
    if kind == 'adam': v = b2*v + (1 - b2)*d**2
    state[:] = m,v
    return sent + eta*m/(torch.sqrt(v) + tau)

def moments(tau): return {n: [torch.zeros_like(w), torch.full_like(w, (tau or 0)**2)] for n,w in net().state_dict().items()}

def plain_server_fedavg(cfg, selection, kind, eta, args):
    w,state = net().state_dict(),moments(args.get('tau'))
    for t,ids in enumerate(selection):
        y = mean([sgd(cfg, w, DATA[k]['train'], t, k) for k in ids], [SIZES[k] for k in ids])
        w = {n: stepped(kind, w[n], y[n], state[n], eta, *args.values()) for n in w}
    return [w]*K

def plain_server_mira(cfg, selection, A, kind, eta, args):
    "Every client has moments of its own, which stand still where it takes no part."
    ws,states,pull = [net().state_dict() for _ in range(K)],[moments(args.get('tau')) for _ in range(K)],cfg.lr*cfg.local_step*cfg.lambda_
    for t,ids in enumerate(selection):
        new = {k: sgd(cfg, ws[k], DATA[k]['train'], t, k) for k in ids}
        y = {k: {n: new[k][n] - pull*sum(A[k,l]*(new[k][n] - new[l][n]) for l in ids) for n in new[k]} for k in ids}
        for k in ids: ws[k] = {n: stepped(kind, ws[k][n], y[k][n], states[k][n], eta, *args.values()) for n in ws[k]}
    return ws

CASES = {'local': lambda c,s,_: plain_local(c, s), 'fedavg': lambda c,s,_: plain_fedavg(c, s),
         'fedavg_ft': lambda c,s,_: plain_fedavg(c, s, None, True),
         'fedprox': lambda c,s,_: plain_fedavg(c, s, lambda sent: lambda n,w: .3*(w - sent[n])), 'ditto': lambda c,s,_: plain_ditto(c, s),
         'fedu': plain_fedu, 'mira': plain_fedu}

@pytest.mark.parametrize('engine', ['batched','sequential'])
@pytest.mark.parametrize('name', CASES)
def test_modules_against_the_papers_formulas(make_cfg, name, engine):
    "Three rounds of two of four clients with different numbers of examples; what each client is tested with at the end."
    args = {'fedprox': dict(mu=.3), 'ditto': dict(lam=.3)}.get(name, {})
    cfg = make_cfg(name=name, algorithm_args=args, engine=engine, clients_per_batch=3, m=.5, rounds=3, local_step=3, batch_size=4,
                   optimizer='SGD', lr=.1, lambda_=.2, grad_clip=None)
    s = get_server(cfg, DATA, net(), callbacks=[], criterion=torch.nn.MSELoss())
    s.fit()
    want = CASES[name](cfg, s.selection, s.alk_connection)
    assert len(s.selection) == 3 and (name == 'fedavg_ft') == (len(s.selection[-1]) == K)
    for k in range(K):
        got = s.store.layout.views(s.test_row(s.client_list[k]).clone())
        for n,t in got.items(): assert torch.allclose(t, want[k][n], rtol=1e-6, atol=1e-7), (k, n)   # mixing is in float64 for float64 rows
    again = get_server(cfg, DATA, net(), callbacks=[], criterion=torch.nn.MSELoss())
    assert again.fit() == s.history

SERVER = [('momentum', 1., {}, dict(b1=.9)), ('momentum', .7, dict(beta1=.5), dict(b1=.5)),
          ('adagrad', .01, {}, dict(b1=.9, b2=None, tau=1e-3)), ('yogi', .01, {}, dict(b1=.9, b2=.99, tau=1e-3)),
          ('adam', .01, {}, dict(b1=.9, b2=.99, tau=1e-3)), ('adam', .05, dict(beta1=0, beta2=.6, tau=.02), dict(b1=0, b2=.6, tau=.02)),
          ('yogi', .05, dict(beta2=.5, tau=.3), dict(b1=.9, b2=.5, tau=.3))]

@pytest.mark.parametrize('name', ['fedavg','mira'])
@pytest.mark.parametrize('kind,eta,given,args', SERVER, ids=lambda o: str(o))
def test_server_optimisers_against_the_papers_formulas(make_cfg, name, kind, eta, given, args):
    "Four rounds of two of four clients; a learning rate that is the default isn't given."
    cfg = make_cfg(name=name, m=.5, rounds=4, local_step=3, batch_size=4, optimizer='SGD', lr=.1, lambda_=.2, grad_clip=None, keep_rounds=1,
                   server_optimizer=kind, server_lr=eta if given else None, server_optimizer_args=given)
    s = get_server(cfg, DATA, net(), callbacks=[], criterion=torch.nn.MSELoss())
    s.fit()
    want = plain_server_fedavg(cfg, s.selection, kind, eta, args) if name == 'fedavg' else plain_server_mira(cfg, s.selection,
        s.alk_connection, kind, eta, args)
    for k in range(K):
        got = s.store.layout.views(s.test_row(s.client_list[k]).clone())
        for n,t in got.items(): assert torch.allclose(t, want[k][n], rtol=1e-9, atol=1e-11), (k, n)
    assert s.store.check() == [] and set(s.store.kept_in) == ({'moments'} if name == 'fedavg'
                                                              else {f'moments_{k}' for k in set(sum(s.selection, []))})
    assert get_server(cfg, DATA, net(), callbacks=[], criterion=torch.nn.MSELoss()).fit() == s.history

@pytest.mark.parametrize('name', [n for n in CASES])
def test_momentum_of_nothing_is_no_server_optimiser(make_cfg, name):
    rows = []
    for kw in ({}, dict(server_optimizer='momentum', server_optimizer_args={'beta1': 0})):
        cfg = make_cfg(name=name, m=.5, rounds=3, local_step=3, batch_size=4, optimizer='SGD', lr=.1, lambda_=.2, **kw)
        s = get_server(cfg, DATA, net(), callbacks=[], criterion=torch.nn.MSELoss())
        s.fit()
        rows.append([s.test_row(c).clone().view(torch.float64) for c in s.client_list])
    for a,b in zip(*rows): assert torch.allclose(a, b, rtol=1e-9, atol=1e-12)

def test_ditto_steps_its_shared_rows_and_fedavg_ft_none_at_the_end(make_cfg):
    kw = dict(m=.5, rounds=3, local_step=3, batch_size=4, optimizer='SGD', lr=.1, grad_clip=None, server_optimizer='momentum',
              keep_rounds=9)
    def run(name):
        s = get_server(make_cfg(name=name, algorithm_args={'lam': .3} if name == 'ditto' else {}, **kw), DATA, net(), callbacks=[],
                       criterion=torch.nn.MSELoss())
        s.fit()
        return s
    avg,ditto,ft = map(run, ('fedavg','ditto','fedavg_ft'))
    assert torch.equal(avg.store.load_row(avg.selection[-1][0]),
                       ditto.store.load_row(ditto.selection[-1][0])) and set(ditto.store.kept_in) == {'moments'}
    ws,vs = [ditto.store.layout.views(ditto.store.load_row(ditto.selection[t-1][0], t) if t else ditto.store.load_row(0, 0))
             for t in range(3)],[net().state_dict() for _ in range(K)]
    for t,ids in enumerate(ditto.selection):
        for k in ids: vs[k] = sgd(ditto.cfg, vs[k], DATA[k]['train'], t, K+k, lambda n,v: .3*(v - ws[t][n]))
    for k in range(K):
        for n,v in ditto.store.layout.views(ditto.test_row(ditto.client_list[k])).items():
            assert torch.allclose(v, vs[k][n], rtol=1e-6, atol=1e-9), (k, n)
    assert set(ft.store.kept_in) == {'moments'} and ft.store.kept_in['moments'][0] == 2
    sent = ft.store.layout.views(ft.store.load_row(ft.selection[1][0], 2))
    for k in range(K):
        for n,v in sgd(ft.cfg, sent, DATA[k]['train'], 2, k).items(): assert torch.allclose(ft.store.load(k)[n], v, rtol=1e-9, atol=1e-12)

def lora_steps(cfg, state, items, t, id, names=None, change=None):
    "SGD on a LoRA, or on some of its tensors, over a base model with `change` added to its weights, by peft and transformers alone."
    model = get_model(cfg).eval()
    with torch.no_grad():
        for n,p in model.named_parameters():
            if (name := n.removeprefix('base_model.model.').replace('.base_layer.', '.')) in (change or {}): p += change[name]
    set_peft_model_state_dict(model, state)
    live = {n.replace('.default', ''): p for n,p in model.named_parameters() if p.requires_grad}
    names = live if names is None else names
    for idx in batch_indices(len(items), min(cfg.batch_size, len(items)), cfg.local_step, rng(cfg.seed, 'batches', t, id)):
        model.zero_grad()
        model(**train_batch([items[i] for i in idx], 0)).loss.backward()
        if cfg.grad_clip: torch.nn.utils.clip_grad_norm_([live[n] for n in names], cfg.grad_clip)   # of what is trained
        with torch.no_grad():
            for n in names: live[n] -= cfg.lr*live[n].grad
    return {n: p.clone() for n,p in get_peft_model_state_dict(model).items()}

@pytest.mark.parametrize('engine', ['batched','sequential'])
@pytest.mark.parametrize('name', ['ffa','fedsa','rolora'])
def test_loras_factors_against_the_papers(make_cfg, name, engine):
    cfg = make_cfg(name=name, engine=engine, m=.5, rounds=3, local_step=2, batch_size=3, optimizer='SGD', lr=2., grad_clip=.02,
                   optimizer_args=dict(weight_decay=0.))
    s = get_server(cfg, client_data(4), callbacks=[])
    start = {n: t.clone() for n,t in s.live.state().items()}
    s.fit()
    A,B = ({n for n in start if f'lora_{X}' in n} for X in 'AB')
    items = [s.client_list[k].train_data.items for k in range(4)]
    shared,own = start,[{n: start[n] for n in B} for _ in range(4)]
    for t,ids in enumerate(s.selection):
        names = {'ffa': B, 'fedsa': A | B, 'rolora': B if t % 2 == 0 else A}[name]
        new = [lora_steps(cfg, {**shared, **(own[k] if name == 'fedsa' else {})}, items[k], t, k, names) for k in ids]
        for k,w in zip(ids, new): own[k] = {n: w[n] for n in B}
        shared = {n: sum(w[n] for w in new)/len(new) for n in start}   # all have twelve examples
    for k in range(4):
        got,want = s.store.layout.views(s.row_of(s.client_list[k])),{**shared, **(own[k] if name == 'fedsa' else {})}
        moved = max((want[n] - start[n]).abs().max() for n in start)
        for n in start: assert (got[n] - want[n]).abs().max() <= 2e-3*moved, (k, n)
        if name == 'ffa': assert all(torch.equal(got[n], start[n]) for n in A)

@pytest.mark.parametrize('name', ['fedsa','ffa','rolora'])
def test_a_server_step_on_loras_factors(make_cfg, name):
    "fedsa: only A is stepped, and every client keeps the B that it trained. rolora and ffa: only the factor of the round."
    cfg = make_cfg(name=name, m=.75, rounds=3, lr=.05, server_optimizer='momentum', keep_trained=True, keep_rounds=9)
    s = get_server(cfg, client_data(4), callbacks=[])
    s.fit()
    A,B = ({n for n in s.live.tensors if f'lora_{X}' in n} for X in 'AB')
    w,m = {n: t.clone() for n,t in s.store.layout.views(s.store.load_row(0, 0)).items()},{n: torch.zeros_like(t)
        for n,t in s.live.state().items()}
    for t,ids in enumerate(s.selection):
        trained = {i: load_file(s.store.path(i, t+1, 'trained')/'adapter_model.safetensors') for i in ids}
        names = {'fedsa': A, 'ffa': B, 'rolora': B if t % 2 == 0 else A}[name]
        for n in names:
            m[n] = .9*m[n] + sum(o[n] for o in trained.values())/len(ids) - w[n]
            w[n] = w[n] + m[n]
        for i in ids:
            new = load_file(s.store.path(i, t+1)/'adapter_model.safetensors')
            for n in new:
                if n in B and name == 'fedsa': assert torch.equal(new[n], trained[i][n])
                else: assert torch.allclose(new[n], w[n], rtol=1e-5, atol=1e-7)   # an average of equal ones
    assert {n.removeprefix('m.') for n in s.store.kept('moments')} == {'fedsa': A, 'ffa': B,
        'rolora': A | B}[name] and s.store.check() == []

def test_buffers_and_half_precision_under_a_server_step(make_cfg):
    "BatchNorm's statistics are mixed and not stepped; rows in bfloat16 have moments in float32."
    torch.manual_seed(0)
    bn = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 1)).double()
    cfg = make_cfg(name='fedavg', rounds=2, lr=.05, buffers='mean', server_optimizer='adam', server_lr=1., keep_trained=True)
    s = get_server(cfg, DATA, bn, callbacks=[], criterion=torch.nn.MSELoss())
    s.fit()
    n,w = '1.running_var',[x/sum(SIZES) for x in SIZES]
    old = [load_file(s.store.path(i, 2, 'trained')/'model.safetensors')[n] for i in range(4)]
    assert torch.allclose(s.store.load(0)[n], sum(x*o for x,o in zip(w, old)))
    assert 'm.'+n not in s.store.kept('moments') and 'm.0.weight' in s.store.kept('moments')
    data = [{k: [(x.bfloat16(), y.bfloat16()) for x,y in v] for k,v in d.items()} for d in DATA]
    s = get_server(make_cfg(name='mira', rounds=1, lr=.05, server_optimizer='adam'), data, net().bfloat16(), callbacks=[],
                   criterion=torch.nn.MSELoss())
    s.fit()
    assert {t.dtype for t in s.store.kept('moments_0').values()} == {torch.float32} and {t.dtype
        for t in s.store.load(0).values()} == {torch.bfloat16}

def test_factors_need_a_lora(make_cfg):
    for name in ('ffa','fedsa','rolora'):
        with pytest.raises(ConfigError, match='`name`: expected an algorithm for models without a LoRA'):
            get_server(make_cfg(name=name), DATA, net(), callbacks=[], criterion=torch.nn.MSELoss())

def test_a_newcomer_gets_no_ones_own_part(make_cfg):
    "With fedsa a client that never took part has the shared A, and the B of the common start."
    cfg = make_cfg(name='fedsa', m=.25, rounds=1, lr=.1)
    s = get_server(cfg, client_data(4), callbacks=[])
    s.fit()
    start = s.store.layout.views(s.store.load_row(0, 0))
    for k in set(range(4)) - set(s.selection[0]):
        got = s.store.layout.views(s.row_of(s.client_list[k]))
        assert all(torch.equal(got[n], start[n]) == ('lora_B' in n) for n in got)

def test_fedavg_ft_cant_be_lengthened(make_cfg):
    cfg = make_cfg(name='fedavg_ft')
    get_server(cfg, client_data(4), callbacks=[]).fit()
    with pytest.raises(ConfigError, match='`rounds`: expected 2, as in the run in'):
        get_server(cfg.replace(rounds=3), client_data(4), callbacks=[])

def test_another_algorithm_is_another_run(make_cfg):
    cfg = make_cfg(rounds=1)
    get_server(cfg, client_data(4), callbacks=[]).fit()
    with pytest.raises(ConfigError, match="`name`: expected 'mira'"): get_server(cfg.replace(name='local'), client_data(4), callbacks=[])

MINE = """
import numpy as np
from fedai.servers import BaseServer
class Server_half(BaseServer, name='half', paper='a test'):
    "Half of each, half of the mean."
    one_model,settings = False,{'share': (.5, 'of the mean')}
    def mixing_matrix(self, ids, comm_round):
        a = self.args['share']
        return (1-a)*np.eye(len(ids)) + a*super().mixing_matrix(ids, comm_round)
"""

def test_ones_own_algorithm_in_config_and_command_line(make_cfg, tmp_path, capsys):
    f = tmp_path/'mine.py'
    f.write_text(MINE)
    cfg = make_cfg(name='half', imports=[str(f)], algorithm_args={'share': .2})
    assert get_server(cfg, client_data(4), callbacks=[]).fit()[0]['pull']['mean'] == pytest.approx(.15)
    assert main(['algorithms', '--json', '--imports', str(f)]) == 0
    rows = {o['name']: o for o in json.loads(capsys.readouterr().out)}
    assert rows['half'] == dict(name='half', paper='a test', about='Half of each, half of the mean.',
                                settings={'share': [.5, 'of the mean']})
    assert {'local','fedavg','fedavg_ft','fedprox','ditto','fedu','mira','ffa','fedsa',
            'rolora'} <= rows.keys() and all(o['about'] and o['paper'] for o in rows.values())
    with pytest.raises(ConfigError, match='`imports`: expected existing Python files'): import_user_code(['nothing.py'])
    with pytest.raises(ConfigError, match='`imports`: expected Python files or modules'): import_user_code(['no_such_module'])

@pytest.mark.parametrize('args,message', [(dict(algorithm_args={'lambda': 1}), 'settings of mira, which has none'),
                                          (dict(name='fedprox', algorithm_args={'mu': -1}),
                                           '`algorithm_args: mu`: expected a number of at least 0, got -1'),
                                          (dict(name='ditto', algorithm_args={'lam': 'x'}), '`algorithm_args: lam`'),
                                          (dict(name='fedu'), "`optimizer`: expected 'SGD' for fedu"),
                                          (dict(name='Mira'), "did you mean 'mira'"),
                                          (dict(name='fedavg', server_optimizer='adam', space='product'),
                                           "`server_optimizer`: expected 'none' with `space: product`")])
def test_bad_settings(make_cfg, args, message):
    with pytest.raises(ConfigError, match=message): get_server(make_cfg(**args), client_data(4), callbacks=[])
