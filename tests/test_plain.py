"Modules that are no language models: traditional federated averaging on real digits."
import numpy as np, pytest, torch
from safetensors.torch import load_file
from sklearn.datasets import load_digits
from torch import nn
from fedai.config import ConfigError
from fedai.servers import BaseServer, Server_mira
from fedai.train.local import batch_indices
from fedai.utils import rng

X,Y = load_digits(return_X_y=True)
X = torch.tensor(X/16, dtype=torch.float32)

def digits(K, n=60, test=30):
    order = np.random.default_rng(0).permutation(len(X))
    pair = lambda idx: [(X[i], int(Y[i])) for i in idx]
    return [{'train': pair(order[k*100:k*100 + n - 10*k]), 'test': pair(order[k*100+60:k*100+60+test])} for k in range(K)]

def net(norm=False):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64,32), *([nn.BatchNorm1d(32)] if norm else []), nn.ReLU(), nn.Linear(32,10))

def test_fedavg_equals_a_plain_loop(make_cfg):
    "McMahan et al.'s algorithm 1, written out with torch alone."
    cfg = make_cfg(num_clients=4, m=.5, rounds=3, local_step=4, batch_size=8, optimizer='SGD', lr=.1, grad_clip=None)
    data = digits(4)
    s = BaseServer(cfg, data, net(), callbacks=[], criterion=nn.CrossEntropyLoss())
    s.fit()
    w = {n: p.detach().clone() for n,p in net().named_parameters()}
    for t,ids in enumerate(s.selection):
        new = {n: torch.zeros_like(p, dtype=torch.float64) for n,p in w.items()}
        total = sum(len(data[k]['train']) for k in ids)
        for k in ids:
            m,d = net(),data[k]['train']
            m.load_state_dict(w)
            opt = torch.optim.SGD(m.parameters(), lr=.1)
            for idx in batch_indices(len(d), 8, 4, rng(cfg.seed, 'batches', t, k)):
                opt.zero_grad()
                nn.functional.cross_entropy(m(torch.stack([d[i][0] for i in idx])), torch.tensor([d[i][1] for i in idx])).backward()
                opt.step()
            for n,p in m.named_parameters(): new[n] += p.detach().double()*len(d)/total
        w = {n: p.float() for n,p in new.items()}
    got = load_file(s.store.path(s.selection[-1][0])/'model.safetensors')
    for n in w: torch.testing.assert_close(got[n], w[n], atol=1e-6, rtol=1e-5)

def test_it_learns(make_cfg):
    cfg = make_cfg(num_clients=4, rounds=10, local_step=10, batch_size=16, optimizer='SGD', lr=.3)
    holdout = [(X[i], int(Y[i])) for i in range(1500, 1797)]
    s = BaseServer(cfg, digits(4), net(), holdout_ds=holdout, callbacks=[], criterion=nn.CrossEntropyLoss())
    h = s.fit()
    scores = s.test(baselines=True)
    assert np.mean([c['accuracy'] for c in scores.values()]) > .8 > .3 > s.scorecard['base']['mean']['accuracy']
    assert h[-1]['holdout_loss'] < .5*h[0]['holdout_loss']

@pytest.mark.parametrize('buffers', ['own','mean'])
def test_batchnorm_statistics(make_cfg, buffers):
    cfg = make_cfg(num_clients=3, rounds=2, buffers=buffers, keep_trained=True, keep_rounds=5)
    s = BaseServer(cfg, digits(3), net(norm=True), callbacks=[], criterion=nn.CrossEntropyLoss())
    s.fit()
    old,new = [[load_file(s.store.path(i, 2, kind)/'model.safetensors') for i in range(3)] for kind in ('trained','local_output')]
    w = np.array([len(d['train']) for d in s.lst_data_dict])/sum(len(d['train']) for d in s.lst_data_dict)
    for i in range(3):
        assert new[i]['1.num_batches_tracked'] == old[i]['1.num_batches_tracked'] == 2*cfg.local_step
        for n in ('1.running_mean','1.running_var'):
            want = old[i][n] if buffers == 'own' else sum(float(a)*o[n] for a,o in zip(w, old))
            torch.testing.assert_close(new[i][n], want)
        torch.testing.assert_close(new[i]['0.weight'], sum(float(a)*o['0.weight'] for a,o in zip(w, old)))
    s.send(s.client_list[2])
    torch.testing.assert_close(s.model[1].running_mean, new[2]['1.running_mean'], rtol=0, atol=0)

