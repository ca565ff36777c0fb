"The comparison: the same conditions for all, numbers that can be recomputed, and a killed one that goes on."
import csv, io, json, os, signal, subprocess, sys, time
from pathlib import Path
import numpy as np
import pytest, torch
from hypothesis import given, strategies as st
from conftest import client_data
from fedai.evaluate.metrics import paired_bootstrap
from fedai.study.comparison import Comparison, _fingerprint, compare, validation_split
from fedai.config import ConfigError

ARGS = dict(algorithms=['local','fedavg','mira'], seeds=[0,1], tune={'*': {'lr': [.1,1.]}, 'mira': {'coupling': [.2,.6]}}, metric='loss',
            data=lambda cfg: client_data(4))

def test_interval_against_scipys():
    from scipy.stats import bootstrap
    x = np.random.default_rng(1).gamma(2., size=40)
    want = bootstrap((x,), np.mean, n_resamples=20000, method='percentile', rng=np.random.default_rng(0)).confidence_interval
    got = paired_bootstrap(x, draws=20000)
    assert got['low'] == pytest.approx(want.low, abs=.02) and got['high'] == pytest.approx(want.high, abs=.02)
    assert got['mean'] == pytest.approx(x.mean())

def test_the_interval_covers_the_truth_as_often_as_it_says():
    "Groups with an effect of their own: in about 95 of 100 draws the interval has the true mean; without groups in far fewer."
    g,hits,naive = np.random.default_rng(0),0,0
    for j in range(200):
        x = np.repeat(g.standard_normal(24), 4) + .3*g.standard_normal(96)
        for grouped in (True,False):
            o = paired_bootstrap(x, np.repeat(range(24), 4) if grouped else None, draws=400, seed=j)
            if grouped: hits += o['low'] <= 0 <= o['high']
            else: naive += o['low'] <= 0 <= o['high']
    assert .88*200 <= hits <= .98*200 and naive < .8*200

@given(st.lists(st.floats(-5, 5), min_size=1, max_size=20), st.floats(-3, 3), st.integers(0, 5))
def test_algebra_of_the_interval(x, c, seed):
    o,moved,turned = (paired_bootstrap(y, draws=200, seed=seed) for y in (x, np.array(x)+c, -np.array(x)))
    assert o['low'] <= o['mean'] + 1e-9 or len(set(x)) > 1
    for k in ('mean','low','high'): assert moved[k] == pytest.approx(o[k] + c, abs=1e-9)
    assert turned['low'] == pytest.approx(-o['high'], abs=1e-9)

def test_numbers_are_recomputed_from_the_files(make_cfg):
    cfg = make_cfg(optimizer='SGD')
    result = compare(cfg, **ARGS, out=io.StringIO())
    root = Path(cfg.output_dir)
    cards = {(a,s): json.loads((root/a/f'seed_{s}'/'scorecard.json').read_text())['clients'] for a in ARGS['algorithms'] for s in (0,1)}
    rows = list(csv.DictReader((root/'compare.csv').open()))
    assert len(rows) == 3*2*4
    for r in rows: assert float(r['loss']) == cards[r['algorithm'],int(r['seed'])][r['client']]['loss']
    for row in json.loads((root/'compare.json').read_text())['rows']:
        mine = {s: [m['loss'] for m in cards[row['algorithm'],s].values()] for s in (0,1)}
        assert row['mean'] == pytest.approx(np.mean([*mine.values()]))
        assert row['worst_decile'] == pytest.approx(np.mean([max(v) for v in mine.values()]))
        for ref in {'local','fedavg'} - {row['algorithm']}:
            d = np.array([[m['loss'] for m in cards[ref,s].values()] for s in (0,1)]) - [mine[s] for s in (0,1)]
            got = row[ref]
            assert got['mean'] == pytest.approx(d.mean(), abs=1e-12) and got['better']['mean'] == (d > 0).mean()
            assert got['low'] <= d.mean() <= got['high']
            # as the clients' examples say; client 0 and 2 of a seed are drawn together
            tasks = [f'{s} plus{k%2}' for s in (0,1) for k in range(4)]
            assert {k: got[k] for k in ('mean','low','high')} == pytest.approx(paired_bootstrap(d.ravel(), tasks), abs=1e-12)
    # tuned without the tests
    tuned_on = {json.loads(p.read_text())['key']['data'] for p in root.glob('tune/*/*/cell.json')}
    assert tuned_on == {_fingerprint(validation_split(client_data(4), .25, 0))}
    history = {a: [json.loads(o) for o in (root/a/'seed_0'/'history.jsonl').read_text().splitlines()] for a in ARGS['algorithms']}
    # the same data, selection and budget
    for k in ('data','selected','tokens'): assert len({json.dumps([r[k] for r in h]) for h in history.values()}) == 1
    losses = {a: [np.mean([m['loss'] for m in json.loads((root/'tune'/a/str(j)/'cell.json').read_text())['clients'].values()])
                  for j in (0,1)] for a in ARGS['algorithms']}
    grid = {a: [{'coupling': .2},{'coupling': .6}] if a == 'mira' else [{'lr': .1},{'lr': 1.}] for a in ARGS['algorithms']}
    for row in result.summary(): assert row['tuned'] == grid[row['algorithm']][int(np.argmin(losses[row['algorithm']]))]

