"Clients that train by a server's double, which went through pickle, and clients that are lost on the way."
import pickle
from pathlib import Path
import pytest, torch
from torch import nn
from conftest import client_data, sums
from test_plain import digits, net
from fedai.algorithms import get_server
from fedai.hooks import algorithm_classes
from fedai.config import ConfigError
from fedai.engines import Failure, Reply, SequentialEngine, engines, get_engine
from fedai.models import get_base_model
from fedai.remote.replica import Recipe, as_row, for_all, for_group, train_there
from fedai.servers import RoundFailed, Server_mira
from fedai.evaluate.tracking import Progress

class Away(SequentialEngine):
    "Everything through bytes, as it would go to another process; the last group first."
    def __init__(self, server):
        self.server,self.inner,self.double = server,get_engine(server, 'auto'),None
    def groups(self, ids): return self.inner.groups(ids)
    def train(self, groups, t):
        if self.double is None: self.double = pickle.loads(pickle.dumps(Recipe(self.server)))()
        for ids in groups[::-1]:
            sent = pickle.dumps((for_all(self.server), for_group(self.server, ids), ids))
            for i,row,m in pickle.loads(pickle.dumps(train_there(self.double, *pickle.loads(sent)))):
                yield Reply(i, self.server.store.layout.views(as_row(row)), m)
    def test(self, pairs, scores=True): return self.inner.test(pairs, scores)

@pytest.fixture
def away(monkeypatch):
    def use(cls):
        monkeypatch.setitem(engines, 'ray', cls)
        return 'ray'
    return use

def same_run(a, b):
    assert a.history == b.history
    for i in a.store.latest: assert torch.equal(a.store.load_row(i), b.store.load_row(i)), i
    assert a.store.latest == b.store.latest

settings = {**{n: {} for n in sorted(algorithm_classes)
               if n in ('cfl','ditto','fedavg','fedex','fedprox','fedsa','ffa','flora','ifca','local','mira','rolora')},
            'fedu': dict(optimizer='SGD'),
            'hetlora': dict(ranks=[1,2,3,4]), 'mira, ranks': dict(ranks=[1,2,3,4]), 'mira, product': dict(space='product'),
            'mira, one by one': dict(clients_per_batch=1), 'mira, dropout': dict(lora_dropout=.3),
            'fedavg, momentum': dict(server_optimizer='momentum'), 'mira, learned': dict(graph='learned'),
            'mira, by loss': dict(selection='power_of_choice', m=.5)}

@pytest.mark.parametrize('name', settings)
def test_the_same_bits_as_at_home(make_cfg, away, name):
    runs = []
    for engine in ('auto', away(Away)):
        cfg = make_cfg(name=name.split(',')[0], engine=engine, rounds=3, **{'clients_per_batch': 2, **settings[name]})
        runs.append(get_server(cfg, client_data(4), callbacks=[]))
        runs[-1].fit()
    same_run(*runs)

@pytest.mark.parametrize('given', ['peft','transformers','plain'])
def test_a_model_that_was_given(make_cfg, away, given):
    runs = []
    for engine in ('sequential', away(Away)):
        cfg = make_cfg(engine=engine, num_clients=3, clients_per_batch=1,
                       **(dict(optimizer='SGD', lr=.1, buffers='own') if given == 'plain' else {}))
        if given == 'plain': s = Server_mira(cfg, digits(3), net(norm=True), callbacks=[], criterion=nn.CrossEntropyLoss())
        else:
            from fedai.models import add_lora, get_tokenizer
            base = get_base_model(cfg)
            s = Server_mira(cfg, client_data(3), base if given == 'transformers' else add_lora(base, cfg, get_tokenizer(cfg)), callbacks=[])
        s.engine.inner = get_engine(s, 'sequential')
        s.fit()
        runs.append(s)
    if given == 'plain':   # at home one by one, there in one batch
        for i in range(3):
            assert torch.allclose(runs[0].store.load_row(i).view(torch.float32)[:2000],
                                  runs[1].store.load_row(i).view(torch.float32)[:2000], atol=1e-5)
    else: same_run(*runs)

