"What a plan says, beside what peft counts and what real runs leave and report."
import contextlib, io, json, tempfile, time, tracemalloc
from pathlib import Path
import pytest, torch
from fedai.algorithms import get_server
from fedai.cli import main
from fedai.config import ConfigError
from fedai.study.plan import estimate, facts, make_plan, plan_table
from conftest import client_data

def blocks(folder): return {p.stat().st_ino: p.stat().st_blocks*512 for p in [folder, *folder.rglob('*')]}

def inodes(folder):
    rounds = [r for r in folder.iterdir() if r.name.isdecimal() and r.name != '0']
    return len({o.stat().st_ino for r in rounds for o in r.rglob('*') if o.parent != r or o.is_dir()})

def said(*argv):
    out,err = io.StringIO(),io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try: code = main(argv)
        except SystemExit as e: code = e.code
    return code,out.getvalue(),err.getvalue()

MODELS = [dict(), dict(target_modules=['q_proj','k_proj','v_proj','o_proj'], r=3), dict(adapt_layers='last:1'),
          dict(target_modules=['down_proj'], add_tokens=['<a>'])]

@pytest.mark.parametrize('more', MODELS, ids=str)
def test_parameters_are_those_that_peft_counts(make_cfg, more):
    from fedai.models import get_model
    cfg = make_cfg(**more)
    p = make_plan(cfg, client_data(4), measure=False)['parameters']
    assert (p['trained'], p['base'] + p['trained']) == get_model(cfg).get_nb_trainable_parameters()

def test_what_is_trained_is_what_the_algorithm_trains(make_cfg):
    a,b = (make_plan(make_cfg(name=n), client_data(4), measure=False) for n in ('fedavg','ffa'))
    model = get_server(make_cfg(), client_data(4), callbacks=[]).live
    assert a['parameters']['trained'] == sum(t.numel() for t in model.tensors.values())
    assert b['parameters']['trained'] == sum(t.numel() for n,t in model.tensors.items() if 'lora_B' in n)
    assert a['client']['bytes'] == b['client']['bytes']

RUNS = [dict(name='local'), dict(name='local', keep_trained=True),
        dict(name='fedavg'), dict(name='fedavg', server_optimizer='adam'), dict(name='fedavg', space='product'),
        dict(name='mira', graph='complete', m=.5, rounds=5), dict(name='mira', graph='learned', rounds=3),
        dict(name='mira', graph='complete', server_optimizer='momentum', rounds=3),
        dict(name='ditto', m=.5, rounds=4), dict(name='fedavg_ft', m=.5, rounds=4), dict(name='fedsa', keep_rounds=1),
        dict(name='ifca', keep_trained=True, rounds=3), dict(name='flora', keep_rounds=3, rounds=4)]

@pytest.mark.parametrize('more', RUNS, ids=lambda d: '-'.join(map(str, d.values())))
def test_disk_and_tokens_of_real_runs(make_cfg, more):
    "Files exactly, tokens exactly, bytes within a twentieth."
    cfg = make_cfg(**{'num_clients': 6, 'batch_size': 2, **more})
    p = make_plan(cfg, client_data(6))
    server = get_server(cfg, client_data(6), callbacks=[])
    history,root = server.fit(),Path(cfg.output_dir)
    assert p['tokens']['exact'] and p['tokens']['run'] == sum(r['tokens'] for r in history)
    last = server.store.path(0)
    assert p['client']['bytes'] == {o.name: o.stat().st_size for o in last.iterdir()}
    assert abs(p['disk']['files'] - inodes(root)) <= (4 if cfg.name == 'ifca' else 0)   # training decides who shares a model
    real,there = sum(blocks(root).values()),p['disk']['end'] - p['disk']['parts']['answers']
    assert abs(there - real) <= max(.05*real, 5*4096), (there, real, p['disk'])

def test_the_peak_of_the_disk(make_cfg):
    "What lies there when a round's states are mixed and the last ones aren't dropped yet."
    cfg,most = make_cfg(graph='complete', rounds=4, keep_rounds=1),0
    from fedai.evaluate.tracking import Callback
    class Look(Callback):
        def after_mix(self, server, t, M):
            nonlocal most
            most = max(most, sum(blocks(server.store.root).values()))
    p = make_plan(cfg, client_data(4))
    get_server(cfg, client_data(4), callbacks=[Look()]).fit()
    assert abs(p['disk']['peak'] - most) < .1*most

def test_tokens_where_some_clients_stand_for_all(make_cfg):
    data = client_data(4)
    p,q = make_plan(make_cfg(), data, measure=False),make_plan(make_cfg(), data, clients=8, measure=False)
    assert not q['tokens']['exact'] and abs(q['tokens']['run']/p['tokens']['run'] - 2) < 1e-6