def test_no_test_question_is_tuned_on():
    data = client_data(4)
    for d,h in zip(data, validation_split(data, .25, 3)):
        key = lambda exs: sorted(e['instruction'] for e in exs)
        assert key(h['train'] + h['test']) == key(d['train']) and len(h['test']) == 3
    with pytest.raises(ConfigError, match='at least two examples'): validation_split([{'train': [1], 'test': [2]}])
    with pytest.raises(ConfigError, match='valid_share'): validation_split(data, 1.)

def test_finished_cells_are_kept_and_changed_data_is_refused(make_cfg):
    cfg,out = make_cfg(optimizer='SGD', rounds=1),io.StringIO()
    args = {**ARGS, 'tune': None, 'seeds': [0]}
    first = compare(cfg, **args, out=out)
    marks = {p: p.stat().st_mtime_ns for p in Path(cfg.output_dir).rglob('scorecard.json')}
    more = compare(cfg, **{**args, 'algorithms': ['local','fedavg','mira','ditto']}, out=out)
    assert all(p.stat().st_mtime_ns == t for p,t in marks.items()) and more.rows[:12] == first.rows
    longer = compare(cfg.replace(rounds=2), **args, out=out)   # goes on where the shorter one was
    assert longer.rows == compare(cfg.replace(rounds=2, output_dir=cfg.output_dir + 'x'), **args, out=out).rows != first.rows
    other = lambda c: [{**d, 'train': d['train'][::-1]} for d in client_data(4)]
    with pytest.raises(ConfigError, match='other data'): compare(cfg.replace(rounds=2), **{**args, 'data': other}, out=out)

def test_a_finished_comparison_of_data_that_says_how_many_clients_there_are(make_cfg):
    "A cell's config has the number of clients filled in, the comparison's needn't."
    cfg,out = make_cfg(rounds=1, num_clients=None),io.StringIO()
    args = dict(ARGS, tune=None, seeds=[0], out=out)
    first = compare(cfg, **args)
    marks = {p: p.stat().st_mtime_ns for p in Path(cfg.output_dir).rglob('cell.json')}
    assert compare(cfg, **args).rows == first.rows and len(marks) == 3 and all(p.stat().st_mtime_ns == t for p,t in marks.items())