def losing(who):
    "An engine that loses these clients in these rounds: round -> ids."
    class Losing(Away):
        def train(self, groups, t):
            for r in super().train(groups, t): yield Failure(r.id, 'struck by lightning') if r.id in who.get(t, ()) else r
    return Losing

def test_a_round_goes_on_without_those_who_are_lost(make_cfg, away, capsys):
    cfg = make_cfg(engine=away(losing({1: [2], 2: [0,1]})), clients_per_batch=1, rounds=4, keep_rounds=9, keep_trained=True, name='fedavg')
    s = get_server(cfg, client_data(4), callbacks=[Progress()])
    h = s.fit()
    assert [r['selected'] for r in h] == [[0,1,2,3],[0,1,3],[2,3],[0,1,2,3]] and [r.get('failed') for r in h] == [None,
        {'2': 'struck by lightning'}, {i: 'struck by lightning' for i in '01'}, None]
    assert 'client 2 is left out of round 2: struck by lightning' in capsys.readouterr().out
    from safetensors.torch import load_file
    for t,ids in ((1,[0,1,3]), (2,[2,3])):   # the mean of those who are there
        f = Path(cfg.output_dir)/str(t+1)
        assert sorted(o.name for o in f.glob('trained_*')) == [f'trained_{i}' for i in ids]
        old = [load_file(f/f'trained_{i}'/'adapter_model.safetensors') for i in ids]
        new = load_file(f/f'local_output_{ids[0]}'/'adapter_model.safetensors')
        for n in new: assert (new[n].double() - sum(o[n].double() for o in old)/len(ids)).abs().max() < 1e-7
    assert s.store.check() == []

@pytest.mark.parametrize('name', ['ditto','fedex','ifca','cfl','mira','flora'])
def test_every_algorithm_can_do_without_one(make_cfg, away, name):
    s = get_server(make_cfg(engine=away(losing({0: [1], 1: [3,4+0]})), clients_per_batch=1, rounds=3, name=name), client_data(4),
                   callbacks=[])
    h = s.fit()
    # ditto's personal row of client 0 is lost, and so client 0 is
    assert [r['selected'] for r in h] == [[0,2,3], [1,2] if name == 'ditto' else [0,1,2], [0,1,2,3]]
    assert s.store.check() == [] and len(s.test()) == 4

def test_too_few_stop_the_run_and_nothing_is_lost(make_cfg, away):
    data,whole = client_data(4),get_server(make_cfg(clients_per_batch=1, rounds=3), client_data(4), callbacks=[])
    whole.fit()
    cfg = make_cfg(engine=away(losing({1: [2,3]})), clients_per_batch=1, rounds=3, min_clients=3)
    s = get_server(cfg, data, callbacks=[])
    why = 'round 2: 2 of 4 clients replied, fewer than `min_clients`, 3: client 2: struck by lightning; client 3'
    with pytest.raises(RoundFailed, match=why):
        s.fit()
    assert s.store.round == 1 and sorted(s.store.trained(2)) == [0,1]
    trained = []
    class Counting(Away):
        def train(self, groups, t):
            trained.extend((t,i) for g in groups for i in g)
            return super().train(groups, t)
    s = get_server(cfg.replace(engine=away(Counting)), data, callbacks=[])
    s.fit()
    assert trained[:2] == [(1,2),(1,3)] and len(trained) == 6   # what was trained isn't trained again
    same_run(whole, s)

def test_changed_data_is_refused_elsewhere_too(make_cfg, away):
    cfg = make_cfg(engine=away(Away), rounds=1)
    get_server(cfg, client_data(4), callbacks=[]).fit()
    changed = client_data(4)
    changed[2]['train'] = sums(9)
    with pytest.raises(ConfigError, match=r"`lst_data_dict\[2\]\['train'\]`: expected the data of the run in"):
        get_server(cfg.replace(rounds=2), changed, callbacks=[]).fit()