def test_a_module_is_planned_too(make_cfg):
    torch.manual_seed(0)
    model = torch.nn.Linear(5, 3)
    before = {n: t.clone() for n,t in model.state_dict().items()}
    data = [dict(train=[(torch.randn(5), i % 3) for i in range(8)], test=[(torch.randn(5), i % 3) for i in range(4)]) for _ in range(4)]
    kwargs = dict(criterion=torch.nn.CrossEntropyLoss())
    cfg = make_cfg(name='fedavg')
    p = make_plan(cfg, data, model, **kwargs)
    assert all(torch.equal(before[n], t) for n,t in model.state_dict().items())
    history = get_server(cfg, data, model, callbacks=[], **kwargs).fit()
    assert p['parameters'] == dict(base=0, trained=18, share=1.) and p['tokens']['run'] == sum(r['tokens'] for r in history) == 4*2*3*2

@pytest.mark.parametrize('name', ['mira','flora','fedex'])
def test_a_model_that_is_handed_over_is_as_it_was(make_cfg, name):
    from fedai.models import get_model
    model = get_model(make_cfg())
    before = {n: t.clone() for n,t in model.state_dict().items()}
    make_plan(make_cfg(name=name), client_data(4), model)
    assert all(torch.equal(before[n], t) for n,t in model.state_dict().items())

def test_nothing_is_left_behind(make_cfg, tmp_path, monkeypatch):
    monkeypatch.setenv('TORCHINDUCTOR_CACHE_DIR', tempfile.gettempdir() + '/torchinductor')   # torch makes it, in whatever test is first
    monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path))
    cfg = make_cfg()
    make_plan(cfg, client_data(4))
    assert list(tmp_path.iterdir()) == []
    get_server(cfg, client_data(4), callbacks=[]).fit()
    before = {p: p.stat().st_mtime_ns for p in Path(cfg.output_dir).rglob('*')}
    make_plan(cfg, client_data(4))   # over a run that is there
    assert {p: p.stat().st_mtime_ns for p in Path(cfg.output_dir).rglob('*')} == before
    assert list(tmp_path.iterdir()) == [Path(cfg.output_dir)]

def test_a_million_clients_on_paper(make_cfg):
    data,cfg = client_data(4),make_cfg(graph='complete')
    server = get_server(cfg, data, callbacks=[])
    f = facts(server)
    began = time.perf_counter()
    p = estimate(f, cfg, 1_000_000)
    assert time.perf_counter() - began < .1
    assert p['disk']['parts']['graph'] >= 8*10**12 and p['clients_a_round'] == 1_000_000
    began = time.perf_counter()
    q = make_plan(cfg, data, clients=1_000_000, measure=False, memory=64, disk=1000)
    assert time.perf_counter() - began < 10
    assert 'graph' in plan_table(q) and q['fix'] and 'name' in q['fix'] and 'm' in q['fix']
    assert make_plan(cfg.replace(**q['fix']), data, clients=1_000_000, measure=False, memory=64, disk=1000)['problems'] == []
    less = {**q['fix'], 'm': q['fix']['m']*2.1}   # the share that is named is the most that fits, within a factor of two
    assert make_plan(cfg.replace(**less), data, clients=1_000_000, measure=False, memory=64, disk=1000)['problems']

def test_no_algorithm_without_a_graph_where_a_setting_needs_one(make_cfg):
    cfg = make_cfg(graph='complete', selection='neighbourhood')
    p = make_plan(cfg, client_data(4), clients=1_000_000, measure=False, memory=64, disk=1000)
    assert p['problems'] and 'name' not in p['fix'] and p['fix']['clients'] < 1_000_000

@pytest.mark.parametrize('bound', ['disk','memory','hours'])
def test_every_setting_that_is_named_makes_it_fit(make_cfg, bound, monkeypatch):
    from fedai.study import plan
    rates,real = {},plan.estimate
    def steady(f, *args):
        "Times are measured anew in each plan: with those of the first it is the arithmetic that is tested, not how busy the machine is."
        timed = [k for k in f if k.startswith(('seconds_','first')) or k in ('start','curves','mix_row','commit_row')]
        return real({**f, **{k: rates.setdefault(k, f[k]) for k in timed}}, *args)
    monkeypatch.setattr(plan, 'estimate', steady)
    cfg = make_cfg(num_clients=4, rounds=40, local_step=100, keep_rounds=40, keep_trained=True)
    once = make_plan(cfg, client_data(4), clients=2000, measure=bound == 'hours')
    process = once['memory']['parts']['process']
    half = dict(disk=lambda: once['disk']['peak']/2e9, hours=lambda: once['time']['total']/7200,
                memory=lambda: (process + (once['memory']['peak'] - process)/2)/1e9)[bound]()
    def ask(clients=2000, **given):
        return make_plan(cfg.replace(**given), client_data(4), clients=clients, measure=bound == 'hours', **{bound: half})
    p = ask()
    what = bound.replace('hours', 'time')
    o = next(o for o in p['problems'] if o['what'] == what)
    assert o['needs'] > o['there'] and p['fix'] and (o['settings'] or len(p['fix']) > 1)
    for s in [*o['settings'], p['fix']]:
        assert what not in [q['what'] for q in ask(**s)['problems'] if q['needs'] > 1.05*q['there']], s   # the process is measured anew

