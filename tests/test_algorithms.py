"Each algorithm against a plain program of its paper's formulas."
import json
import pytest, torch
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from conftest import client_data
from fedai.algorithms import get_server, import_user_code, list_algorithms
from fedai.cli import main
from fedai.config import ConfigError
from fedai.data import train_batch
from fedai.models import get_model
from fedai.training import batch_indices
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

CASES = {'local': lambda c,s,_: plain_local(c, s), 'fedavg': lambda c,s,_: plain_fedavg(c, s), 'fedavg_ft': lambda c,s,_: plain_fedavg(c, s, None, True),
         'fedprox': lambda c,s,_: plain_fedavg(c, s, lambda sent: lambda n,w: .3*(w - sent[n])), 'ditto': lambda c,s,_: plain_ditto(c, s), 'fedu': plain_fedu, 'mira': plain_fedu}

@pytest.mark.parametrize('engine', ['batched','sequential'])
@pytest.mark.parametrize('name', CASES)
def test_modules_against_the_papers_formulas(make_cfg, name, engine):
    "Three rounds of two of four clients with different numbers of examples; what each client is tested with at the end."
    args = {'fedprox': dict(mu=.3), 'ditto': dict(lam=.3)}.get(name, {})
    cfg = make_cfg(name=name, algorithm_args=args, engine=engine, clients_per_batch=3, m=.5, rounds=3, local_step=3, batch_size=4, optimizer='SGD', lr=.1, lambda_=.2, grad_clip=None)
    s = get_server(cfg, DATA, net(), callbacks=[], criterion=torch.nn.MSELoss())
    s.fit()
    want = CASES[name](cfg, s.selection, s.alk_connection)
    assert len(s.selection) == 3 and (name == 'fedavg_ft') == (len(s.selection[-1]) == K)
    for k in range(K):
        got = s.store.layout.views(s.test_row(s.client_list[k]).clone())
        for n,t in got.items(): assert torch.allclose(t, want[k][n], rtol=1e-6, atol=1e-7), (k, n)   # mixing is in float64 for float64 rows
    again = get_server(cfg, DATA, net(), callbacks=[], criterion=torch.nn.MSELoss())
    assert again.fit() == s.history

def lora_steps(cfg, state, items, t, id, names):
    "SGD on some of a LoRA's tensors, by peft and transformers alone."
    model = get_model(cfg).eval()
    set_peft_model_state_dict(model, state)
    live = {n.replace('.default', ''): p for n,p in model.named_parameters() if p.requires_grad}
    for idx in batch_indices(len(items), min(cfg.batch_size, len(items)), cfg.local_step, rng(cfg.seed, 'batches', t, id)):
        model.zero_grad()
        model(**train_batch([items[i] for i in idx], 0)).loss.backward()
        torch.nn.utils.clip_grad_norm_([live[n] for n in names], cfg.grad_clip)   # of what is trained
        with torch.no_grad():
            for n in names: live[n] -= cfg.lr*live[n].grad
    return {n: p.clone() for n,p in get_peft_model_state_dict(model).items()}

@pytest.mark.parametrize('engine', ['batched','sequential'])
@pytest.mark.parametrize('name', ['ffa','fedsa','rolora'])
def test_loras_factors_against_the_papers(make_cfg, name, engine):
    cfg = make_cfg(name=name, engine=engine, m=.5, rounds=3, local_step=2, batch_size=3, optimizer='SGD', lr=2., grad_clip=.02, optimizer_args=dict(weight_decay=0.))
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

def test_factors_need_a_lora(make_cfg):
    for name in ('ffa','fedsa','rolora'):
        with pytest.raises(ConfigError, match='`name`: expected an algorithm for models without a LoRA'): get_server(make_cfg(name=name), DATA, net(), callbacks=[], criterion=torch.nn.MSELoss())

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
    with pytest.raises(ConfigError, match='`rounds`: expected 2, as in the run in'): get_server(cfg.replace(rounds=3), client_data(4), callbacks=[])

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
    assert rows['half'] == dict(name='half', paper='a test', about='Half of each, half of the mean.', settings={'share': [.5, 'of the mean']})
    assert {'local','fedavg','fedavg_ft','fedprox','ditto','fedu','mira','ffa','fedsa','rolora'} <= rows.keys() and all(o['about'] and o['paper'] for o in rows.values())
    with pytest.raises(ConfigError, match='`imports`: expected existing Python files'): import_user_code(['nothing.py'])
    with pytest.raises(ConfigError, match='`imports`: expected Python files or modules'): import_user_code(['no_such_module'])

@pytest.mark.parametrize('args,message', [(dict(algorithm_args={'lambda': 1}), 'settings of mira, which has none'), (dict(name='fedprox', algorithm_args={'mu': -1}), '`algorithm_args: mu`: expected a number of at least 0, got -1'),
                                          (dict(name='ditto', algorithm_args={'lam': 'x'}), '`algorithm_args: lam`'), (dict(name='fedu'), "`optimizer`: expected 'SGD' for fedu"), (dict(name='Mira'), "did you mean 'mira'")])
def test_bad_settings(make_cfg, args, message):
    with pytest.raises(ConfigError, match=message): get_server(make_cfg(**args), client_data(4), callbacks=[])