def test_send_takes_a_peft_model_and_a_plain_module_the_right_way(make_cfg):
    from conftest import client_data
    text = Server_mira(make_cfg(num_clients=2, rounds=1), client_data(2), callbacks=[])
    plain = Server_mira(make_cfg(num_clients=2, rounds=1), digits(2), net(), callbacks=[], criterion=nn.CrossEntropyLoss())
    for s,name in ((text,'adapter_model.safetensors'),(plain,'model.safetensors')):
        s.fit()
        others = {n: p.data_ptr() for n,p in s.model.named_parameters() if not p.requires_grad}
        for i in (0,1):
            s.send(s.client_list[i])
            saved = load_file(s.store.path(i)/name)
            assert saved.keys() == s.live.views.keys() and all(torch.equal(saved[n], s.live.views[n]) for n in saved)
        assert others == {n: p.data_ptr() for n,p in s.model.named_parameters() if not p.requires_grad}
    assert not (plain.store.path(0)/'adapter_config.json').exists() and (text.store.path(0)/'adapter_config.json').exists()
    assert all('lora' in n for n in text.live.views)
    assert set(plain.live.views) == {n for n,_ in net().named_parameters()}
    m = net()
    m.load_state_dict(load_file(plain.store.path(1)/'model.safetensors'))
    torch.testing.assert_close(m(X[:3]), plain.model.eval()(X[:3]))

def test_a_module_without_criterion_is_refused(make_cfg):
    with pytest.raises(ConfigError, match='`criterion`: expected a loss function'):
        BaseServer(make_cfg(num_clients=2), digits(2), net(), callbacks=[])
    m = net()
    m.criterion = nn.CrossEntropyLoss()
    assert BaseServer(make_cfg(num_clients=2), digits(2), m, callbacks=[]).task.criterion is m.criterion

def test_a_buffer_that_the_module_replaces_is_still_the_clients(make_cfg):
    class Running(nn.Module):
        def __init__(self):
            super().__init__()
            self.l = nn.Linear(64,10)
            self.register_buffer('mean', torch.zeros(64))
        def forward(self, x):
            if self.training: self.mean = .5*self.mean + .5*x.mean(0)
            return self.l(x - self.mean)
    s = BaseServer(make_cfg(num_clients=2, rounds=2), digits(2), Running(), callbacks=[], criterion=nn.CrossEntropyLoss())
    s.fit()
    a,b = s.store.load(0)['mean'],s.store.load(1)['mean']
    assert a.abs().sum() > 0 and not torch.equal(a, b)
    s.send(s.client_list[1])
    assert torch.equal(s.model.mean, b)

@pytest.mark.parametrize('engine', ['batched','sequential'])
def test_a_later_server_with_the_same_module_takes_nothing_from_the_first(make_cfg, engine):
    def run(model, **kw):
        cfg = make_cfg(num_clients=3, rounds=2, optimizer='SGD', engine=engine, **kw)
        s = Server_mira(cfg, digits(3), model, callbacks=[], criterion=nn.CrossEntropyLoss())
        s.fit()
        return s
    model = net(norm=True)
    first = run(model, lr=.05)
    want,rows = first.test(),[first.store.load_row(k) for k in range(3)]
    second = run(model, lr=.5)
    assert second.test() != want and first.test() == want
    first.send(first.client_list[0])
    stored = first.store.load(0)
    assert all(torch.equal(p, stored[n]) for n,p in model.named_parameters())
    again = run(net(norm=True), lr=.05)
    assert all(torch.equal(again.store.load_row(k), rows[k]) for k in range(3))