def test_other_settings_than_in_the_folder_are_refused_before_anything_runs(make_cfg):
    # the second trial wins
    cfg,out,mine = make_cfg(rounds=1),io.StringIO(),{**ARGS, 'seeds': [0], 'tune': {'*': {'lr': [1.,.1]}, 'mira': {'coupling': [.6,.2]}}}
    first = compare(cfg, **mine, out=out)
    ran = out.getvalue()
    assert {'lr': .1} in first.tuned.values()
    assert compare(cfg, **mine, out=io.StringIO()).rows == first.rows
    for changed,args,message in [(dict(local_step=9), {}, '`local_step`: expected 2'),
                                 ({}, dict(tune={'*': {'lr': [.2,.3]}}), '`lr`: expected 1.0, as in .*tune'),
                                 # what comes first is new, what comes later is there
                                 ({}, dict(algorithms=['ditto','local'], seeds=[1,0], tune=None), '`lr`: expected .*local')]:
        with pytest.raises(ConfigError, match=message): compare(cfg.replace(**changed), **{**mine, **args}, out=out)
    assert out.getvalue() == ran and not (Path(cfg.output_dir)/'ditto').exists()

def test_a_diverged_trial_loses_and_a_diverged_cell_is_an_error(make_cfg):
    from fedai.train.local import NonFiniteLoss
    def net():
        torch.manual_seed(0)
        return torch.nn.Linear(2, 1)
    g = torch.Generator().manual_seed(0)
    pairs = lambda c: [{'train': [(x, x.sum()[None]) for x in torch.randn(8, 2, generator=g)],
                        'test': [(x, x.sum()[None]) for x in torch.randn(4, 2, generator=g)]} for _ in range(2)]
    data = pairs(None)
    args = dict(algorithms=['local'], seeds=[0], data=lambda c: data, model=lambda c: net(), criterion=torch.nn.MSELoss(),
                out=io.StringIO())
    cfg = make_cfg(num_clients=2, optimizer='SGD', grad_clip=None, rounds=3, local_step=20)
    assert compare(cfg, tune={'*': {'lr': [1e30,.1]}}, **args).summary()[0]['tuned'] == {'lr': .1}
    with pytest.raises(NonFiniteLoss): compare(cfg.replace(output_dir=cfg.output_dir + 'a', lr=1e30), **args)
    with pytest.raises(NonFiniteLoss, match='every trial'):
        compare(cfg.replace(output_dir=cfg.output_dir + 'b'), tune={'*': {'lr': [1e30,1e29]}}, **args)

WARM = """
import os, sys
import matplotlib.pyplot, networkx, reasoning_gym
from fedai.cli import main
from fedai.config import FedConfig
from fedai.evaluate.metrics import text_scores
from fedai.models import get_model
get_model(FedConfig(model='tiny')),text_scores(['a'], ['a'])
for line in sys.stdin:
    if not (pid := os.fork()):
        os.dup2(2, 1)
        os._exit(main(line.split()))
    print(pid, flush=True)
    print(os.waitpid(pid, 0)[1], flush=True)
"""

def test_killed_and_gone_on_with(tmp_path):
    "The command, killed twice, ends with the same table as one that wasn't; in forks of a process, since imports take longer."
    p = tmp_path/'c.yaml'
    p.write_text("model: tiny\ndevice: cpu\nnum_clients: 2\nclients_per_task: 2\ntasks: {gcd: {max_value: 20}}\n"
                 "train_size: 8\ntest_size: 4\nrounds: 3\nlocal_step: 2\nmax_new_tokens: 3\n"
                 "compare: {algorithms: [local, fedavg], seeds: [0, 1], metric: loss, sweep: {train_size: [4, 8]}}\n")
    env = {**os.environ, 'PYTHONPATH': str(Path(__file__).parents[1])}
    with open(tmp_path/'log', 'w') as log, subprocess.Popen([sys.executable, '-c', WARM], env=env, stdin=subprocess.PIPE,
                                                            stdout=subprocess.PIPE, stderr=log, text=True) as warm:
        def number(): return int(warm.stdout.readline())
        def start(folder):
            print('compare', p, '--output_dir', tmp_path/folder, file=warm.stdin, flush=True)
            return number()
        start('a')
        assert number() == 0, (tmp_path/'log').read_text()
        for cells in (1,4):
            run,until = start('b'),time.time() + 120
            while sum('cell.json' in names for _,_,names in os.walk(tmp_path/'b')) < cells and time.time() < until: time.sleep(.005)
            os.kill(run, signal.SIGKILL)
            assert number() == signal.SIGKILL
        start('b')
        assert number() == 0, (tmp_path/'log').read_text()
    for o in ('compare.csv','compare.md','compare.json'): assert (tmp_path/'a'/o).read_bytes() == (tmp_path/'b'/o).read_bytes()