MIXED = [dict(name='mira'), dict(name='mira', m=.5), dict(name='mira', graph='learned'), dict(name='fedavg')]

@pytest.mark.parametrize('settings', MIXED, ids=str)
def test_mixing_takes_the_arrays_that_the_plan_counts(make_cfg, settings):
    "numpy's own, while a server mixes a thousand tiny rows: the graph, and two rounds' matrices with what they are made of."
    K,x = 1000,torch.zeros(2)
    data = [{'train': [(x, x[:1])]*2, 'test': [(x, x[:1])]}]*K
    cfg = make_cfg(num_clients=K, **{'graph': 'complete', **settings})
    server = get_server(cfg, data, torch.nn.Linear(2, 1), criterion=torch.nn.MSELoss(), callbacks=[])
    f,ids = facts(server),range(round(K*cfg.m))
    parts = estimate(f, cfg)['memory']['parts']
    with server.store.locked():
        for k in ids: server.store.save_trained(1, k, {n: torch.full_like(t, float(k)) for n,t in server.live.tensors.items()})
        server.aggregate(ids, 0)
        there = [server.matrix, *(server.mixed_on or ())[:1]]               # of the round before
        if f['graph'] and not f['learned']: there.append(server.alk_connection)   # a learned one is replaced
        tracemalloc.start()
        server.aggregate(ids, 0)   # as in the next round, when the arrays of the last one are there
        took = tracemalloc.get_traced_memory()[1] + sum(a.nbytes for a in there)
        tracemalloc.stop()
    counted = parts.get('graph', 0) + parts['mixing']
    assert -.1 < (took - counted)/(8*K*K) < .5, (took/(8*K*K), counted/(8*K*K))   # beside them a few kB of names for each row

BAD = [(dict(clients=0), 'clients'), (dict(clients=2.5), 'clients'), (dict(clients='many'), 'clients'),
       (dict(memory=-1), 'memory'), (dict(disk=float('nan')), 'disk'), (dict(hours=True), 'hours')]

@pytest.mark.parametrize('kwargs,name', BAD, ids=str)
def test_bad_input(make_cfg, kwargs, name):
    with pytest.raises(ConfigError, match=f'`{name}`'): make_plan(make_cfg(), client_data(4), **kwargs)

def test_a_folder_that_cannot_be_written_is_named(make_cfg, tmp_path):
    (tmp_path/'file').write_text('')
    with pytest.raises(ConfigError, match='`output_dir`'): make_plan(make_cfg(output_dir=str(tmp_path/'file'/'run')), client_data(4))

def test_what_is_wrong_with_a_run_is_found(make_cfg):
    with pytest.raises(ConfigError, match='`optimizer`'): make_plan(make_cfg(optimizer='Adamm'), client_data(4))

def test_no_rounds_and_few_clients(make_cfg):
    p = make_plan(make_cfg(rounds=0), client_data(4))
    assert p['tokens']['run'] == 0 and p['time']['train'] == 0 and p['time']['test'] > 0 and p['disk']['parts'].get('states', 0) == 0
    one = make_plan(make_cfg(num_clients=1, name='fedavg'), client_data(1))
    assert one['clients'] == one['clients_a_round'] == 1 and not one['problems']
    assert make_plan(make_cfg(m=.01), client_data(4), measure=False)['clients_a_round'] == 1

def test_the_command(tmp_path):
    p = tmp_path/'cfg.yaml'
    data = tmp_path/'data'
    data.mkdir()
    for k,d in enumerate(client_data(3)): (data/f'{k}.jsonl').write_text('\n'.join(map(json.dumps, d['train'])))
    settings = dict(model='tiny', device='cpu', data=data, rounds=2, local_step=2, max_new_tokens=4, output_dir=tmp_path/'run')
    p.write_text('\n'.join(f'{k}: {v}' for k,v in settings.items()))
    code,out,err = said('plan', str(p), '--json')
    assert code == 0, err
    got = json.loads(out)
    assert got['clients'] == 3 and got['time']['total'] > 0 and got['measured']['questions'] > 0
    code,out,_ = said('plan', str(p), '--json', '--no-measure', '--clients', '1000000')
    assert code == 1 and 'time' not in (got := json.loads(out)) and got['clients'] == 1_000_000 and got['problems']
    code,out,_ = said('plan', str(p), '--no-measure', '--local_step', '7')
    assert code == 0 and out.startswith('clients') and out.rstrip().endswith('all fits') and 'not measured' in out
    assert said('plan', str(p), '--clients', 'x')[::2] == (2, "fedai: `clients`: expected a whole number above 0, got 'x'\n")
    assert said('plan', str(p), '--clientz', '3')[0] == 2
    assert not (tmp_path/'run').exists()