@pytest.mark.parametrize('args,message', [(dict(algorithms=['mirra']), "did you mean 'mira'"),
                                          (dict(algorithms=[]), '`algorithms`: expected at least one'),
                                          (dict(algorithms=['local','local']), 'each once'), (dict(seeds=[]), '`seeds`'),
                                          (dict(seeds=[0,0]), '`seeds`'),
                                          *[(dict(seeds=o), '`seeds`: expected a list of different whole numbers')
                                            for o in ('a',['a'],[1.5],[True],[-1])],
                                          (dict(callbacks=print), '`callbacks`: expected a list'),
                                          (dict(sweep={'train_sise': [1]}), 'train_sise'), (dict(sweep={'r': []}), '`sweep`'),
                                          (dict(sweep={'r': [1], 'm': [1]}), '`sweep`'),
                                          (dict(sweep={'ranks': [[1,1],[2,2]]}), '`sweep: ranks`: expected single values'),
                                          (dict(sweep={'graph_args': [{}]}), '`sweep: graph_args`: expected single values'),
                                          (dict(sweep={'r': [4,0]}), '`r`: expected at least 1, got 0'),
                                          (dict(tune={'mira': {'lr': [1e-3,1e-2]}}), 'as many trials'),
                                          (dict(tune={'mirra': {'lr': [1]}}), "did you mean 'mira'"),
                                          (dict(tune={'*': {'lr': [1e-3,-1]}}), '`lr`: expected a value above 0'),
                                          (dict(tune={'*': {'seed': [1,2]}}), 'one value for all'),
                                          (dict(tune={'*': {'name': ['mira']}}), '`tune: name`'), (dict(tune=[1]), '`tune`'),
                                          (dict(algorithms={'x': {'name': 'mira', 'algorithm_args': {'mu': 1}}}),
                                           'settings of mira, which has none'),
                                          (dict(algorithms={'a/b': {'name': 'mira'}}), 'labels of letters'),
                                          (dict(algorithms={'x': {'name': 'mira', 'train_size': 3}}), 'one value for all'),
                                          (dict(algorithms={'x': 3}), '`algorithms: x`'),
                                          (dict(data=client_data(4)), "`data`: expected a function of a cell's config"),
                                          (dict(model=torch.nn.Linear(1, 1)),
                                           "`model`: expected a function of a cell's config, which makes a fresh model, got 'Linear'"),
                                          (dict(metric='accuracyy'), "`metric`: expected one of loss, .*did you mean 'accuracy'"),
                                          (dict(metric='choice_accuracy'), '`metric`: expected one of loss')])
def test_bad_settings_are_found_before_anything_runs(make_cfg, args, message):
    cfg = make_cfg()
    with pytest.raises(ConfigError, match=message):
        compare(cfg, **{'algorithms': ['local','mira'], 'seeds': [0], 'data': lambda c: client_data(4), 'out': io.StringIO(), **args})
    # which there are of those that there may be is known after the first cell
    assert len(list(Path(cfg.output_dir).rglob('cell.json'))) == (args.get('metric') == 'choice_accuracy')

def test_a_comparison_in_a_terminal():
    rows = [dict(value=None, algorithm=a, seed=s, client=i, task='', loss=float(k + i + s)) for k,a in enumerate(('local','fedavg','mira'))
            for s in (0,1) for i in range(3)]
    result = Comparison(rows, tuned={(None,'mira'): {'lr': .1}})
    wide,narrow = result.text(300),result.text(70)
    cells = [[c.strip() for c in line.strip('| ').split(' | ')] for line in result.table().splitlines()]
    assert len(wide.splitlines()) == 5 and max(map(len, narrow.splitlines())) <= 70
    assert narrow.count('\n\n') == 3   # the means, each reference, and what was tuned
    for row in cells[2:]:
        for c in filter(None, row[1:]): assert c.strip('|') in wide and c.strip('|') in narrow
